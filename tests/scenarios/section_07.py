"""Facts 7: the life of an object."""

from __future__ import annotations

import errno
import os

from tests.scenarios import image
from tests.scenarios.files import Anon, Device
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

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


@scenario("7.4 writes after close", "14 dropping", "14 no file")
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


@scenario("7.5 reader eio", "7.5 pages stay", "7.5 data until withdrawn", "14 flush at the end")
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


@scenario("7.6 dead", "2 dead", "5 dead")
def an_io_error_of_the_backing_file_system(w: World) -> None:
    """EIO of a lookup is the end of the whole cache, for the daemon and for each mount."""
    device = w.bound()
    anon = w.mounted(device, "a", "blob", "names")
    anon.fill(1)
    waiting = w.netfs.read(PAGE, PAGE)
    message = device.take(Read)
    w.netfs.inject(errors=True)
    w.netfs.mount("b", "other", "names").fails()
    w.netfs.inject(errors=False)
    device.poll()
    device.read()
    device.write(b"restore")
    anon.answer(message)
    waiting.result()
    w.netfs.read(0, PAGE).result()


@scenario("7.5 another tag")
def another_tag_beside_dead_mounts(w: World) -> None:
    """A new cache of another name, while a mount of the old one is there."""
    device = w.bound()
    anon = w.mounted(device)
    anon.close()
    device.close()
    device = w.open(name="second")
    device.write(b"tag other")
    device.write(b"dir " + os.fsencode(w.cache))
    device.write(b"bind ondemand")
    mounting = w.netfs.mount("b", "other")
    if w.asked(device, mounting):
        w.serve_mount(device, mounting)
    else:
        mounting.result()
