"""Facts 12: names in the cache directory."""

from __future__ import annotations

import re

from tests.scenarios import image
from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.protocol.messages import Close


@scenario("12 names", "12 fanout")
def names_of_objects(w: World) -> None:
    """Keys of all kinds: printable, hexadecimal either way, base64 with each padding."""
    device = w.bound()
    keys = ("plain", "a b", "ab c", "a b c", "\1\2\3\4", "\2\1", "\x7f~!", "k" * 60, "x y" * 40)
    for number, key in enumerate(keys):
        mounting = w.netfs.mount(f"m{number}", key, "names")
        anon = w.serve_mount(device, mounting)
        w.netfs.umount(f"m{number}")
        device.take(Close)
        anon.close()
    w.disk.objects("erofs,names", len(keys))


@scenario("12 longest volume key", "12 slash")
def keys_that_make_no_volume(w: World) -> None:
    """The key of a volume is the name of its directory, as far as there can be one."""
    device = w.bound()
    for number, fsid in enumerate(("v" * 248, "v" * 249, "v" * 250, "a/b")):
        mounting = w.netfs.mount(f"m{number}", fsid)
        if not w.asked(device, mounting):
            mounting.result()
            continue
        w.serve_mount(device, mounting)
        w.note(f"directories: {[len(path.name) for path in (w.cache / 'cache').iterdir()]}")


@scenario("12 longest cookie key")
def longest_cookie_key(w: World) -> None:
    """252 bytes are a key."""
    device = w.bound()
    mounting = w.netfs.mount("a", "k" * 252, "names")
    anon = w.serve_mount(device, mounting)
    w.netfs.umount()
    device.take(Close)
    anon.close()
    w.disk.objects("erofs,names", 1)


@scenario("12 modes", "12 volume attribute", "12 object attribute", "12 sparse")
def a_cached_file(w: World) -> None:
    """What lies on the disk of a blob of which three pages were fetched."""
    device = w.bound()
    anon = w.mounted(device)
    anon.fill(2, 2)
    w.netfs.umount()
    device.take(Close)
    anon.close()
    w.disk.wait_for("erofs,blob", "blob")
    w.disk.names("cache")
    w.disk.show_volume("erofs,blob")
    w.disk.show("erofs,blob", "blob")


@scenario("12 graves")
def names_in_the_graveyard(w: World) -> None:
    """What is buried has a name of two numbers, with all that is in it."""
    path = w.disk.plant("erofs,blob", "blob", image.SIZE, {})
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")
    device = w.bound()
    w.mounted(device)
    for grave in (w.cache / "graveyard").iterdir():
        w.note(f"16 digits: {bool(re.fullmatch('[0-9a-f]{16}', grave.name))}")
        w.note(f"in it: {[each.name for each in grave.iterdir()]}")
