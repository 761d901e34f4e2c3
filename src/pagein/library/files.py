"""`pagein.open` and its async twin: what a remote file looks like to a program."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pagein.fscache import Cookie
from pagein.library import runtime as runtimes
from pagein.library.runtime import Opener, Runtime
from pagein.origins import Identity, redact
from pagein.rawfile import SizedRawFile, check_range

TIMEOUT = 30.0
"""Seconds until a read that cannot be fetched fails, by default."""
_MARGIN = 15.0
"""Seconds past a deadline after which a half that says nothing is given up on."""
_LARGE = 64 << 10
"""Bytes: whoever reads more than that at once, and not where the last read ended, or to the end,
knows what is wanted: nothing around it is fetched. About smaller reads and streams the daemon may
guess."""
_PIECE = 1 << 20
"""Bytes of one READ. A larger one could miss its deadline although all goes well, and one
preadv(2) ends at 2 GiB."""


def default_cache() -> str:
    """The user's cache directory: $XDG_CACHE_HOME/pagein, or ~/.cache/pagein.

    Raises OSError (ENOENT) for a user without a home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: ignore it
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        text = "no home directory: set HOME or XDG_CACHE_HOME, or name a cache directory"
        raise OSError(errno.ENOENT, text)
    return os.path.join(base, "pagein")


@dataclass(slots=True)
class _Use:
    """The cookie of a blob in one process of a line of forks."""

    generation: int
    runtime: Runtime
    cookie: Cookie
    known: tuple[int, int] = (0, 0)
    """An extent that is present."""

    def knows(self, offset: int, length: int) -> bool:
        """Whether a range is present for certain."""
        first, last = self.known
        return first <= offset and offset + length <= last


class _Blob:
    """A blob in use by this process, reopened after a fork. Safe for threads."""

    def __init__(
        self, cache: str, timeout: float, identity: Identity, opener: Opener | None = None
    ) -> None:
        """`opener` makes the origin, and pickles; None: the source says what it is."""
        self.cache = cache
        self.timeout = timeout
        self.identity = identity
        self.opener = opener
        self._locks: dict[int, threading.Lock] = {}
        """One for each process of a line of forks: a fork may copy it locked."""
        self._use: _Use | None = None
        self._closed = False

    def __del__(self) -> None:
        # For who dropped a file without closing it, or was interrupted before there was one.
        with contextlib.suppress(Exception):
            self.detach()

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(runtimes.generation(), threading.Lock())

    def attached(self) -> _Use | None:
        """What `attach` returns, if it would do so at once."""
        use = self._use
        return use if use is not None and use.generation == runtimes.generation() else None

    def attach(self) -> _Use:
        """The runtime and cookie of this process. Raises OSError, ValueError once closed."""
        if (use := self.attached()) is not None:
            return use
        with self._lock():
            if self._closed:
                raise ValueError("I/O operation on closed file")
            if (use := self.attached()) is None:
                use = self._use = self._acquire()
            return use

    def _acquire(self) -> _Use:
        runtime = runtimes.runtime_for(self.cache, self.timeout)
        try:
            work = runtime.acquire(self.identity, self.opener)
            cookie = runtime.call(work, self.timeout + _MARGIN)
        except BaseException:
            runtime.release(None)
            raise
        return _Use(runtimes.generation(), runtime, cookie)

    def detach(self) -> None:
        """Give the cookie back, once; not to be attached again."""
        with self._lock():
            self._closed = True
            use, self._use = self.attached(), None
        if use is not None:
            use.runtime.release(use.cookie)

    def fetch(self, offset: int, length: int) -> Cookie:
        """Return once a range is present. Raises OSError (EIO, ETIMEDOUT)."""
        use = self.attach()
        if not use.knows(offset, length):
            work = use.runtime.make_present(use.cookie, offset, length)
            use.known = use.runtime.call(work, 2 * self.timeout + _MARGIN)
        return use.cookie

    def announce(self, offset: int, length: int) -> None:
        """Have exactly this range fetched, in one go; the reads that want it follow."""
        use = self.attach()
        if not use.knows(offset, length):
            use.runtime.announce(use.cookie, offset, length)

    async def afetch(self, offset: int, length: int) -> Cookie:
        """`fetch` for a running loop, whichever it is."""
        use = self.attached()
        if use is None:
            use = await asyncio.to_thread(self.attach)
        if not use.knows(offset, length):
            work = use.runtime.submit(use.runtime.make_present(use.cookie, offset, length))
            async with asyncio.timeout(2 * self.timeout + _MARGIN):
                use.known = await asyncio.wrap_future(work)
        return use.cookie

    def read_at(self, cookie: Cookie, buffer: memoryview, offset: int) -> int:
        """Read present bytes. Blocks for the disk at most."""
        got = cookie.file.read([buffer], offset)
        if got < len(buffer):
            raise OSError(errno.EIO, "the cache file is shorter than its object", self.cache)
        return got


def _pieces(view: memoryview, offset: int) -> Iterator[tuple[memoryview, int]]:
    """`view` in parts, with their offsets: each has a deadline of its own, as a READ has."""
    for at in range(0, len(view), _PIECE):
        yield view[at : at + _PIECE], offset + at


class BlobFile(SizedRawFile):
    """A remote file, read-only and seekable; what is read is fetched and kept.

    `read` and `readinto` move the position and are for one thread at a time; `pread` is for any
    number. Survives fork, and pickling to other processes of the same user.
    """

    def __init__(self, blob: _Blob) -> None:
        super().__init__()
        self._blob = blob
        self._edge = 0
        """Where the last read ended, for whichever of several threads."""

    @property
    def name(self) -> str:
        """The source, without credentials."""
        return redact(self._blob.identity.source)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._blob.identity.size

    def readall(self) -> bytes:
        """Everything from the position to the end."""
        data = bytearray(max(0, self.size - self._at))
        self.readinto(data)
        return bytes(data)

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes at `offset`, fewer at the end only; leaves the position alone."""
        self._check_open()
        check_range(length, offset)
        data = bytearray(max(0, min(length, self.size - offset)))
        with memoryview(data) as view:
            self._read_at(view, offset)
        return bytes(data)

    def _read_at(self, view: memoryview, offset: int) -> int:
        length = min(len(view), self.size - offset)
        if length <= 0:
            return 0
        edge, self._edge = self._edge, offset + length
        if length > _LARGE and (offset != edge or offset + length == self.size):
            self._blob.announce(offset, length)
        for piece, at in _pieces(view[:length], offset):
            cookie = self._blob.fetch(at, len(piece))
            self._blob.read_at(cookie, piece, at)
        return length

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._blob.detach()

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        blob = self._blob
        return _reopen, (blob.identity.dump(), blob.cache, blob.timeout, self._at, blob.opener)

    def __repr__(self) -> str:
        return f"<pagein.BlobFile {self.name!r} of {self.size} bytes>"


def _reopen(
    identity: bytes, cache: str, timeout: float, at: int, opener: Opener | None
) -> BlobFile:
    file = open_with(Identity.load(identity), opener, cache=cache, timeout=timeout)
    file.seek(at)
    return file


class AsyncBlobFile:
    """The async twin: the same file for a running event loop."""

    def __init__(self, blob: _Blob) -> None:
        self._blob = blob
        self._at = 0
        self._closed = False

    @property
    def name(self) -> str:
        """The source, without credentials."""
        return redact(self._blob.identity.source)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._blob.identity.size

    def seek(self, offset: int) -> None:
        """Set the position."""
        if offset < 0:
            raise OSError(errno.EINVAL, "negative seek position")
        self._at = offset

    def tell(self) -> int:
        """The position."""
        return self._at

    async def read(self, length: int = -1) -> bytes:
        """Up to `length` bytes, or all, from the position on; fewer at the end only."""
        wanted = self.size - self._at if length < 0 else length
        data = await self.pread(max(0, wanted), self._at)
        self._at += len(data)
        return data

    async def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes at `offset`; leaves the position alone. Raises OSError."""
        if self._closed:
            raise ValueError("I/O operation on closed file")
        check_range(length, offset)
        data = bytearray(max(0, min(length, self.size - offset)))
        for piece, at in _pieces(memoryview(data), offset):
            cookie = await self._blob.afetch(at, len(piece))
            await asyncio.to_thread(self._blob.read_at, cookie, piece, at)
        return bytes(data)

    async def aclose(self) -> None:
        """Close it. Twice is fine."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._blob.detach)

    async def __aenter__(self) -> AsyncBlobFile:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def open(source: str, *, cache: str | None = None, timeout: float = TIMEOUT) -> BlobFile:
    """Open an http(s) URL or a path for reading; what is read is fetched once and kept.

    `cache` is a directory shared by all processes that name it, by default the user's
    (`default_cache`). `timeout`, in seconds, is that of each read. Wrap it in io.BufferedReader
    for many small reads.

    Raises OSError: what the source answers (`pagein.origins.OriginError`), or EBUSY, EOPNOTSUPP
    and others for a cache directory that cannot be used.
    """
    blob = _identified(source, cache, timeout)
    blob.attach()
    return BlobFile(blob)


def open_with(
    identity: Identity, opener: Opener | None, *, cache: str | None, timeout: float
) -> BlobFile:
    """Open what `identity` stands for; `opener` makes its origin, in each process that asks one.

    Raises OSError as `open`, and what the opener raises.
    """
    blob = _Blob(os.path.abspath(cache or default_cache()), timeout, identity, opener)
    blob.attach()
    return BlobFile(blob)


async def aopen(
    source: str, *, cache: str | None = None, timeout: float = TIMEOUT
) -> AsyncBlobFile:
    """`open` for a running event loop."""
    blob = await asyncio.to_thread(_identified, source, cache, timeout)
    await asyncio.to_thread(blob.attach)
    return AsyncBlobFile(blob)


def _identified(source: str, cache: str | None, timeout: float) -> _Blob:
    if "://" not in source:
        source = os.path.abspath(source)
    where = os.path.abspath(cache or default_cache())
    runtime = runtimes.runtime_for(where, timeout)
    try:
        identity = runtime.call(runtime.identify(source), timeout + _MARGIN)
    finally:
        runtime.release(None)
    return _Blob(where, timeout, identity)
