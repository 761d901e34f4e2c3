"""Cache files for tests of the cache directory and of the backing file."""

import errno
import os
import re
from pathlib import Path

from tests.cachefiles.rig import COOKIE, VOLUME

from pagein.cachefiles import namei, presence, xattr
from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.rangeset import RangeSet

PATH = namei.object_path(VOLUME, COOKIE)


def new_cache(directory: Path, *, shared: bool = False) -> Cache:
    return Cache(os.fsencode(directory), shared=shared)


def found(cache: Cache, size: int) -> RangeSet:
    """What is present of the object when it is looked up."""
    file = cache.look_up(PATH, size)
    try:
        assert os.fstat(file.fd).st_size == file.length == presence.round_up(size)
        assert xattr.get_object(file.fd) == xattr.ObjectXattr(size)
        return file.present
    finally:
        file.close()


def content(file: BackingFile, offset: int, length: int) -> bytes:
    data = bytearray(length)
    got = file.read([memoryview(data)], offset)
    return bytes(data[:got])


def graves(directory: Path) -> list[Path]:
    """What was buried, under the names of the graveyard."""
    found = list((directory / "graveyard").iterdir())
    assert all(re.fullmatch("[0-9a-f]{16}", path.name) for path in found)
    return found


_PWRITE = os.pwrite


class Disk:
    """Stands in for pwrite: takes so many bytes, then fails."""

    def __init__(self, *parts: int, number: int = errno.ENOSPC) -> None:
        self.parts = list(parts)
        self.number = number

    def __call__(self, fd: int, data: memoryview | bytes, offset: int) -> int:
        if isinstance(data, bytes):  # an entry of the table of writes under way
            return _PWRITE(fd, data, offset)
        if not self.parts:
            raise OSError(self.number, os.strerror(self.number))
        return _PWRITE(fd, data[: self.parts.pop(0)], offset)
