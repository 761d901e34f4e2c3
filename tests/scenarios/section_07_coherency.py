"""Facts 7.3: a cache file that is there already, and whether it is believed."""

from __future__ import annotations

import os

from tests.scenarios import image
from tests.scenarios.files import Device
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.cachefiles import xattr
from pagein.protocol.messages import Close, Read

PAGE = image.PAGE
VOLUME, KEY = "erofs,blob", "blob"


def _planted(w: World, value: bytes | None, pages: int = 4, size: int = image.SIZE) -> None:
    """A cached file with this attribute."""
    data = {number: image.page(number) for number in range(pages)}
    path = w.disk.plant(VOLUME, KEY, size, data)
    if value is None:
        os.removexattr(path, xattr.NAME)
    else:
        os.setxattr(path, xattr.NAME, value)
    w.note(f"with attribute {w.disk.attribute(path)}")


def _hit_or_stale(w: World, device: Device, *, hit: bool) -> None:
    mounting = w.netfs.mount()
    message, anon = device.take_open()
    device.copen(message)
    if not hit:
        anon.answer(device.take(Read))
    mounting.result()
    reading = w.netfs.read(0, PAGE)
    if not hit:
        anon.answer(device.take(Read))
    reading.result()
    device.nothing()
    w.netfs.umount()
    device.take(Close)
    anon.close()
    device.close()
    w.open().close()
    w.disk.show(VOLUME, KEY)


def _attribute(size: int = image.SIZE, zero: int = 0, kind: int = 1, content: int = 0) -> bytes:
    return xattr.ObjectXattr(size, zero, kind, content).encode()


@scenario("7.3 hit", "7.3 preseeded")
def planted_file(w: World) -> None:
    """A file with the right attribute is used: OPEN, and not one READ."""
    _planted(w, _attribute())
    _hit_or_stale(w, w.bound(), hit=True)


@scenario("7.3 content ignored")
def planted_with_other_content(w: World) -> None:
    """Content and zero point are not looked at, but for DIRTY."""
    _planted(w, _attribute(zero=12345, content=1))
    _hit_or_stale(w, w.bound(), hit=True)


@scenario("7.3 dirty")
def planted_dirty(w: World) -> None:
    """Content 4, DIRTY: stale, and replaced under the same OPEN."""
    _planted(w, _attribute(content=4))
    _hit_or_stale(w, w.bound(), hit=False)


@scenario("7.3 type")
def planted_with_another_type(w: World) -> None:
    """Another type: stale."""
    _planted(w, _attribute(kind=2))
    _hit_or_stale(w, w.bound(), hit=False)


@scenario("7.3 size differs")
def planted_with_another_size(w: World) -> None:
    """Another size: stale."""
    _planted(w, _attribute(size=image.SIZE - 1))
    _hit_or_stale(w, w.bound(), hit=False)


@scenario("7.3 short xattr")
def planted_with_a_short_attribute(w: World) -> None:
    """An attribute that is too short: stale."""
    _planted(w, _attribute()[:17])
    _hit_or_stale(w, w.bound(), hit=False)


def _always_refused(w: World) -> None:
    device = w.bound()
    for _ in range(2):
        mounting = w.netfs.mount()
        message, anon = device.take_open()
        device.copen(message)
        device.take(Close)
        anon.close()
        mounting.result()


@scenario("7.3 no xattr", "14 xattr")
def planted_without_attribute(w: World) -> None:
    """No attribute: the mount fails each time, after OPEN, copen and CLOSE."""
    _planted(w, None)
    _always_refused(w)


@scenario("7.3 long xattr")
def planted_with_a_long_attribute(w: World) -> None:
    """An attribute that is too long: likewise."""
    _planted(w, _attribute() + b"x")
    _always_refused(w)


@scenario("7.3 file length")
def planted_too_short(w: World) -> None:
    """A file that is too short is made longer; what it has is kept."""
    _planted(w, _attribute(), pages=2, size=2 * PAGE)
    _hit_or_stale(w, w.bound(), hit=True)


@scenario("7.3 file length")
def planted_too_long(w: World) -> None:
    """One that is too long is cut."""
    _planted(w, _attribute(), pages=20, size=20 * PAGE)
    _hit_or_stale(w, w.bound(), hit=True)


def _instead_of_the_file(w: World, make: str) -> None:
    _planted(w, _attribute())
    path = w.disk.path(VOLUME, KEY)
    path.unlink()
    if make == "directory":
        path.mkdir()
    elif make == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/etc/passwd")
    w.note(f"there is a {make} instead")
    _hit_or_stale(w, w.bound(), hit=False)
    w.disk.graves()


@scenario("7.3 not regular")
def planted_directory(w: World) -> None:
    """A directory in place of the file goes to the graveyard."""
    _instead_of_the_file(w, "directory")


@scenario("7.3 not regular")
def planted_fifo(w: World) -> None:
    """A fifo is removed."""
    _instead_of_the_file(w, "fifo")


@scenario("7.3 not regular")
def planted_link(w: World) -> None:
    """A symbolic link too; it is not followed."""
    _instead_of_the_file(w, "symbolic link")


@scenario("7.3 volume differs")
def planted_volume_of_another_time(w: World) -> None:
    """A volume whose attribute differs is buried with all that is in it."""
    _planted(w, _attribute())
    os.setxattr(w.disk.volume(VOLUME), xattr.NAME, b"\0\0\0\1")
    _hit_or_stale(w, w.bound(), hit=False)
    w.disk.show_volume(VOLUME)
    w.disk.graves()


@scenario("7.3 volume unusable")
def planted_volume_without_attribute(w: World) -> None:
    """A volume without attribute cannot be used: no OPEN is sent."""
    _planted(w, _attribute())
    os.removexattr(w.disk.volume(VOLUME), xattr.NAME)
    device = w.bound()
    w.netfs.mount().result()
    device.nothing()


@scenario("7.3 volume unusable")
def planted_volume_that_is_a_file(w: World) -> None:
    """A file in its place neither."""
    (w.cache / "cache").mkdir(mode=0o700)
    w.disk.volume(VOLUME).write_bytes(b"")
    device = w.bound()
    w.netfs.mount().result()
    device.nothing()


@scenario("7.3 volume longer")
def planted_volume_with_more_in_its_attribute(w: World) -> None:
    """A volume whose attribute is too long cannot be used, one that is too short is buried."""
    _planted(w, _attribute())
    os.setxattr(w.disk.volume(VOLUME), xattr.NAME, bytes(5))
    device = w.bound()
    w.netfs.mount().result()
    device.nothing()
    os.setxattr(w.disk.volume(VOLUME), xattr.NAME, bytes(3))
    w.mounted(device, "b")
    w.disk.graves()
