"""What of a file is there: its holes, read once, and whether a file system tells them exactly.

At rest the holes of the backing file are the truth, as in the kernel; there is no bitmap that
could get out of step (design decision 3). While an object is open the range set made here is
kept up by our own writes, because a file system may show a page as data before it is whole
(facts half-to-half 3).
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from typing import IO

from pagein.rangeset import RangeSet

PAGE_SIZE = 4096
_PROBE_SIZE = 4 << 20


class InexactHoles(OSError):
    """This file system does not tell data from holes page by page; EOPNOTSUPP."""


def round_up(value: int) -> int:
    """`value` bytes rounded up to whole pages."""
    return (value + PAGE_SIZE - 1) & -PAGE_SIZE


def data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Byte ranges in [start, end) that SEEK_DATA and SEEK_HOLE report as data. Blocks."""
    at = start
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if data >= end:
            return
        at = os.lseek(fd, data, os.SEEK_HOLE)
        yield data, min(at, end)


def whole_pages(fd: int, start: int, end: int) -> RangeSet:
    """The whole pages in [start, end) that are data; `start` and `end` are page multiples."""
    found = RangeSet()
    for first, last in data_ranges(fd, start, end):
        first, last = round_up(first), last & -PAGE_SIZE
        if first < last:
            found.add(first, last)
    return found


def probe(directory: str | bytes) -> None:
    """Check that files in `directory` show holes exactly, page by page. Blocks.

    A page of data and a page of zeros in a sparse file must show as just those two pages, also
    after the hole was read (facts half-to-half 3: tmpfs with huge=always, xfs with an extent size
    hint). Raises InexactHoles naming the directory, or the OSError met on the way; EOPNOTSUPP
    where no file can be made whoever asks, as in /proc (facts cachefiles-kernel 2.2).
    """
    with _new_file(directory) as file:
        fd = file.fileno()
        os.ftruncate(fd, _PROBE_SIZE)
        wanted = []
        for offset, page in ((1 << 20, b"\xa5" * PAGE_SIZE), (3 << 20, bytes(PAGE_SIZE))):
            os.pread(fd, PAGE_SIZE, offset + PAGE_SIZE)
            os.pwrite(fd, page, offset)
            wanted.append((offset, offset + PAGE_SIZE))
            _compare(fd, wanted, directory)
        os.fsync(fd)
        _compare(fd, wanted, directory)
        _check_xattr(fd, directory)


def _new_file(directory: str | bytes) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=os.fsdecode(directory), prefix="pagein-probe-")
    except OSError as error:
        refused = error.errno in (errno.EACCES, errno.EPERM) and os.access(directory, os.W_OK)
        if refused or (error.errno == errno.ENOENT and os.path.isdir(directory)):
            text = f"files cannot be made there ({error.strerror})"
            raise OSError(errno.EOPNOTSUPP, text, os.fsdecode(directory)) from None
        raise


def _compare(fd: int, wanted: list[tuple[int, int]], directory: str | bytes) -> None:
    found = list(data_ranges(fd, 0, _PROBE_SIZE))
    if found == wanted:
        return
    claimed = sum(end - start for start, end in found)
    raise InexactHoles(
        errno.EOPNOTSUPP,
        f"its file system does not tell holes exactly ({len(wanted)} pages written, {claimed >> 10}"
        " KiB reported as data); use a plain ext4, xfs, btrfs or tmpfs directory, without huge"
        " pages and without an extent size hint",
        os.fsdecode(directory),
    )


def _check_xattr(fd: int, directory: str | bytes) -> None:
    try:
        os.setxattr(fd, "user.CacheFiles.probe", b"1")
    except OSError as error:
        raise OSError(
            errno.EOPNOTSUPP,
            f"its file system keeps no user extended attributes ({error.strerror})",
            os.fsdecode(directory),
        ) from None
