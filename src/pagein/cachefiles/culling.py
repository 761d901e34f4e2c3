"""What makes room: names culled from the working directory of who says so (facts 11).

The kernel half never evicts by itself: it says when room is short (`space`), and the daemon culls.
A file goes for good; a directory goes to the graveyard, where the daemon removes it at leisure.
What is in use stays. The kernel marks inodes for that; here it is the names of the objects and
volumes in use, and the write lease for what others have open, a direct mount among them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from pagein.cachefiles import namei
from pagein.cachefiles.inuse import claimed, open_cache_file, sole_user

if TYPE_CHECKING:
    from pagein.cachefiles.cache import Cache


def check_name(cache: Cache, cwd: bytes, name: bytes, used: Callable[[bytes], bool]) -> bytes:
    """The path of NAME in the directory `cwd`, after the checks of `inuse`. Blocks.

    `used` tells of a path relative to the cache directory whether anybody of ours uses it. Raises
    OSError: EIO for what is no name; ENOTDIR, ESTALE; EINVAL outside the cache, where the kernel
    acts as well; ENOENT; EBUSY in use.
    """
    if name in (b"", b".", b".."):
        raise OSError(errno.EIO, "no name in a directory", os.fsdecode(name))
    directory = _inside(cache, cwd)
    path = os.path.join(directory, name)
    try:
        found = os.lstat(path)
    except OSError as problem:
        if problem.errno == errno.ENAMETOOLONG:
            raise OSError(errno.EIO, problem.strerror, os.fsdecode(path)) from None
        raise
    relative = os.path.relpath(path, cache.directory)
    # Beside the two directories there are files of ours, which nobody may cull.
    if directory == cache.directory or used(relative) or _open_elsewhere(path, found.st_mode):
        raise OSError(errno.EBUSY, "in use", os.fsdecode(path))
    return path


def _inside(cache: Cache, cwd: bytes) -> bytes:
    try:
        found = os.stat(cwd)
    except OSError as problem:
        raise OSError(errno.ENOTDIR, problem.strerror, os.fsdecode(cwd)) from None
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.ENOTDIR, "no directory to cull from", os.fsdecode(cwd))
    if not found.st_nlink:
        raise OSError(errno.ESTALE, "the working directory was removed")
    directory = os.path.realpath(cwd)
    parts = os.path.relpath(directory, cache.directory).split(b"/")
    if parts[0] not in (b".", namei.CACHE_DIR, namei.GRAVEYARD_DIR):
        text = f"not in the cache {os.fsdecode(cache.directory)}"
        raise OSError(errno.EINVAL, text, os.fsdecode(directory))
    return directory


def _open_elsewhere(path: bytes, mode: int) -> bool:
    """Whether somebody else has a file open, or any file of a directory: it may be mounted."""
    if stat.S_ISREG(mode):
        return _is_open(path)
    if not stat.S_ISDIR(mode):
        return False
    files = (
        os.path.join(place, name)
        for place, _, names in os.walk(path)
        for name in names
        if stat.S_ISREG(os.lstat(os.path.join(place, name)).st_mode)
    )
    return any(_is_open(file) for file in files)


def _is_open(path: bytes) -> bool:
    try:
        fd = open_cache_file(path)
    except BlockingIOError:
        return True
    try:
        return not sole_user(fd)
    finally:
        os.close(fd)


def cull(cache: Cache, path: bytes) -> None:
    """Take away what `check_name` has found. Blocks. Raises ESTALE when it is gone already."""
    try:
        kind = os.lstat(path).st_mode
        if stat.S_ISDIR(kind):
            cache.to_graveyard(path)
        elif stat.S_ISREG(kind):
            with claimed(path):
                os.unlink(path)
        else:
            os.unlink(path)
    except FileNotFoundError as problem:
        raise OSError(errno.ESTALE, "it has gone meanwhile", os.fsdecode(path)) from problem
