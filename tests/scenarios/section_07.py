"""Facts 7: the life of an object."""

from __future__ import annotations

import errno
import os

from tests.scenarios import image
from tests.scenarios.files import Anon, Device
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.cachefiles import xattr
from pagein.protocol.messages import Close, Open, Read

PAGE = image.PAGE
VOLUME, KEY = "erofs,blob", "blob"


def _reopened(device: Device) -> tuple[Open, Anon]:
    """The OPEN that a READ of a closed object brings about; the read that meets it returns 0."""
    device.wait()
    device.read()
    return device.take_open()


# ---- 7.1 states


@scenario("7.1 reopen", "7.1 read after reopen")
def reopen(w: World) -> None:
    """With its fd closed an object is opened again by the next READ, under another id."""
    device = w.bound()
    anon = w.mounted(device)
    anon.close()
    device.nothing()
    reading = w.netfs.read(0, PAGE)
    opened, again = _reopened(device)
    device.poll()
    device.copen(opened)
    again.answer(device.take(Read))
    reading.result()


@scenario("7.1 refused reopen", "7.1 reopen after close")
def reopen_refused(w: World) -> None:
    """A refused re-OPEN leaves its reader waiting until that fd is closed; then comes another."""
    device = w.bound()
    w.mounted(device).close()
    reading = w.netfs.read(0, PAGE)
    opened, again = _reopened(device)
    device.copen(opened, -errno.EIO)
    device.nothing()
    reading.waits()
    again.close()
    device.poll()
    opened, again = _reopened(device)
    device.copen(opened)
    again.answer(device.take(Read))
    reading.result()


@scenario("7.1 reopen fd closed")
def reopen_closed_before_copen(w: World) -> None:
    """The fd of a re-OPEN closed before its copen: back to closed, and opened once more."""
    device = w.bound()
    w.mounted(device).close()
    reading = w.netfs.read(0, PAGE)
    opened, again = _reopened(device)
    again.close()
    device.copen(opened)
    reading.waits()
    opened, again = _reopened(device)
    device.copen(opened)
    again.answer(device.take(Read))
    reading.result()


@scenario("7.1 present needs no open")
def closed_object_with_data(w: World) -> None:
    """What is present is read without the daemon, whatever became of its fd."""
    device = w.bound()
    anon = w.mounted(device)
    anon.fill(1, 2)
    anon.close()
    w.netfs.read(0, 2 * PAGE).result()
    device.nothing()


# ---- 7.2 creation


@scenario("7.2 unkillable mount")
def killed_mount(w: World) -> None:
    """A mount that waits for its OPEN is not killed before the answer."""
    device = w.bound()
    message, anon = w.opening(device)
    mounting = w.netfs.started[-1]
    mounting.signal("KILL")
    mounting.waits()
    device.copen(message, -errno.EIO)
    mounting.result()
    anon.close()


@scenario("7.2 several opens")
def several_opens(w: World) -> None:
    """OPENs of several mounts wait at once, and are answered in any order."""
    device = w.bound()
    mounting, opened = [], []
    for name in ("a", "b", "c"):
        mounting.append(w.netfs.mount(name, f"blob-{name}"))
        opened.append(device.take_open())
    for (message, anon), waiting in reversed([*zip(opened, mounting, strict=True)]):
        device.copen(message)
        anon.answer(device.take(Read))
        waiting.result()


@scenario("7.2 new file invisible", "7.4 commit at close")
def new_file_appears_at_the_end(w: World) -> None:
    """A file that is filled for the first time has no name until its CLOSE is read."""
    device = w.bound()
    anon = w.mounted(device)
    anon.fill(1, 3)
    w.disk.show(VOLUME, KEY)
    w.netfs.umount()
    w.disk.show(VOLUME, KEY)
    device.take(Close)
    anon.close()
    w.disk.wait_for(VOLUME, KEY)
    w.disk.show(VOLUME, KEY)


# ---- 7.3 coherency of a file that is there


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


@scenario("7.3 no xattr")
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


# ---- 7.4 CLOSE


@scenario("7.4 umount returns", "7.4 remount waits")
def umount_does_not_wait(w: World) -> None:
    """umount(2) is over before CLOSE is read; who mounts the same key again waits for that."""
    device = w.bound()
    anon = w.mounted(device)
    w.netfs.umount()
    device.wait()
    mounting = w.netfs.mount("b")
    mounting.waits()
    device.take(Close)
    anon.close()
    message, anon = device.take_open()
    device.copen(message)
    mounting.result()


@scenario("7.4 writes after close")
def surviving_fd(w: World) -> None:
    """After the withdrawal writes and seeks of a fd that is left are ENOBUFS."""
    device = w.bound()
    anon = w.mounted(device)
    left = anon.dup()
    w.netfs.umount()
    device.take(Close)
    anon.close()
    w.disk.wait_for(VOLUME, KEY)
    device.nothing()
    left.pwrite(bytes(PAGE), PAGE)
    left.lseek(0, os.SEEK_END)
    left.lseek(0, os.SEEK_DATA)
    left.cread(1)
    left.close()


@scenario("7.4 closed no close")
def closed_object_gets_no_close(w: World) -> None:
    """An object whose fd is closed already is withdrawn without a CLOSE."""
    device = w.bound()
    w.mounted(device).close()
    w.netfs.umount()
    device.nothing()
    w.disk.wait_for(VOLUME, KEY)


@scenario("8.4 unread close stays", "7.4 commit at close")
def close_after_the_last_fd(w: World) -> None:
    """The fd closed before its CLOSE is read: the CLOSE still comes, with an id of nobody."""
    device = w.bound()
    anon = w.mounted(device)
    w.netfs.umount()
    device.wait()
    anon.close()
    device.nothing()
    w.disk.show(VOLUME, KEY)
    device.read()
    w.disk.wait_for(VOLUME, KEY)
    device.read()


# ---- 7.5 the last close of the device


@scenario("7.5 reader eio", "7.5 pages stay", "7.5 data until withdrawn")
def device_closed_under_readers(w: World) -> None:
    """Who waits gets EIO; in the end only what is in memory can be read, whatever the cache has."""
    device = w.bound()
    anon = w.mounted(device)
    anon.fill(1, 4)
    w.netfs.read(0, PAGE).result()
    reading = w.netfs.read(6 * PAGE, PAGE)
    message = device.take(Read)
    device.close()
    reading.result()
    w.note("with the anonymous fd still open:")
    w.netfs.read(PAGE, PAGE).result()
    w.netfs.read(7 * PAGE, PAGE).result()
    anon.cread(message.msg_id)
    anon.close()
    w.open(name="second").close()
    w.note("the cache is withdrawn:")
    w.netfs.read(0, PAGE).result()
    w.netfs.read(2 * PAGE, PAGE).result()


@scenario("7.5 mount fails")
def device_closed_under_a_mount(w: World) -> None:
    """A mount that waits for its OPEN fails."""
    device = w.bound()
    _, anon = w.opening(device)
    device.close()
    w.netfs.started[-1].fails()
    anon.close()


@scenario("7.5 not revived")
def rebinding_does_not_revive(w: World) -> None:
    """A new daemon on the same cache: old mounts stay dead, new ones live."""
    device = w.bound()
    w.mounted(device).close()
    device.close()
    device = w.bound(name="next")
    w.netfs.read(0, PAGE).result()
    device.nothing()
    w.netfs.umount()
    w.mounted(device, "b", "other")


@scenario("7.5 anon outlives")
def anonymous_fd_outlives_the_device(w: World) -> None:
    """With an anonymous fd left the device stays busy; nothing can be completed through it."""
    device = w.bound()
    anon = w.mounted(device)
    device.close()
    w.try_open(name="second")
    anon.cread(1)
    anon.close()
    w.open(name="second")
