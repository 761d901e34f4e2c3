"""Facts 11: how much room is left; and the state that tells of it, 3.1."""

from __future__ import annotations

import os
from pathlib import Path

from tests.scenarios import image
from tests.scenarios.files import Anon, Device
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.protocol.messages import Close, Open, Read

PAGE = image.PAGE
PLENTY, LITTLE, LESS, NOTHING = 20, 6, 4, 0.5
"""Per cent: above run, between cull and run, below cull, below stop."""


def mount_and_leave(
    w: World, device: Device, fsid: str = "blob", domain: str | None = None
) -> None:
    """Have a blob in the cache that nobody uses."""
    anon = w.mounted(device, "idle", fsid, domain)
    w.netfs.umount("idle")
    device.take(Close)
    anon.close()
    w.disk.wait_for(f"erofs,{domain or fsid}", fsid)
    settle(w, device, w.disk.path(f"erofs,{domain or fsid}", fsid))


def settle(w: World, device: Device, path: Path) -> None:
    """Wait until a name is not in use any more: a volume lives a little longer than its objects."""
    w.disk.until(lambda: _idle(device, path), f"{path} idle")


def _idle(device: Device, path: Path) -> bool:
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        os.write(device.number, b"inuse " + os.fsencode(path.name))
    except OSError:
        return False
    finally:
        os.chdir(before)
    return True


@scenario(
    "11 stop refuses",
    "11 not by a clock",
    "11 POLLOUT",
    "11 run ends it",
    "11 cull mark",
    "5 culling wakes",
)
def blocks_get_short(w: World) -> None:
    """Free blocks go down past the marks, and up again; writes notice."""
    room = w.room()
    room.leave(PLENTY)
    device = w.bound()
    anon = w.mounted(device)
    device.poll()
    room.leave(LITTLE)
    anon.fill(1)
    device.poll()
    room.leave(LESS)
    device.poll()
    anon.fill(2)
    device.wait()
    room.leave(LITTLE)
    anon.fill(3)
    device.poll()
    room.leave(NOTHING)
    anon.fill(4)
    device.poll()
    room.leave(PLENTY)
    device.poll()
    anon.fill(4)
    device.poll()


@scenario("11 files count too", "11 refused without OPEN")
def files_get_short(w: World) -> None:
    """Free files go down past the marks: what has to be made is refused, writes as well."""
    room = w.room()
    room.leave_files(70)
    device = w.bound()
    mount_and_leave(w, device, "other", "names")
    anon = w.mounted(device, "a", "blob", "names")
    device.poll()
    room.leave_files(LESS)
    anon.fill(1)
    device.poll()
    room.leave_files(NOTHING)
    anon.fill(2)
    w.netfs.mount("b", "third", "names").result()
    device.nothing()
    device.poll()
    w.note("what is there is used:")
    opened, another = device_open(w, device, "other", "names")
    device.copen(opened, image.SIZE)
    w.netfs.started[-1].result()
    room.leave_files(PLENTY)
    another.fill(2)
    device.poll()


def device_open(w: World, device: Device, fsid: str, domain: str) -> tuple[Open, Anon]:
    """Start a mount and take its OPEN."""
    w.netfs.mount(fsid, fsid, domain)
    return device.take_open()


@scenario("11 written again")
def nothing_is_written_without_room(w: World) -> None:
    """Not even what has its blocks already."""
    room = w.room()
    room.leave(PLENTY)
    device = w.bound()
    anon = w.mounted(device)
    anon.fill(1, 2)
    room.leave(NOTHING)
    anon.fill(1, 2)
    anon.fill(5)
    device.poll()


@scenario("11 refused without OPEN", "11 reader fails")
def a_volume_without_room(w: World) -> None:
    """A new volume needs room for its directories; without it no OPEN is sent."""
    room = w.room()
    room.leave(PLENTY)
    device = w.bound()
    anon = w.mounted(device)
    reading = w.netfs.read(0, PAGE)
    message = device.take(Read)
    room.leave(NOTHING)
    anon.answer(message)
    again = device.take(Read)
    anon.answer(again)
    reading.result()
    w.netfs.mount("b", "other").result()
    device.nothing()


@scenario("11 bind without room", "11 bind looks")
def bind_without_room(w: World) -> None:
    """The first bind has directories to make; later ones look as well."""
    room = w.room()
    room.leave(NOTHING)
    device = w.open()
    device.write(b"dir " + os.fsencode(w.cache))
    device.write(b"bind ondemand")
    room.leave(PLENTY)
    device.write(b"bind ondemand")
    device.poll()
    device.close()
    room.leave(LESS)
    device = w.bound(name="second")
    device.poll()
    device.close()
    room.leave(NOTHING)
    device = w.bound(name="third")
    device.poll()


@scenario("3.1 cull", "5 original mode", "3.1 look", "11 not by a clock", "1 defaults")
def state_of_a_full_cache(w: World) -> None:
    """In the original mode a read() looks how much is free, and says whether to cull."""
    room = w.room()
    room.leave(PLENTY)
    device = w.bound(mode=b"bind")
    device.poll()
    w.state(device)
    room.leave(LESS)
    device.poll()
    w.state(device)
    device.poll()
    w.state(device)
    room.leave(LITTLE)
    w.state(device)
    room.leave(PLENTY)
    w.state(device)
    device.poll()
    device.close()
    room.leave(LESS)
    device = w.bound(name="second", mode=b"bind")
    device.poll()
    w.state(device)
    device.poll()
