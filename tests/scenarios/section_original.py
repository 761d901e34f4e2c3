"""The original mode, with a netfs that fetches by itself: 9p on the real kernel."""

from __future__ import annotations

from tests.scenarios import image
from tests.scenarios.registry import scenario
from tests.scenarios.section_11_room import NOTHING, PLENTY, settle
from tests.scenarios.world import World

PAGE = image.PAGE
VOLUME, KEY = "9p,server,tag", "\2\0\0\0\0\0\0\0"


@scenario("original miss", "original hit", "original no requests", "12 aux")
def a_netfs_fills_its_cache(w: World) -> None:
    """What is read is fetched once, and then comes from the cache."""
    device = w.bound(mode=b"bind")
    w.netfs.mount_9p().result()
    w.netfs.read(PAGE, PAGE).result()
    w.netfs.read(4 * PAGE, 2 * PAGE).result()
    w.netfs.served()
    w.netfs.umount()
    w.disk.wait_for(VOLUME, KEY)
    w.disk.show_volume(VOLUME)
    w.disk.show(VOLUME, KEY)
    w.netfs.mount_9p("b").result()
    w.netfs.read(PAGE, PAGE, name="b").result()
    w.netfs.read(4 * PAGE, 2 * PAGE, name="b").result()
    w.netfs.served()
    w.netfs.read(2 * PAGE, PAGE, name="b").result()
    w.netfs.served()
    device.poll()
    w.netfs.umount("b")


@scenario("original version", "original size")
def a_netfs_with_another_version(w: World) -> None:
    """Another version of the file, or another size: what is cached is dropped."""
    w.bound(mode=b"bind")
    for name, version, size in (("a", 1, 16), ("b", 2, 16), ("c", 2, 12)):
        w.netfs.mount_9p(name, version=version, size=size * PAGE).result()
        w.netfs.read(PAGE, PAGE, name=name).result()
        w.netfs.served()
        w.netfs.umount(name)
        w.disk.wait_for(VOLUME, KEY)
        w.disk.show(VOLUME, KEY)


@scenario("original no room")
def a_netfs_without_room(w: World) -> None:
    """Without room nothing is cached, and everything is read all the same."""
    room = w.room()
    room.leave(PLENTY)
    device = w.bound(mode=b"bind")
    w.netfs.mount_9p().result()
    w.netfs.read(PAGE, PAGE).result()
    w.netfs.umount()
    w.disk.wait_for(VOLUME, KEY)
    w.disk.show(VOLUME, KEY)
    w.state(device)
    w.netfs.mount_9p("b").result()
    room.leave(NOTHING)
    w.netfs.read(PAGE, PAGE, name="b").result()
    w.netfs.read(4 * PAGE, PAGE, name="b").result()
    w.netfs.served()
    w.netfs.umount("b")
    device.wait()
    settle(w, device, w.disk.path(VOLUME, KEY))
    w.disk.show(VOLUME, KEY)
    w.state(device)


@scenario("original no cache")
def a_netfs_without_a_cache(w: World) -> None:
    """Without a cache a netfs works as well."""
    w.open()
    w.netfs.mount_9p().result()
    w.netfs.read(PAGE, PAGE).result()
    w.netfs.served()


@scenario("original tail")
def a_netfs_and_the_end_of_a_file(w: World) -> None:
    """The last page of a file is cached whole."""
    w.bound(mode=b"bind")
    for name in ("a", "b"):
        w.netfs.mount_9p(name, size=2 * PAGE + 100).result()
        w.netfs.read(2 * PAGE, PAGE, name=name).result()
        w.netfs.served()
        w.netfs.umount(name)
        w.disk.wait_for(VOLUME, KEY)
        w.disk.show(VOLUME, KEY)
