"""Facts 3: read()."""

from __future__ import annotations

import os
import re
from functools import partial

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


@scenario("3.1 line", "3.1 marks", "2.1 limits after bind")
def state_line(w: World) -> None:
    """In the original mode there is always a line to read; its marks are those of bind."""
    device = w.open()
    device.write(b"brun 20%")
    device.write(b"fcull 6%")
    device.write(b"dir " + os.fsencode(w.cache))
    w.state(device)
    device.write(b"bind")
    raw = os.read(device.number, 1024)
    w.note(f"words: {' '.join(re.sub('=.*', '', word) for word in raw.decode().split(' '))}")
    w.note(f"read again: {'same' if os.read(device.number, 1024) == raw else 'another'}")
    w.state(device)
    device.write(b"brun 30%")
    w.state(device)
    w.state(device, 1)
    for size, what in ((len(raw), "just large enough"), (len(raw) - 1, "a byte too small")):
        w.log.call(
            f"read into a buffer {what}", partial(os.read, device.number, size), lambda _: "a line"
        )


@scenario("3.1 released", "3.1 counters lost", "5 original mode", "2.1 original mode no requests")
def released_in_the_original_mode(w: World) -> None:
    """Objects given back are counted and told; EROFS has nobody to fetch for it."""
    device = w.bound(mode=b"bind")
    device.poll()
    w.netfs.mount().result()
    device.wait()
    w.state(device)
    device.poll()
    w.netfs.mount().result()
    device.wait()
    w.state(device, 20)
    device.poll()
    w.state(device)
    w.disk.show_volume("erofs,blob")
