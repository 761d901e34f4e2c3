"""A local file as origin.

Reads run in threads, since a file may be on a disk or a network that is slow. The file is opened
once; after each read its size and times must still be those of the identity, so bytes of a file
that was changed in place are never handed on. (A change within one tick of the file system's
clock, and one through a shared mapping that touched its page before, cannot be seen this way.)
A file that was replaced by rename is still read to its end: the open one has not changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from pagein.origins.base import Origin, OriginError, check_range, redact
from pagein.origins.identity import Identity
from pagein.origins.sharedfd import SharedFd

T = TypeVar("T")

_ADVICE = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EACCES: "permission denied: make it readable for the user who fetches",
    errno.EPERM: "permission denied: make it readable for the user who fetches",
}
# What another attempt may cure: a stale or slow network file system, a lack of fds or memory.
_PASSING = {errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class FileOrigin(Origin):
    """The file of `identity`; every call ends within `timeout` seconds, or raises OriginError."""

    def __init__(self, identity: Identity, timeout: float) -> None:
        self._identity = identity
        self._timeout = timeout
        self._file = _SharedFile(identity.source)
        self.instant = True  # until the file system says that it does not know RWF_NOWAIT

    def __str__(self) -> str:
        return redact(self._identity.source)

    async def size(self) -> int:
        """The size in bytes, as the identity has it."""
        return self._identity.size

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; OriginError when the file is not what it was."""
        check_range(self._identity.source, offset, length, self._identity.size)
        if length == 0:
            return b""
        return await _in_thread(
            self._identity.source, self._timeout, lambda: self._pread(offset, length)
        )

    def pread(self, offset: int, length: int) -> bytes:
        """As `read`, here and now: it blocks for the disk, without a deadline."""
        check_range(self._identity.source, offset, length, self._identity.size)
        with _translated(self._identity.source):
            return self._pread(offset, length) if length else b""

    def at_hand(self, offset: int, view: memoryview) -> bool:
        """Copy what is in the page cache, and only if all of it is."""
        fd = self._file.acquire_open()
        if fd is None:
            return False
        try:
            count = os.preadv(fd.number, [view], offset, os.RWF_NOWAIT)
            self._check(os.fstat(fd.number))
        except OSError as exc:
            self.instant = exc.errno != errno.EOPNOTSUPP
            raise
        finally:
            fd.leave()
        return count == len(view)

    async def close(self) -> None:
        """Close the file, once reads that still run in a thread have ended."""
        self.close_now()

    def close_now(self) -> None:
        """The same, without a loop."""
        self._file.close()

    def _pread(self, offset: int, length: int) -> bytes:
        fd = self._file.acquire()
        try:
            data = _pread_all(fd.number, offset, length)
            # After the read, so that a change before or during it is seen.
            self._check(os.fstat(fd.number), whole=len(data) == length)
        finally:
            fd.leave()
        return data

    def _check(self, now: os.stat_result, *, whole: bool = True) -> None:
        wanted = self._identity
        changed = wanted.etag is not None and wanted.etag != etag_of(now)
        if changed or now.st_size != wanted.size or not whole:
            cause = "content changed since it was first read: mount or open it again"
            raise OriginError.of(wanted.source, cause)


class _SharedFile:
    """A file that threads use, opened by the first of them."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opening = threading.Lock()  # `close` does not wait for it: opening may take long
        self._fd: SharedFd | None = None
        self._closed = False

    def acquire(self) -> SharedFd:
        """The fd, entered."""
        with self._opening:
            if self._fd is None and not self._closed:
                self._fd = SharedFd(_open_regular(self._path))
        if self._closed:
            self.close()
        if self._fd is None or not self._fd.enter():
            raise OriginError.of(self._path, "the origin is closed", errno=errno.EBADF)
        return self._fd

    def acquire_open(self) -> SharedFd | None:
        """The same if somebody opened the file before; opening it may take long."""
        fd = self._fd
        return fd if fd is not None and fd.enter() else None

    def close(self) -> None:
        self._closed = True
        if (fd := self._fd) is not None:
            fd.close()


async def resolve_file(path: str, *, timeout: float) -> Identity:
    """The identity of the regular file at absolute `path`: inode and mtime are its ETag."""
    if not os.path.isabs(path):
        raise OriginError.of(path, "the path must be absolute", errno=errno.EINVAL)
    return await _in_thread(path, timeout, lambda: _identify(path))


def identify(path: str) -> Identity:
    """As `resolve_file`, here and now: it blocks for the disk, without a deadline."""
    with _translated(path):
        return _identify(path)


def etag_of(found: os.stat_result) -> str:
    """The validator of a file: inode number and mtime in nanoseconds."""
    return f"{found.st_ino}-{found.st_mtime_ns}"


def _identify(path: str) -> Identity:
    fd = _open_regular(path)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if found.st_size == 0:
        raise OriginError.of(path, "is empty: nothing to serve", errno=errno.EINVAL)
    return Identity(source=path, size=found.st_size, etag=etag_of(found))


def _open_regular(path: str) -> int:
    # Looked at first: opening a FIFO would wait for its writer, opening a device may act.
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        cause = "is a directory: name a file in it"
        raise OriginError.of(path, cause, errno=errno.EISDIR)
    if not stat.S_ISREG(mode):
        raise OriginError.of(path, "is not a regular file", errno=errno.EINVAL)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _pread_all(fd: int, offset: int, length: int) -> bytes:
    """What the file has of the range; pread(2) itself may stop at 2 GiB or at a signal."""
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    pieces = [data]
    have = len(data)
    while pieces[-1] and have < length:
        pieces.append(os.pread(fd, length - have, offset + have))
        have += len(pieces[-1])
    return b"".join(pieces)


async def _in_thread(path: str, timeout: float, call: Callable[[], T]) -> T:
    """`call` in a thread; its OSErrors and a missed deadline become OriginErrors of `path`.

    A thread that misses the deadline goes on: nothing can interrupt it, and it holds its own
    claim on the fd.
    """
    with _translated(path):
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.to_thread(call)
        except TimeoutError as exc:
            cause = f"no data within {timeout:g} s"
            raise OriginError.of(path, cause, errno=errno.ETIMEDOUT, retry=True) from exc


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    """OSErrors become OriginErrors of `path`."""
    try:
        yield
    except OriginError:
        raise
    except OSError as exc:
        number = exc.errno or errno.EIO
        cause = _ADVICE.get(number, os.strerror(number).lower())
        raise OriginError.of(path, cause, errno=number, retry=number in _PASSING) from exc
    except ValueError as exc:  # a NUL in the path
        raise OriginError.of(path, f"not a path: {exc}", errno=errno.EINVAL) from exc
