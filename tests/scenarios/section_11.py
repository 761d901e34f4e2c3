"""Facts 11: what makes room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.scenarios import image
from tests.scenarios.registry import scenario
from tests.scenarios.section_11_room import (
    LESS,
    PLENTY,
    device_open,
    mount_and_leave,
    settle,
)
from tests.scenarios.transcript import ok
from tests.scenarios.world import World

from pagein.culler.culling import Outcome, cull, until_run
from pagein.culler.evict import Commands
from pagein.culler.holder import bind, make_room
from pagein.protocol.messages import Close
from pagein.protocol.space import Limits

PAGE = image.PAGE
VOLUME = "erofs,blob"


@scenario("11 cull file", "11 inuse", "11 culled is new")
def cull_a_file(w: World) -> None:
    """An idle file is not in use, and goes; the next mount begins anew."""
    device = w.bound()
    mount_and_leave(w, device)
    path = w.disk.path(VOLUME, "blob")
    w.cull(device, path.parent, path.name, "inuse")
    w.cull(device, path.parent, path.name)
    w.disk.show(VOLUME, "blob")
    w.disk.graves()
    w.cull(device, path.parent, path.name)
    w.cull(device, path.parent, path.name, "inuse")
    w.mounted(device)


@scenario("11 cull in use", "11 cull directory", "11 inuse")
def cull_directories(w: World) -> None:
    """What is in use is EBUSY, each directory up to the top; an idle one goes to the graveyard."""
    device = w.bound()
    mount_and_leave(w, device)
    message, anon = w.opening(device)
    device.copen(message, image.SIZE)
    w.netfs.started[-1].result()
    path, volume = w.disk.path(VOLUME, "blob"), w.disk.volume(VOLUME)
    victims = [path, path.parent, volume, w.cache / "cache", w.cache / "graveyard"]
    for each in victims:
        w.cull(device, each.parent, each.name, "inuse")
        w.cull(device, each.parent, each.name)
    w.netfs.umount()
    device.take(Close)
    anon.close()
    w.disk.graves()
    settle(w, device, volume)
    w.cull(device, volume.parent, volume.name)
    w.disk.names("cache")
    w.disk.graves()
    graves = list((w.cache / "graveyard").iterdir())
    w.note(f"its name there has {', '.join(str(len(each.name)) for each in graves)} digits")
    w.note(f"the file is in it: {[each.name for each in graves[0].glob('@*/*')]}")


@scenario("11 cull names")
def cull_no_names(w: World) -> None:
    """What cannot be the name of anything that can be culled."""
    device = w.bound()
    mount_and_leave(w, device)
    place = w.disk.path(VOLUME, "blob").parent
    for verb in ("inuse", "cull"):
        for name in ("", ".", "..", "absent", "a/b", "/", "x" * 255, "x" * 256):
            w.cull(device, place, name, verb)


@scenario("11 cull other kinds")
def cull_what_is_no_file(w: World) -> None:
    """Links and fifos go like files."""
    device = w.bound()
    mount_and_leave(w, device)
    place = w.disk.path(VOLUME, "blob").parent
    (place / "link").symlink_to("/does/not/exist")
    os.mkfifo(place / "fifo")
    (place / "directory").mkdir()
    for name in ("link", "fifo", "directory"):
        w.cull(device, place, name, "inuse")
        w.cull(device, place, name)
    w.note(f"left: {sorted(each.name for each in place.iterdir())}")
    w.disk.graves()


@scenario("11 no containment")
def cull_elsewhere(w: World) -> None:
    """The working directory may be anywhere."""
    device = w.bound()
    elsewhere = w.directory / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("not of the cache")
    w.cull(device, elsewhere, "file", "inuse")
    w.cull(device, elsewhere, "file")
    w.note(f"left elsewhere: {[each.name for each in elsewhere.iterdir()]}")


@scenario("11 removed directory")
def cull_in_a_removed_directory(w: World) -> None:
    """A working directory that is gone has nothing in it."""
    device = w.bound()
    mount_and_leave(w, device)
    place = w.disk.path(VOLUME, "blob").parent / "directory"
    place.mkdir()
    with standing_in(place):
        place.rmdir()
        w.note("in a directory that was removed:")
        device.write(b"inuse file")
        device.write(b"cull file")


@contextmanager
def standing_in(place: Path) -> Iterator[None]:
    """Have a working directory."""
    before = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


@scenario("2.1 cull and inuse")
def cull_before_bind(w: World) -> None:
    """`cull` and `inuse` want a bound cache, after a look at the name."""
    device = w.open()
    for command in (b"cull x", b"inuse x", b"cull a/b", b"inuse a/b", b"cull", b"inuse"):
        device.write(command)
    device.write(b"dir " + os.fsencode(w.cache))
    device.write(b"bind ondemand")
    device.write(b"cull")
    device.write(b"inuse")


@scenario("11 first fill")
def cull_what_is_filled_first(w: World) -> None:
    """What is filled for the first time has no name that could be culled."""
    device = w.bound()
    w.mounted(device)
    path = w.disk.path(VOLUME, "blob")
    w.cull(device, path.parent, path.name, "inuse")
    w.cull(device, path.parent, path.name)


@scenario("11 opened by others")
def cull_what_another_has_open(w: World) -> None:
    """That somebody has the file open is no use of the cache."""
    device = w.bound()
    mount_and_leave(w, device)
    path = w.disk.path(VOLUME, "blob")
    with path.open("rb"):
        w.cull(device, path.parent, path.name, "inuse")
        w.cull(device, path.parent, path.name)
    w.disk.show(VOLUME, "blob")


@scenario("11 fan-out of a failure")
def fan_out_of_a_failed_open(w: World) -> None:
    """A volume's directories are made before its OPEN, also if that is refused."""
    device = w.bound()
    message, _ = w.opening(device)
    device.copen(message, -2)
    w.netfs.started[-1].fails()
    w.disk.names("cache")
    w.disk.names("cache/Ierofs,blob")


@scenario("11 cull during a lookup")
def cull_during_a_lookup(w: World) -> None:
    """From the OPEN on a file is in use, before it is answered."""
    device = w.bound()
    mount_and_leave(w, device)
    message, anon = w.opening(device)
    path = w.disk.path(VOLUME, "blob")
    w.cull(device, path.parent, path.name, "inuse")
    w.cull(device, path.parent, path.name)
    device.copen(message, image.SIZE)
    w.netfs.started[-1].result()
    anon.lseek(0, os.SEEK_DATA)


@scenario("11 graveyard")
def cull_from_the_graveyard(w: World) -> None:
    """What lies in the graveyard is the daemon's to remove."""
    device = w.bound()
    grave = w.cache / "graveyard" / "0000000000000001"
    grave.mkdir()
    (grave / "file").write_text("x")
    w.cull(device, grave, "file")
    w.log.call("rmdir of the grave", grave.rmdir, ok)


def _plant(w: World, *keys: str, pages: int) -> None:
    """Files in the cache, the first of which was not used for longest."""
    for day, key in enumerate(keys, 1):
        data = {number: image.page(number) for number in range(pages)}
        path = w.disk.plant("erofs,names", key, pages * PAGE, data, quiet=True)
        os.utime(path, (day * 86400, day * 86400))
    w.note(f"planted, {pages} pages each: {', '.join(keys)}")


def _left(w: World, outcome: Outcome) -> None:
    w.note(f"culled: {', '.join(file.name for file in outcome.culled)}")
    w.note(f"in use: {', '.join(file.name for file in outcome.in_use) or 'none'}")
    found = w.disk.volume("erofs,names").glob("@*/*")
    w.note(f"left: {', '.join(sorted(path.name for path in found))}")


@scenario("11 daemon", "11 cull in use", "11 run ends it")
def a_daemon_makes_room(w: World) -> None:
    """`pagein cull` by the device's commands: the oldest first, but for what is mounted."""
    room = w.room()
    _plant(w, "oldest", "older", "old", "new", "newest", pages=400)
    room.leave(PLENTY)
    device = w.bound()
    message, anon = device_open(w, device, "oldest", "names")
    device.copen(message, 400 * PAGE)
    w.netfs.started[-1].result()
    room.leave(LESS)
    anon.fill(1)
    device.poll()
    os.utime(w.disk.path("erofs,names", "oldest"), (0, 0))  # lookup and write were uses
    place = os.fsencode(w.cache)
    _left(w, cull(place, Commands(device.number, place), until_run(place, Limits())))
    anon.fill(1)
    device.poll()


@scenario("11 daemon", "11 graveyard")
def a_daemon_of_the_original_mode_makes_room(w: World) -> None:
    """As cachefilesd does: by the state that the device tells."""
    room = w.room()
    _plant(w, "oldest", "older", "old", "new", "newest", pages=400)
    grave = w.cache / "graveyard" / "0123456789abcdef"
    grave.mkdir(parents=True)
    (grave / "file").write_bytes(bytes(64 * PAGE))
    room.leave(LESS)
    device = w.open()
    place = os.fsencode(w.cache)
    bind(device.number, place, 7)
    device.poll()
    w.state(device)
    _left(w, make_room(device.number, place))
    w.disk.graves()
    w.state(device)
    device.poll()
