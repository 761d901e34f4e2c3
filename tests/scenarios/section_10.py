"""Facts 10: `restore`, by which a daemon takes over from another."""

from __future__ import annotations

from tests.scenarios import image
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.protocol.messages import Close, Read

PAGE = image.PAGE


@scenario("10 nothing pending", "10 arguments")
def restore_of_nothing(w: World) -> None:
    """Without anything pending it does nothing, whatever is said after it."""
    device = w.bound()
    device.write(b"restore")
    device.write(b"restore junk")
    device.write(b"restore 1,2,3")
    device.nothing()
    w.mounted(device)
    device.write(b"restore")
    device.nothing()


@scenario("10 not ondemand")
def restore_before_bind(w: World) -> None:
    """Without on-demand mode: EOPNOTSUPP."""
    device = w.open()
    device.write(b"restore")
    device.write(b"copen 0,0")


@scenario("10 open again", "10 new object id")
def restore_of_an_open(w: World) -> None:
    """An OPEN that was delivered comes again: the same id, another object."""
    device = w.bound()
    _, anon = w.opening(device)
    anon.close()
    device.nothing()
    device.write(b"restore")
    message, again = device.take_open()
    device.copen(message)
    again.answer(device.take(Read))
    w.netfs.started[-1].result()


@scenario("10 read again", "10 kick", "14 states")
def restore_of_a_read(w: World) -> None:
    """A READ that was delivered: its object is opened first, then it comes with its old id."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    device.take(Read)
    anon.close()
    device.nothing()
    device.write(b"restore")
    device.wait()
    device.read()
    message, again = device.take_open()
    device.copen(message)
    again.answer(device.take(Read))
    reading.result()


@scenario("10 too early")
def restore_with_fds_open(w: World) -> None:
    """With the old fd still open a READ comes twice; the first CREAD counts."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    first = device.take(Read)
    device.write(b"restore")
    second = device.take(Read)
    anon.answer(second)
    anon.cread(first.msg_id)
    reading.result()


@scenario("10 eexist", "14 one fd")
def restore_with_an_open_unanswered(w: World) -> None:
    """With the fd of an unanswered OPEN still open, that OPEN fails: EEXIST."""
    device = w.bound()
    _, anon = w.opening(device)
    device.write(b"restore")
    device.wait()
    device.read()
    w.netfs.started[-1].fails()
    anon.close()
    device.nothing()


@scenario("10 several times")
def restore_again_and_again(w: World) -> None:
    """Each time everything comes again."""
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    device.take(Read)
    for _ in range(2):
        anon.close()
        device.write(b"restore")
        message, anon = device.take_open()
    anon.close()
    device.write(b"restore")
    message, anon = device.take_open()
    device.copen(message)
    for _ in range(3):
        device.take(Read)
        anon.close()
        device.write(b"restore")
        message, anon = device.take_open()
        device.copen(message)
    anon.answer(device.take(Read))
    reading.result()


@scenario("10 lazily")
def idle_objects_are_opened_lazily(w: World) -> None:
    """Objects without anything pending are opened again by their next READ only."""
    device = w.bound()
    w.mounted(device).close()
    w.mounted(device, "b", "other").close()
    device.write(b"restore")
    device.nothing()
    reading = w.netfs.read(0, PAGE, name="b")
    device.wait()
    device.read()
    message, again = device.take_open()
    device.copen(message)
    again.answer(device.take(Read))
    reading.result()
    device.nothing()


@scenario("10 another size")
def reopened_with_another_size(w: World) -> None:
    """Another size at a re-OPEN does not touch the file."""
    device = w.bound()
    anon = w.mounted(device)
    anon.fill(1, 2)
    anon.close()
    reading = w.netfs.read(4 * PAGE, PAGE)
    device.wait()
    device.read()
    message, again = device.take_open()
    device.copen(message, image.SIZE - PAGE)
    again.answer(device.take(Read))
    reading.result()
    again.lseek(0, 2)
    again.lseek(0, 4)
    w.netfs.read(0, 2 * PAGE).result()


@scenario("10 close again")
def restore_with_a_close_pending(w: World) -> None:
    """A CLOSE that was not read is there after it as before."""
    device = w.bound()
    anon = w.mounted(device)
    w.netfs.umount()
    device.wait()
    device.write(b"restore")
    device.take(Close)
    anon.close()
    device.nothing()
