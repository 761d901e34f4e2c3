"""Facts 8: the anonymous fd."""

from __future__ import annotations

import fcntl
import os
import termios

from tests.scenarios import image
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.protocol.messages import IOC_READ_COMPLETE, Close, Read

PAGE = image.PAGE
VOLUME, KEY = "erofs,blob", "blob"


@scenario("8.1 before copen")
def anon_before_copen(w: World) -> None:
    """Before copen there is no file behind it: writes and seeks are ENOBUFS."""
    device = w.bound()
    message, anon = w.opening(device)
    anon.pwrite(image.page(0), 0)
    anon.lseek(0, os.SEEK_SET)
    anon.lseek(0, os.SEEK_END)
    anon.lseek(0, os.SEEK_DATA)
    anon.cread(0)
    device.copen(message)
    anon.answer(device.take(Read))
    w.netfs.started[-1].result()


@scenario("8.1 reads")
def anon_cannot_be_read(w: World) -> None:
    """It is write-only."""
    device = w.bound()
    anon = w.mounted(device)
    w.log.call("read", lambda: os.read(anon.number, PAGE))
    w.log.call("pread", lambda: os.pread(anon.number, PAGE, 0))


@scenario("8.1 misaligned offset")
def anon_misaligned_offset(w: World) -> None:
    """An offset that is no multiple of a page is ENOBUFS, the errno of a lack of space."""
    device = w.bound()
    anon = w.mounted(device)
    for offset in (1, 512, 1024, PAGE - 1, PAGE + 512, image.SIZE - 512):
        anon.pwrite(bytes(PAGE), offset)
    anon.lseek(PAGE, os.SEEK_HOLE)


@scenario("8.1 misaligned length")
def anon_misaligned_length(w: World) -> None:
    """A length that is no multiple of the logical block is EINVAL; nothing is written."""
    device = w.bound()
    anon = w.mounted(device)
    for length in (1, 511, 513, PAGE - 1, PAGE + 1):
        anon.pwrite(b"x" * length, PAGE)
    anon.lseek(0, os.SEEK_HOLE)


@scenario("8.1 length of blocks")
def anon_length_of_blocks(w: World) -> None:
    """Logical blocks are taken at the end of an object, without the rest of the page."""
    device = w.bound()
    mounting = w.netfs.mount()
    anon = w.serve_mount(device, mounting, image.SIZE - PAGE + 512)
    anon.pwrite(b"x" * 512, image.SIZE - PAGE)
    anon.lseek(image.SIZE - PAGE, os.SEEK_DATA)
    anon.lseek(image.SIZE - PAGE, os.SEEK_HOLE)


@scenario("8.1 length of blocks")
def anon_write_inside_a_page(w: World) -> None:
    """In the middle of an object they are taken too: the rest of the page is zeros from then on."""
    device = w.bound()
    anon = w.mounted(device)
    anon.pwrite(b"x" * 512, PAGE)
    anon.lseek(PAGE, os.SEEK_DATA)


@scenario("8.1 misaligned memory")
def anon_misaligned_memory(w: World) -> None:
    """Memory has to be aligned as for a direct write."""
    device = w.bound()
    anon = w.mounted(device)
    anon.pwrite(image.page(1), PAGE, shift=1)
    anon.pwrite(image.page(1), PAGE, shift=512)


@scenario("8.1 empty write")
def anon_empty_write(w: World) -> None:
    """Nothing is written by a write of nothing."""
    device = w.bound()
    anon = w.mounted(device)
    anon.pwrite(b"", 0)
    anon.pwrite(b"", PAGE)
    anon.lseek(PAGE, os.SEEK_DATA)


@scenario("8.1 beyond the end", "8.1 grows", "8.1 lseek end")
def anon_beyond_the_end(w: World) -> None:
    """A write beyond the size is taken, and the file grows."""
    device = w.bound()
    anon = w.mounted(device)
    anon.lseek(0, os.SEEK_END)
    anon.pwrite(b"x" * PAGE, image.SIZE + PAGE)
    anon.lseek(0, os.SEEK_END)
    anon.lseek(image.SIZE, os.SEEK_DATA)


@scenario("8.1 write position", "8.1 lseek moves another", "14 write counts")
def anon_position(w: World) -> None:
    """write() goes on where the last write() ended; lseek moves the cache file's position."""
    device = w.bound()
    anon = w.mounted(device)
    anon.write(image.page(0))
    anon.write(image.page(1))
    anon.lseek(5 * PAGE, os.SEEK_SET)
    anon.write(image.page(2))
    anon.lseek(0, os.SEEK_CUR)
    anon.lseek(PAGE, os.SEEK_CUR)
    anon.lseek(0, os.SEEK_HOLE)
    anon.pwrite(image.page(9), 9 * PAGE)
    anon.write(image.page(3))
    anon.lseek(0, os.SEEK_HOLE)


@scenario("8.1 lseek data", "8.1 lseek enxio", "8.1 lseek errors")
def anon_extents(w: World) -> None:
    """DATA and HOLE list what is cached; past the last data is ENXIO."""
    device = w.bound()
    anon = w.mounted(device)
    anon.fill(2, 2)
    anon.fill(8, 1)
    at: int | None = 0
    while at is not None and (at := anon.lseek(at, os.SEEK_DATA)) is not None:
        at = anon.lseek(at, os.SEEK_HOLE)
    anon.lseek(image.SIZE, os.SEEK_DATA)
    anon.lseek(image.SIZE, os.SEEK_HOLE)
    anon.lseek(image.SIZE + 1, os.SEEK_SET)
    anon.lseek(-1, os.SEEK_SET)
    anon.lseek(-1, os.SEEK_DATA)


@scenario("8.1 other ioctl")
def anon_ioctl(w: World) -> None:
    """Any ioctl but CREAD is EINVAL."""
    device = w.bound()
    anon = w.mounted(device)
    for request in (termios.TCGETS, IOC_READ_COMPLETE + 1, IOC_READ_COMPLETE ^ 0x100, 0):
        anon.ioctl(request, bytes(64))


@scenario("8.1 other calls", "8.1 fallocate")
def anon_other_calls(w: World) -> None:
    """What else can be tried on a file is refused."""
    device = w.bound()
    anon = w.mounted(device)
    fd = anon.number
    w.log.call("ftruncate 0", lambda: os.ftruncate(fd, 0))
    w.log.call("ftruncate 1 MiB", lambda: os.ftruncate(fd, 1 << 20))
    w.log.call("fsync", lambda: os.fsync(fd))
    w.log.call("fdatasync", lambda: os.fdatasync(fd))
    w.log.call("fallocate", lambda: os.posix_fallocate(fd, 0, PAGE))
    anon.mmap(1)
    anon.mmap(2)
    anon.lseek(0, os.SEEK_END)
    anon.lseek(0, os.SEEK_HOLE)


@scenario("8.1 copied into")
def anon_copied_into(w: World) -> None:
    """sendfile, splice and copy_file_range into it are EINVAL."""
    device = w.bound()
    anon = w.mounted(device)
    source = w.directory / "source"
    source.write_bytes(bytes(PAGE))
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        os.write(write, bytes(PAGE))
        w.log.call("sendfile", lambda: os.sendfile(anon.number, fd, 0, PAGE))
        w.log.call("splice", lambda: os.splice(read, anon.number, PAGE, offset_dst=PAGE))
        w.log.call("copy_file_range", lambda: os.copy_file_range(fd, anon.number, PAGE, 0, PAGE))
    finally:
        for each in (fd, read, write):
            os.close(each)
    anon.lseek(PAGE, os.SEEK_DATA)


@scenario("8.1 fstat")
def anon_fstat(w: World) -> None:
    """Its mode is 600, its size 0."""
    device = w.bound()
    anon = w.mounted(device)
    anon.fstat()


@scenario("8.1 poll")
def anon_poll(w: World) -> None:
    """It is always ready."""
    device = w.bound()
    w.mounted(device).poll()


@scenario("8.1 access mode")
def anon_flags(w: World) -> None:
    """Open for writing only."""
    device = w.bound()
    anon = w.mounted(device)
    flags = fcntl.fcntl(anon.number, fcntl.F_GETFL)
    w.note(f"access mode {flags & os.O_ACCMODE} (O_WRONLY is {os.O_WRONLY})")


@scenario("8.2 any time")
def anon_prefetch(w: World) -> None:
    """Any range may be written at any time, and again; its reader asks for nothing then."""
    device = w.bound()
    anon = w.mounted(device)
    anon.fill(1, image.DATA_PAGES)
    anon.fill(4, 2)
    w.netfs.read(0, image.DATA_PAGES * PAGE).result()
    device.nothing()


@scenario("8.3 wrong id", "8.3 open id", "8.3 twice")
def cread_of_what_is_no_read(w: World) -> None:
    """EINVAL for an id of nobody, of an OPEN, of a CLOSE, and the second time."""
    device = w.bound()
    first = w.mounted(device)
    w.netfs.mount("b", "other")
    opened, second = device.take_open()
    for number in (opened.msg_id, 99, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
        first.cread(number)
        second.cread(number)
    device.copen(opened)
    read = device.take(Read)
    second.answer(read)
    second.cread(read.msg_id)
    w.netfs.started[-1].result()
    w.netfs.umount("b")
    device.wait()
    second.cread(4)
    device.take(Close)


@scenario("8.3 other object", "14 consistency")
def cread_of_another_object(w: World) -> None:
    """EINVAL through the fd of another object; the READ goes on waiting."""
    device = w.bound()
    first = w.mounted(device)
    second = w.mounted(device, "b", "other")
    reading = w.netfs.read(0, PAGE)
    read = device.take(Read)
    second.fill(1)
    second.cread(read.msg_id)
    reading.waits()
    first.answer(read)
    reading.result()


@scenario("8.3 before delivery")
def cread_before_delivery(w: World) -> None:
    """A READ that nobody has read yet can be completed as well."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    device.wait()
    anon.fill(1)
    anon.cread(2)
    reading.result()
    device.poll()
    device.read()


@scenario("8.3 dup")
def cread_through_a_dup(w: World) -> None:
    """Any fd of the object will do."""
    device = w.bound()
    anon = w.mounted(device)
    other = anon.dup()
    reading = w.netfs.read(0, PAGE)
    read = device.take(Read)
    anon.close()
    other.answer(read)
    reading.result()
    w.netfs.read(PAGE, PAGE)
    other.answer(device.take(Read))
    w.netfs.started[-1].result()


@scenario("8.4 orphaned read", "8.4 new fd completes")
def last_close_with_a_read_delivered(w: World) -> None:
    """A READ that was delivered hangs when the fd is closed, until somebody completes it."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    orphan = device.take(Read)
    anon.close()
    reading.waits()
    device.nothing()
    w.netfs.read(PAGE, PAGE)
    device.wait()
    device.read()
    message, again = device.take_open()
    device.copen(message)
    again.answer(device.take(Read))
    w.netfs.started[-1].result()
    reading.waits()
    again.fill(1)
    again.cread(orphan.msg_id)
    reading.result()


@scenario("8.4 new read stays", "14 CLOSE of that id")
def last_close_with_a_read_unread(w: World) -> None:
    """One that was not delivered stays, and has the object opened again."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    device.wait()
    anon.close()
    device.poll()
    device.read()
    message, again = device.take_open()
    device.copen(message)
    again.answer(device.take(Read))
    reading.result()


@scenario("8.4 ended by death")
def orphaned_read_and_the_device_closed(w: World) -> None:
    """The death of the device ends it too: EIO."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    device.take(Read)
    anon.close()
    device.close()
    reading.result()


@scenario("8.1 io error")
def anon_io_error(w: World) -> None:
    """An error of the disk is told; the cache lives on."""
    device = w.bound()
    anon = w.mounted(device)
    w.netfs.inject(errors=True)
    anon.fill(1)
    w.netfs.inject(errors=False)
    anon.lseek(0, os.SEEK_HOLE)
    anon.fill(1)
    device.write(b"restore")
