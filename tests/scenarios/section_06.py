"""Facts 6: copen."""

from __future__ import annotations

import errno

from tests.scenarios import image
from tests.scenarios.files import Anon, Device
from tests.scenarios.netfs import Pending
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.protocol.messages import Close, Read

PAGE = image.PAGE


@scenario("6 arguments", "6 id forms", "6 unknown id")
def copen_ids(w: World) -> None:
    """What is no id, or nobody's: EINVAL and ERANGE, and the OPEN goes on waiting."""
    device = w.bound()
    _, anon = w.opening(device)
    for text in ("", "0", ",1", "-1,1", " 0 ,1", "zero,1", "0x,1", "08,1", "7,1"):
        device.write(f"copen {text}".encode())
    for number in (1 << 32, (1 << 64) - 1, 1 << 64, 1 << 70):
        device.write(b"copen %d,1" % number)
    w.netfs.started[-1].waits()
    device.write(b"copen 0x0,%d" % image.SIZE)
    anon.answer(device.take(Read))
    w.netfs.started[-1].result()


@scenario("6 id forms")
def copen_octal_id(w: World) -> None:
    """A leading plus, or zero for octal, is a number all the same."""
    device = w.bound()
    first, anon = w.opening(device)
    device.write(b"copen +00,%d" % image.SIZE)
    anon.answer(device.take(Read))
    w.netfs.started[-1].result()
    w.note(f"the id was {first.msg_id}")


@scenario("6 before delivery")
def copen_before_read(w: World) -> None:
    """An OPEN that no read has delivered cannot be answered."""
    device = w.bound()
    mounting = w.netfs.mount()
    device.wait()
    device.write(b"copen 0,%d" % image.SIZE)
    mounting.waits()
    w.serve_mount(device, mounting)


@scenario("6 twice", "6 other opcode", "14 consistency")
def copen_of_what_is_no_open(w: World) -> None:
    """Answered twice, of a READ, of a CLOSE: EINVAL, and nothing happens to them."""
    device = w.bound()
    mounting = w.netfs.mount()
    opened, anon = device.take_open()
    device.copen(opened)
    device.copen(opened)
    device.copen(opened, -errno.EIO)
    read = device.take(Read)
    device.write(b"copen %d,%d" % (read.msg_id, image.SIZE))
    mounting.waits()
    anon.answer(read)
    mounting.result()
    w.netfs.umount()
    device.wait()
    device.write(b"copen 2,%d" % image.SIZE)
    closing = device.take(Close)
    device.write(b"copen %d,0" % closing.msg_id)


@scenario("6 bad size", "6 leftover fd", "6 no close")
def copen_bad_sizes(w: World) -> None:
    """A size that is none fails the write and the OPEN; the fd stays the daemon's; no CLOSE."""
    device = w.bound()
    for number, size in enumerate((" 5", "5 ", "", "abc", "5,6", "0x", "--5")):
        message, anon = w.opening(device, f"m{number}")
        device.write(f"copen {message.msg_id},{size}".encode())
        w.netfs.started[-1].fails()
        device.nothing()
        anon.pwrite(bytes(PAGE), 0)
        anon.close()
    device.nothing()


@scenario("6 size range")
def copen_size_out_of_range(w: World) -> None:
    """What no long holds: ERANGE, and the OPEN fails."""
    device = w.bound()
    for number, size in enumerate((1 << 63, 1 << 64, -(1 << 63) - 1)):
        message, anon = w.opening(device, f"m{number}")
        device.write(b"copen %d,%d" % (message.msg_id, size))
        w.netfs.started[-1].fails()
        anon.close()


@scenario("6 size forms")
def copen_size_forms(w: World) -> None:
    """A newline at the end, a plus, hexadecimal and octal are sizes."""
    device = w.bound()
    for number, size in enumerate(("65536\n", "+65536", "0x10000", "0200000")):
        fsid = f"blob{number}"
        message, anon = w.opening(device, f"m{number}", fsid)
        device.write(f"copen {message.msg_id},{size}".encode())
        anon.answer(device.take(Read))
        w.netfs.started[-1].result()
        w.netfs.umount(f"m{number}")
        device.take(Close)
        anon.close()
        w.disk.wait_for(f"erofs,{fsid}", fsid)
        w.disk.show(f"erofs,{fsid}", fsid)


@scenario("6 negative", "6 errno hidden", "6 no close", "14 errno or size")
def copen_negative(w: World) -> None:
    """A negative errno: the write succeeds, the OPEN fails, mount(2) does not tell with what."""
    device = w.bound()
    for number in (errno.EPERM, errno.ENOENT, errno.ENOSPC, 4095):
        message, anon = w.opening(device, f"m{number}")
        device.copen(message, -number)
        w.netfs.started[-1].fails()
        device.nothing()
        anon.close()


@scenario("6 negative existing")
def copen_negative_of_a_cached_file(w: World) -> None:
    """Of a file that is in the cache the mount fails ENOBUFS, and the file stays."""
    w.disk.plant("erofs,blob", "blob", image.SIZE, {0: image.page(0)})
    device = w.bound()
    message, anon = w.opening(device)
    device.copen(message, -errno.ENOENT)
    w.netfs.started[-1].result()
    anon.close()
    w.disk.show("erofs,blob", "blob")


@scenario("6 below errno")
def copen_below_errno(w: World) -> None:
    """Below -4095 is neither size nor errno: both fail."""
    device = w.bound()
    for size in (-4096, -(1 << 31), -(1 << 63)):
        message, anon = w.opening(device, f"m{-size}")
        device.copen(message, size)
        w.netfs.started[-1].fails()
        anon.close()


@scenario("6 closed fd", "14 closed before copen")
def copen_of_a_closed_fd(w: World) -> None:
    """The fd is closed already: the write succeeds, the OPEN fails all the same."""
    device = w.bound()
    message, anon = w.opening(device)
    anon.close()
    w.netfs.started[-1].waits()
    device.copen(message)
    w.netfs.started[-1].fails()
    device.nothing()


@scenario("6 retry")
def copen_after_a_failure(w: World) -> None:
    """A failed OPEN is forgotten: the next mount asks anew, with the next ids."""
    device = w.bound()
    message, anon = w.opening(device)
    device.copen(message, -errno.EIO)
    w.netfs.started[-1].fails()
    anon.close()
    w.mounted(device)
    w.netfs.read(0, PAGE)
    device.anonymous[2].answer(device.take(Read))
    w.netfs.started[-1].result()


def _serve(w: World, device: Device, anon: Anon, pending: Pending) -> None:
    """Answer every READ until `pending` has ended."""
    while w.asked(device, pending):
        message = device.read()
        if isinstance(message, Read):
            anon.answer(message)
    pending.result()


@scenario("6 size zero", "6 size no bound", "14 errno or size")
def copen_size_zero(w: World) -> None:
    """A size is no bound: with 0 READs come, and what is written is read."""
    device = w.bound()
    message, anon = w.opening(device)
    device.copen(message, 0)
    _serve(w, device, anon, w.netfs.started[-1])


@scenario("6 size no bound")
def copen_size_too_small(w: World) -> None:
    """The same with 5 bytes; the file is made 4096 long, and grows by what is written."""
    device = w.bound()
    mounting = w.netfs.mount()
    anon = w.serve_mount(device, mounting, 5)
    anon.lseek(0, 2)
    _serve(w, device, anon, w.netfs.read(3 * PAGE, PAGE))


@scenario("6 size stored", "6 size rounded")
def copen_size_stored(w: World) -> None:
    """The size is in the attribute as it was told; the file is as long as whole pages."""
    device = w.bound()
    mounting = w.netfs.mount()
    anon = w.serve_mount(device, mounting, image.SIZE - 100)
    anon.lseek(0, 2)
    w.netfs.umount()
    device.take(Close)
    anon.close()
    w.disk.wait_for("erofs,blob", "blob")
    w.disk.show("erofs,blob", "blob")


@scenario("6 size changed")
def copen_another_size(w: World) -> None:
    """Another size than the stored one: everything that is cached is dropped."""
    pages = {number: image.page(number) for number in range(4)}
    w.disk.plant("erofs,blob", "blob", image.SIZE, pages)
    device = w.bound()
    mounting = w.netfs.mount()
    anon = w.serve_mount(device, mounting, image.SIZE + PAGE)
    reading = w.netfs.read(0, PAGE)
    anon.answer(device.take(Read))
    reading.result()
    w.netfs.umount()
    device.take(Close)
    anon.close()
    device.close()
    w.open().close()
    w.disk.show("erofs,blob", "blob")
