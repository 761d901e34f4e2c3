"""Which source a cookie key stands for: one small file each, so that a restart knows it still.

A key is made from a source and its validators (`origins.identity`), so a record never changes.
With the record and a complete cache the server is not needed any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Record(Protocol):
    """What a key stands for."""

    @property
    def source(self) -> str: ...

    def key(self) -> bytes: ...

    def dump(self) -> bytes: ...


R = TypeVar("R", bound=Record)

_KEY = re.compile(rb"[0-9a-f]{64}")


class Records(Generic[R]):
    """The directory of records. Sources may hold credentials: it is for its owner only."""

    def __init__(self, directory: str, load: Callable[[bytes], R]) -> None:
        """`directory` is made if need be; `load` undoes `dump`, or raises ValueError.

        Raises OSError.
        """
        self._directory = directory
        self._load = load
        os.makedirs(directory, 0o700, exist_ok=True)

    def _path(self, key: bytes) -> str:
        return os.path.join(self._directory, key.decode())

    def keep(self, identity: R) -> bytes:
        """Write an identity down, whole or not at all; returns its key. Blocks."""
        key = identity.key()
        path = self._path(key)
        if self._is_kept(path, identity):
            return key
        # A name of its own: the same source may be looked at several times at once.
        fd, temporary = tempfile.mkstemp(".new", f"{key.decode()}.", self._directory)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(identity.dump())
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        return key

    def _is_kept(self, path: str, identity: R) -> bool:
        """Whether that is written down already, which is so now the latest of its source.

        A record that is right needs no room on a disk that may be full.
        """
        with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
            if self._load(file.read()) == identity:
                os.utime(file.fileno())
                return True
        return False

    def find(self, key: bytes) -> R:
        """What a key stands for. Raises FileNotFoundError for an unknown one. Blocks."""
        if not _KEY.fullmatch(key):
            raise FileNotFoundError(errno.ENOENT, "not a key of this daemon")
        with open(self._path(key), "rb") as file:
            data = file.read()
        try:
            return self._load(data)
        except ValueError as problem:
            raise OSError(errno.EIO, f"damaged record: {problem}", self._path(key)) from None

    def latest(self, source: str) -> R | None:
        """The last identity kept of a source, for when it cannot be asked. Blocks."""
        newest: tuple[float, R] | None = None
        for entry in os.scandir(self._directory):
            if not _KEY.fullmatch(os.fsencode(entry.name)):
                continue
            with contextlib.suppress(OSError):
                identity = self.find(os.fsencode(entry.name))
                kept = entry.stat().st_mtime
                if identity.source == source and (newest is None or kept > newest[0]):
                    newest = (kept, identity)
        return newest[1] if newest else None
