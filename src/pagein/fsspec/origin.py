"""A file of any fsspec file system as a source of byte ranges, and which content it has now."""

from __future__ import annotations

import asyncio
import datetime
import errno
import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pagein.origins import Identity, Origin, OriginError

_PIECE: Final = 2 << 20
"""Bytes of one request: nothing is seen of it before it is all there, and a slow link has to bring
some in half a read's deadline."""
_AHEAD: Final = 3
"""Requests of one stream under way at once."""
_VOLATILE: Final = frozenset({"atime", "accessed", "last_accessed", "last_access_time", "time"})
"""What `info` tells of a file that reading it may change (`time`: SFTP's)."""

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]
"""A file system as pickle has it: made again in another process, where its loop is not ours."""


def identify(source: str, info: Mapping[str, Any]) -> Identity:
    """The identity of a file with a size, from what its file system says of it.

    Whatever plain values there are (ETag, mtime, generation, version ...) make the key: if one
    changes, that is another content.
    """
    plain = (str, bytes, int, float, bool, datetime.datetime, type(None))
    facts = {
        str(name): str(value)
        for name, value in info.items()
        if isinstance(value, plain) and str(name).lower() not in _VOLATILE
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Identity(source=f"fsspec {source}", size=int(info["size"]), etag=digest)


@dataclass(frozen=True)
class FsspecOpener:
    """Makes the origin of a file; pickles if its file system does."""

    made_by: Reduced
    path: str

    def __call__(self, identity: Identity, timeout: float) -> Origin:
        make, arguments = self.made_by
        return FsspecOrigin(make(*arguments), self.path, identity, timeout)


class FsspecOrigin(Origin):
    """Ranges by `cat_file`, each in a thread."""

    def __init__(self, fs: Any, path: str, identity: Identity, timeout: float) -> None:
        """`timeout`, in seconds, is that of each request."""
        self._fs = fs
        self._path = path
        self._identity = identity
        self._timeout = timeout

    def __str__(self) -> str:
        return self._identity.source.removeprefix("fsspec ")

    async def size(self) -> int:
        return self._identity.size

    async def read(self, offset: int, length: int) -> bytes:
        try:
            async with asyncio.timeout(self._timeout):
                data: bytes = await asyncio.to_thread(
                    self._fs.cat_file, self._path, start=offset, end=offset + length
                )
        except TimeoutError:
            cause = f"no answer within {self._timeout:g} s"
            raise OriginError(errno.ETIMEDOUT, f"{self}: {cause}", retry=True) from None
        except FileNotFoundError as problem:
            raise OriginError(errno.ENOENT, f"{self}: it is gone") from problem
        except Exception as problem:  # each file system has exceptions of its own
            number = problem.errno if isinstance(problem, OSError) else None
            cause = str(problem) or type(problem).__name__
            raise OriginError(number or errno.EIO, f"{self}: {cause}", retry=True) from problem
        if len(data) != length:
            cause = f"{len(data)} bytes came where {length} were asked for"
            raise OriginError(errno.EIO, f"{self}: {cause}")
        return bytes(data)

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        end = offset + length
        starts = iter(range(offset, end, _PIECE))
        under_way: deque[asyncio.Task[bytes]] = deque()
        try:
            while True:
                while len(under_way) < _AHEAD and (start := next(starts, None)) is not None:
                    piece = self.read(start, min(_PIECE, end - start))
                    under_way.append(asyncio.create_task(piece))
                if not under_way:
                    return
                yield await under_way[0]
                under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
