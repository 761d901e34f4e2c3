"""Facts 2: commands."""

from __future__ import annotations

from tests.scenarios.registry import scenario
from tests.scenarios.world import World

from pagein.protocol.messages import Close


@scenario("2.2 directories")
def what_bind_makes(w: World) -> None:
    """`bind` makes two directories, a volume one more."""
    device = w.bound()
    w.disk.names()
    anon = w.mounted(device)
    w.disk.names("cache")
    w.disk.show_volume("erofs,blob")
    w.disk.names("cache/Ierofs,blob")
    w.netfs.umount()
    device.take(Close)
    anon.close()
