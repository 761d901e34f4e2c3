"""Facts 12: names in the cache directory."""

from __future__ import annotations

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
