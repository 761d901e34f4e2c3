"""What lies in a cache directory, least recently used first."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from pagein.cachefiles.namei import CACHE_DIR, GRAVEYARD_DIR

_GRAVE = re.compile(rb"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class CacheFile:
    """One object's file, in use or not."""

    path: bytes
    """Relative to the cache directory."""
    used: float
    """Seconds since the epoch: the last lookup, read or write."""
    held: int
    """Bytes that it has on the disk."""

    @property
    def name(self) -> str:
        """Volume and object, for people."""
        _, volume, _, name = self.path.split(b"/")
        key = name[1:] if name.startswith(b"D") else name
        text = os.fsdecode(volume[1:] + b"/" + key)
        return text if text.isprintable() else repr(text)[1:-1]


def files(directory: bytes) -> list[CacheFile]:
    """All objects' files in a cache, least recently used first. Blocks.

    Raises OSError when the directory cannot be read; ENOENT when there is no cache in it.
    """
    found = list(_files(os.path.join(directory, CACHE_DIR), CACHE_DIR))
    return sorted(found, key=lambda file: (file.used, file.path))


def _files(path: bytes, relative: bytes, depth: int = 0) -> Iterator[CacheFile]:
    prefix = (b"I", b"@", b"")[depth]
    with os.scandir(path) as entries:
        for entry in entries:
            below = relative + b"/" + entry.name
            try:
                if not entry.name.startswith(prefix):
                    continue
                if depth < 2:
                    if entry.is_dir(follow_symlinks=False):
                        yield from _files(entry.path, below, depth + 1)
                    continue
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # culled by somebody else
                continue
            if stat.S_ISREG(status.st_mode):
                used = max(status.st_atime, status.st_mtime)
                yield CacheFile(below, used, status.st_blocks * 512)


def graves(directory: bytes) -> list[bytes]:
    """What was buried and waits to be removed: paths. Blocks.

    Nothing else: a volume is made in the graveyard before it is moved to its place.
    """
    place = os.path.join(directory, GRAVEYARD_DIR)
    with os.scandir(place) as entries:
        return sorted(entry.path for entry in entries if _GRAVE.fullmatch(entry.name))


def size_of(path: bytes) -> int:
    """Bytes that a grave has on the disk. Blocks."""
    total = 0
    for place, directories, names in os.walk(path):
        for name in [*directories, *names]:
            total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total


def remove(grave: bytes) -> None:
    """Remove a grave and all in it; somebody else may be doing so as well. Blocks."""
    shutil.rmtree(grave, ignore_errors=True)
