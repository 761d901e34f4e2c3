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
from collections.abc import Iterator
from contextlib import contextmanager


def sole_user(fd: int) -> bool:
    """Whether `fd`, open for writing, is the only open file description of its file.

    False also where that cannot be known.
    """
    return _lease(fd, fcntl.F_WRLCK)


def no_writer(fd: int) -> bool:
    """Whether nobody has the file of `fd`, open read-only, open for writing."""
    return _lease(fd, fcntl.F_RDLCK)


def _lease(fd: int, kind: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EINVAL):  # EINVAL: no leases on this file system
            return False
        raise
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


@contextmanager
def claimed(path: bytes) -> Iterator[int]:
    """Open a cache file for a change in place or its removal, as its only user.

    Yields the file descriptor. Raises EBUSY when anybody else has the file open.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not sole_user(fd):
            raise OSError(errno.EBUSY, "cache file is in use", os.fsdecode(path))
        yield fd
    finally:
        os.close(fd)
