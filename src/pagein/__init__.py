"""On-demand read: files of remote images, fetched when they are read.

`open` and `aopen` read remote files through a local cache; `seekable` reads .gz and .zst files at
random; `Daemon` and `Origin` are what a daemon of one's own is made of. Names are imported when
first used, so that `import pagein` is cheap.
"""

from __future__ import annotations

TYPE_CHECKING = False  # that of typing, which takes as long to import as all of an interpreter
if TYPE_CHECKING:
    from typing import Any

    from pagein import seekable
    from pagein.daemon.loop import Daemon
    from pagein.library import AsyncBlobFile, BlobFile, aopen, open
    from pagein.origins.base import Origin, OriginError

__all__ = [
    "AsyncBlobFile",
    "BlobFile",
    "Daemon",
    "Origin",
    "OriginError",
    "aopen",
    "open",
    "seekable",
]

_WHERE = {
    "AsyncBlobFile": "pagein.library",
    "BlobFile": "pagein.library",
    "Daemon": "pagein.daemon.loop",
    "Origin": "pagein.origins.base",
    "OriginError": "pagein.origins.base",
    "aopen": "pagein.library",
    "open": "pagein.library",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "seekable":
        return import_module("pagein.seekable")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
