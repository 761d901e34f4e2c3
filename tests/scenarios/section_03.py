"""Facts 3: read()."""

from __future__ import annotations

from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.protocol.messages import Read


@scenario("3 not bound")
def read_before_bind(w: World) -> None:
    """Before a cache is bound there is nothing to read, also after a bind that failed."""
    device = w.open()
    device.read()
    device.read(1)
    device.write(b"dir /does/not/exist")
    device.write(b"bind ondemand")
    device.read()
    device.poll()


@scenario("3 nothing", "3 no state line", "3 zero is not the end")
def read_of_nothing(w: World) -> None:
    """Nothing to deliver is 0 bytes, at once; more may come."""
    device = w.bound()
    device.read()
    device.read(1)
    device.read(0)
    w.mounted(device)
    device.read()
    reading = w.netfs.read(0, 4096)
    message = device.take(Read)
    device.read()
    device.anonymous[message.object_id].answer(message)
    reading.result()
    device.read()


@scenario("3 one at a time")
def one_message_a_read(w: World) -> None:
    """A read returns one request, however many there are and however big the buffer."""
    device = w.bound()
    anon = w.mounted(device)
    first = w.netfs.read(0, 4096)
    device.wait()
    second = w.netfs.read(8192, 4096)
    second.waits()
    for message in (device.read(65536), device.read(65536), device.read(65536)):
        if isinstance(message, Read):
            anon.answer(message)
    first.result()
    second.result()


@scenario("3 offsets do not matter")
def reads_have_no_position(w: World) -> None:
    """The offset of a pread changes nothing."""
    device = w.bound()
    w.netfs.mount()
    device.wait()
    device.read(at=4096)
