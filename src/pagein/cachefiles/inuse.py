"""Who else has a cache file open: asked of the kernel, so that no mark can go stale.

A write lease (fcntl F_SETLEASE, F_WRLCK) is granted only when nobody but the asker has the file
open. A kernel EROFS mount made directly on the file has it open for as long as it is mounted,
whoever made it and whatever died since; measured on ext4, xfs and btrfs. So everything that would
truncate, punch, replace or remove a cache file asks here first (design decision 7).
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

_LEASE_HELD = 2.0
"""Seconds that an open waits for the lease of somebody who is just asking (microseconds)."""


def open_cache_file(path: bytes, access: int = os.O_RDWR) -> int:
    """Open a cache file, never through a link, never waiting for a FIFO.

    Blocks while somebody else asks who has the file open. Raises OSError; BlockingIOError when a
    lease on it is held for longer than that, FileNotFoundError also when it was culled just now.
    """
    flags = access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    give_up = time.monotonic() + _LEASE_HELD
    while True:
        try:
            return _with_name(os.open(path, flags), path)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise
        time.sleep(0.0005)


def _with_name(fd: int, path: bytes) -> int:
    """The fd, if its file has a name still: what is written to another is lost."""
    try:
        if not os.fstat(fd).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "it was removed just now", os.fsdecode(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def sole_user(fd: int) -> bool:
    """Whether `fd`, open for writing, is the only open file description of its file.

    False also where that cannot be known.
    """
    return _lease(fd, fcntl.F_WRLCK)


def no_writer(fd: int) -> bool:
    """Whether nobody has the file of `fd`, open read-only, open for writing."""
    return _lease(fd, fcntl.F_RDLCK)


def _lease(fd: int, kind: int) -> bool:
    if not _take_lease(fd, kind):
        return False
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def _take_lease(fd: int, kind: int) -> bool:
    # Who opens the file while the lease is held makes the kernel signal us, by default with
    # SIGIO, which kills a process that does not expect it. SIGURG is ignored by default.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EINVAL):  # EINVAL: no leases on this file system
            return False
        raise
    return True


@contextmanager
def claimed(path: bytes, access: int = os.O_RDWR) -> Iterator[int]:
    """Open a cache file for a change in place or its removal, as its only user.

    Yields the file descriptor; until the end nobody else gets the file open, and `open_cache_file`
    waits. Raises EBUSY when anybody else has the file open.
    """
    fd = open_cache_file(path, access)
    try:
        if not _take_lease(fd, fcntl.F_WRLCK):
            raise OSError(errno.EBUSY, "cache file is in use", os.fsdecode(path))
        yield fd
    finally:
        os.close(fd)  # and with it goes the lease
