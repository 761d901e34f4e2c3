"""The user half: talks the on-demand protocol to a device and fills its cache from origins.

`Daemon` is the public class; the rest is for those who build something of their own. Names are
imported when first used: `__main__` has to do something first.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pagein.daemon.device import AnonFd, Device, DeviceDead
    from pagein.daemon.filedevice import FileDevice
    from pagein.daemon.fill import Fill
    from pagein.daemon.loop import Daemon

__all__ = ["AnonFd", "Daemon", "Device", "DeviceDead", "FileDevice", "Fill"]

_WHERE = {
    "AnonFd": "pagein.daemon.device",
    "Daemon": "pagein.daemon.loop",
    "Device": "pagein.daemon.device",
    "DeviceDead": "pagein.daemon.device",
    "FileDevice": "pagein.daemon.filedevice",
    "Fill": "pagein.daemon.fill",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
