"""Facts 4: requests."""

from __future__ import annotations

import os
import resource

from tests.scenarios import libc
from tests.scenarios.files import Device
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.protocol.messages import Close, Open, Read


def show_bytes(w: World, device: Device) -> None:
    """Write the last message as it came; an OPEN's fd as zeros, which is any free number."""
    raw = bytearray(device.last)
    if raw[4:8] == bytes(4):
        raw[24:28] = bytes(4)
    w.note(f"its bytes: {raw.hex(' ', 4)}")


@scenario("4 header", "4 OPEN", "4 READ", "4 CLOSE", "4 volume key", "14 volume key")
def messages(w: World) -> None:
    """The three messages, byte by byte."""
    device = w.bound()
    mounting = w.netfs.mount()
    message, anon = device.take_open()
    show_bytes(w, device)
    device.copen(message)
    read = device.take(Read)
    show_bytes(w, device)
    anon.answer(read)
    mounting.result()
    w.netfs.umount()
    device.take(Close)
    show_bytes(w, device)


@scenario("4 domain", "4 devices", "4 cookie key")
def keys_in_a_domain(w: World) -> None:
    """In a domain the volume is the domain's; a blob is the fsid or the device."""
    device = w.bound()
    mounting = w.netfs.mount("a", "first", "dom", "dev.blob")
    message, anon = device.take_open()
    device.copen(message)
    anon.answer(device.take(Read), devices=1)
    message, blob = device.take_open()
    device.copen(message, 32768)
    mounting.result()
    reading = w.netfs.read(4096, 8192, file="more")
    blob.answer(device.take(Read), device=1)
    reading.result()


@scenario("4 cookie key")
def keys_of_other_bytes(w: World) -> None:
    """A key is passed on as it is."""
    device = w.bound()
    for fsid in ("a b", "\1\2", "x" * 200):
        mounting = w.netfs.mount("a", fsid)
        message, anon = device.take_open()
        device.copen(message, -2)
        anon.close()
        mounting.settle()


@scenario("4.1 first id", "4.1 not reused", "4.2 first id", "14 cyclic ids")
def ids_count_up(w: World) -> None:
    """Ids of requests begin with 0 at every open of the device and are not used again at once."""
    device = w.bound()
    anon = w.mounted(device)
    for page in (0, 1, 2):
        reading = w.netfs.read(page * 4096, 4096)
        anon.answer(device.take(Read))
        reading.result()
    w.netfs.umount()
    device.take(Close)
    anon.close()
    w.disk.wait_for("erofs,blob", "blob")
    device.close()
    device = w.bound(name="second")
    mounting = w.netfs.mount()
    message, _ = device.take_open()
    device.copen(message)
    mounting.result()


@scenario("4.2 at delivery", "4.2 new at each OPEN")
def object_ids(w: World) -> None:
    """An object gets its id when its OPEN is delivered, and another one at the next OPEN."""
    device = w.bound()
    first = w.netfs.mount("a", "one")
    device.wait()
    second = w.netfs.mount("b", "two")
    second.waits()
    messages = [device.take_open(), device.take_open()]
    device.copen(messages[1][0], -5)
    messages[1][1].close()
    second.settle()
    w.serve_opened(device, *messages[0])
    first.result()
    w.netfs.umount("a")
    device.take(Close)
    messages[0][1].close()
    w.opening(device, "a", "one")


@scenario("4.3 round robin", "4.3 wraps", "14 round robin")
def round_robin(w: World) -> None:
    """Requests are handed out from the one after the last, and then from the first again."""
    device = w.bound()
    anon = w.mounted(device)
    readings = [w.netfs.read(0, 4096)]
    device.take(Read)
    device.write(b"restore")
    readings.append(w.netfs.read(8192, 4096))
    readings[1].waits()
    readings.append(w.netfs.read(16384, 4096))
    readings[2].waits()
    for message in device.read_nothing_left():
        assert isinstance(message, Read)
        anon.answer(message)
    for reading in readings:
        reading.result()


@scenario("4.3 kick", "4.3 reopening", "5 closed object", "5 reopening object", "14 POLLIN")
def read_of_a_closed_object(w: World) -> None:
    """A READ of an object without fd has it opened again; until then it is not delivered."""
    device = w.bound()
    anon = w.mounted(device)
    anon.close()
    device.poll()
    reading = w.netfs.read(0, 4096)
    device.wait()
    device.read()
    message, anon = device.take_open()
    device.poll()
    device.read()
    device.copen(message)
    device.wait()
    anon.answer(device.take(Read))
    reading.result()


@scenario("4.4 too small", "4.4 blocks the queue")
def buffer_too_small(w: World) -> None:
    """A request that does not fit stays, and stays the next."""
    device = w.bound()
    anon = w.mounted(device)
    first = w.netfs.read(0, 4096)
    device.wait()
    second = w.netfs.mount("b", "other")
    second.waits()
    device.read(16)
    device.read(31)
    device.poll()
    message = device.read(32)
    assert isinstance(message, Read)
    anon.answer(message)
    first.result()
    device.wait()
    device.read(48)
    device.read(49)


@scenario("4.4 bad pointer")
def read_into_nowhere(w: World) -> None:
    """A request that cannot be copied out is lost."""
    device = w.bound()
    mounting = w.netfs.mount()
    device.wait()
    what = "device: read to a bad address"
    w.log.call(what, lambda: libc.read_to_nowhere(device.fileno(), 1024))
    device.poll()
    if device.read() is None:
        mounting.fails()


@scenario("4.4 no fd free")
def no_fd_free(w: World) -> None:
    """Who has no fd left cannot take an OPEN, and its mount fails."""
    device = w.bound()
    mounting = w.netfs.mount()
    device.wait()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(device.fileno())
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        message = device.read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    if isinstance(message, Open):
        device.copen(message, -24)
    mounting.fails()
    device.poll()
