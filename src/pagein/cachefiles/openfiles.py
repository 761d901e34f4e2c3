"""Which backing files of a cache have an fd: those in use, and those used last.

The kernel holds a `struct file` for each object, and those are without number. Fds are not: with
10,000 cookies the files that nobody reads at this moment are closed, and opened again by name when
somebody does. What is opened again must be the file that was closed, else the object is lost: EIO,
never another file's bytes.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pagein.cachefiles.inuse import open_cache_file


def half_of_our_fds() -> int:
    """How many files a cache keeps open: half of what RLIMIT_NOFILE allows this process."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else max(16, soft // 2)


class OpenFiles:
    """The open files of one cache, at most `limit` while no more are in use at once."""

    def __init__(self, limit: int | None) -> None:
        """None: no limit. Then nothing is ever closed before its time, nor are its locks lost."""
        self.limit = limit
        self.opened = 0
        self.reopened = 0
        """How often a file had to be opened again."""
        self.lock = threading.Lock()
        self.idle: dict[HeldFile, None] = {}
        """Open and not in use, the one that was used longest ago first."""

    def surplus(self) -> list[int]:
        """Fds for the caller to close, who holds the lock."""
        fds = []
        while self.limit is not None and self.opened > self.limit and self.idle:
            file = next(iter(self.idle))
            del self.idle[file]
            fds.append(file.fd)
            file.fd = -1
            self.opened -= 1
        return fds


class HeldFile:
    """One backing file: its fd, or how to get it."""

    __slots__ = ("_directory", "_identity", "_pool", "_users", "closed", "fd", "path")

    def __init__(self, pool: OpenFiles, directory: bytes, path: bytes, fd: int) -> None:
        """Take over `fd`. `path` in `directory` is where to open it again."""
        found = os.fstat(fd)
        self._pool = pool
        self._identity = (found.st_dev, found.st_ino)
        self._users = 0
        self._directory = directory
        self.path = path
        self.fd = fd
        self.closed = False
        with pool.lock:
            pool.opened += 1
            pool.idle[self] = None
            surplus = pool.surplus()
        _close(surplus)

    def pin(self) -> int:
        """The fd, which stays open until `unpin`; -1 when it would have to be opened."""
        with self._pool.lock:
            return self._pin()

    def _pin(self) -> int:
        if self.fd >= 0:
            self._users += 1
            self._pool.idle.pop(self, None)
        return self.fd

    def unpin(self) -> None:
        """Done with the fd of a `pin`."""
        pool = self._pool
        surplus: list[int] = []
        with pool.lock:
            self._users -= 1
            if not self._users and self.fd >= 0:
                if self.closed:
                    surplus.append(self._take())
                else:
                    pool.idle[self] = None
                    surplus = pool.surplus()
        _close(surplus)

    @contextmanager
    def use(self, settled: Callable[[int], int]) -> Iterator[int]:
        """The fd for one blocking call: its number must not become another file's meanwhile.

        Opens the file if need be; `settled` is given the new fd and says which one to keep, having
        closed the other. Raises ENOBUFS after `close`, which is what a write after withdrawal gets
        (facts 8.1); EIO when another file is there, or ENOENT.
        """
        fd = self.pin()
        if fd < 0:
            fd = self._reopen(settled)
        try:
            yield fd
        finally:
            self.unpin()

    def _reopen(self, settled: Callable[[int], int]) -> int:
        """Get an fd again, which is pinned at once, else it would be the one to be given up."""
        self._check_open()
        fd = open_cache_file(os.path.join(self._directory, self.path))
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != self._identity:
                raise OSError(errno.EIO, "cache file was replaced", os.fsdecode(self.path))
            fd = settled(fd)
        except BaseException:
            os.close(fd)
            raise
        pool = self._pool
        with pool.lock:
            surplus = [fd]
            if self.fd < 0 and not self.closed:  # nobody was faster
                self.fd = fd
                pool.opened += 1
                pool.reopened += 1
                surplus = pool.surplus()
            pinned = self._pin()
        _close(surplus)
        if pinned < 0:
            self._check_open()
        return pinned

    def _check_open(self) -> None:
        if self.closed:
            raise OSError(errno.ENOBUFS, "the object was withdrawn", os.fsdecode(self.path))

    @property
    def inode(self) -> int:
        """Its inode number."""
        return self._identity[1]

    def stat(self) -> os.stat_result:
        """Its attributes, with or without an fd."""
        fd = self.pin()
        if fd < 0:
            return os.lstat(os.path.join(self._directory, self.path))
        try:
            return os.fstat(fd)
        finally:
            self.unpin()

    def swap(self, settled: Callable[[int], int]) -> None:
        """Have `settled` say which fd to keep of one that is in use by the caller alone."""
        self.fd = settled(self.fd)

    def close(self) -> None:
        """Let go of the file: at once, or when the last thread at work on it has returned."""
        with self._pool.lock:
            self.closed = True
            self._pool.idle.pop(self, None)
            surplus = [self._take()] if self.fd >= 0 and not self._users else []
        _close(surplus)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's file, and with it of its range locks.

        Takes no lock: a fork may have copied it locked, and no thread is left to use the file.
        """
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _take(self) -> int:
        fd, self.fd = self.fd, -1
        self._pool.opened -= 1
        return fd


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
