"""The small table on disk of writes under way, dropped at the next bind (design decision 3).

A write to a cache file is entered here before the first byte moves and struck out when it has
returned. Who is killed in between leaves its entry behind, and whoever comes next knows which
pages may be half written, whatever the file system says about holes. The table is one file of
fixed slots, read through a mapping; the page cache keeps what was entered when a process dies.

Slots come in lanes. A process owns a lane by an open-file-description lock, so that several
processes (the library) share one table; a kernel half owns the cache alone and needs just one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from pagein.cachefiles.inuse import open_cache_file, sole_user
from pagein.cachefiles.namei import CACHE_DIR
from pagein.cachefiles.presence import PAGE_SIZE, round_up
from pagein.rangeset import RangeSet

FILE_NAME = b"pagein.inflight"
LANES = 128
SLOTS_PER_LANE = 8
_SLOT = struct.Struct("<QQH")
_PATH_LEN_AT = 16
_SLOT_SIZE = 1024
_MAX_PATH = _SLOT_SIZE - _SLOT.size
_LANE_SIZE = SLOTS_PER_LANE * _SLOT_SIZE
_MAX_END = (1 << 63) - (1 << 12)
_FLOCK = struct.Struct("hhqqi4x")
F_OFD_SETLK = 37
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
"""There is no cache file of that name (any more)."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""A full disk does not let an entry be dropped: it stays until there is room."""


def ofd_lock(fd: int, kind: int, start: int, length: int) -> bool:
    """Try an open-file-description lock (F_WRLCK, F_RDLCK, F_UNLCK) on a byte range of `fd`.

    Returns False when another open file description holds it. Never blocks.
    """
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


@dataclass(frozen=True, slots=True)
class Entry:
    """A write of `length` bytes at `offset` into the file `path`, relative to the cache."""

    slot: int
    path: bytes
    offset: int
    length: int


class InflightTable:
    """The table of one cache directory, as seen by one process."""

    def __init__(self, directory: bytes) -> None:
        """Open or make the table and take a free lane. Raises EBUSY when no lane is free."""
        size = LANES * _LANE_SIZE
        path = os.path.join(directory, FILE_NAME)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(self._fd)
            if found.st_size < size:
                os.ftruncate(self._fd, size)
            if found.st_blocks * 512 < size:
                # Where the disk is full a load from a hole of a mapped file is SIGBUS on tmpfs. A
                # store is on others, on btrfs always: so it is written by pwrite.
                os.posix_fallocate(self._fd, 0, size)
            self._map = mmap.mmap(self._fd, size, prot=mmap.PROT_READ)
        except BaseException:
            os.close(self._fd)
            raise
        try:
            self._lane = self._take_lane()
        except BaseException:
            self._map.close()
            os.close(self._fd)
            raise
        first = self._lane * SLOTS_PER_LANE
        self._free = list(range(first, first + SLOTS_PER_LANE))
        self._unstruck: list[int] = []
        """Slots of writes that have returned, which a full disk did not let us strike out."""
        self._lock = threading.Lock()
        self._closed = False

    def _take_lane(self) -> int:
        for lane in range(LANES):
            if ofd_lock(self._fd, fcntl.F_WRLCK, lane * _LANE_SIZE, _LANE_SIZE):
                if not any(self._lane_entries(lane)):
                    return lane
                ofd_lock(self._fd, fcntl.F_UNLCK, lane * _LANE_SIZE, _LANE_SIZE)
        raise OSError(errno.EBUSY, f"more than {LANES} processes use this cache")

    def close(self) -> None:
        """Give the lane back, when the last write under way has returned."""
        with self._lock:
            self._closed = True
            self._end_if_last()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's lane. A lock may have been copied locked."""
        self._map.close()  # it has a duplicate of the fd, and so of the lock
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _end_if_last(self) -> None:
        if self._closed and len(self._free) + len(self._unstruck) == SLOTS_PER_LANE:
            self.abandon()

    def enter(self, path: bytes, offset: int, length: int) -> int:
        """Enter a write that is about to start; returns its slot.

        Raises OSError: EBUSY when full, ENOBUFS after `close`, ENAMETOOLONG, ENOSPC.
        """
        if len(path) > _MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, "path too long for the table of writes under way")
        with self._lock:
            self._check_open()
            self._strike_late()
            if not self._free:
                raise OSError(errno.EBUSY, "more writes under way than the table has slots")
            slot = self._free.pop()
        try:
            # Within one page, so whole or not at all for whoever looks after we were killed.
            os.pwrite(self._fd, _SLOT.pack(offset, length, len(path)) + path, slot * _SLOT_SIZE)
        except OSError:
            self.strike(slot)
            raise
        return slot

    @property
    def slots_free(self) -> int:
        """How many further writes can be entered now."""
        return len(self._free)

    def strike(self, slot: int) -> None:
        """Strike out a write that has returned."""
        with self._lock:
            self._unstruck.append(slot)
            with contextlib.suppress(OSError):  # then the entry stays, which is safe
                self._strike_late()
            self._end_if_last()

    def _strike_late(self) -> None:
        while self._unstruck:
            self._clear(self._unstruck[-1])
            self._free.append(self._unstruck.pop())

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.ENOBUFS, "the cache directory was given back")

    def _clear(self, slot: int) -> None:
        os.pwrite(self._fd, b"\0\0", slot * _SLOT_SIZE + _PATH_LEN_AT)

    def _read(self, slot: int) -> Entry | None:
        at = slot * _SLOT_SIZE
        offset, length, path_len = _SLOT.unpack_from(self._map, at)
        if not path_len or path_len > _MAX_PATH or not length:
            return None
        path = self._map[at + _SLOT.size : at + _SLOT.size + path_len]
        return Entry(slot, path, offset, length) if _possible(path, offset + length) else None

    def _lane_entries(self, lane: int) -> Iterator[Entry]:
        for slot in range(lane * SLOTS_PER_LANE, (lane + 1) * SLOTS_PER_LANE):
            entry = self._read(slot)
            if entry is not None:
                yield entry

    def entries(self) -> Iterator[Entry]:
        """Every write entered by any process, living or dead."""
        # The lengths of all paths, each of two bytes: nearly always all are 0.
        low, high = self._map[_PATH_LEN_AT::_SLOT_SIZE], self._map[_PATH_LEN_AT + 1 :: _SLOT_SIZE]
        if low.count(0) == high.count(0) == len(low):
            return
        for lane in range(LANES):
            yield from self._lane_entries(lane)

    def of_path(self, path: bytes) -> RangeSet:
        """The ranges of one file with a write under way, or left behind by the dead."""
        with self._lock:
            self._check_open()
            ranges = [(e.offset, e.offset + e.length) for e in self.entries() if e.path == path]
        return RangeSet(ranges)

    def clear_dead(self, path: bytes, start: int, end: int) -> None:
        """Strike entries of `path` inside [start, end) that are not ours.

        Only for who holds the range lock of [start, end) and has written it again: a living
        writer would hold that lock, so the entry's owner is dead.
        """
        for entry in self.entries():
            ours = entry.slot // SLOTS_PER_LANE == self._lane
            inside = start <= entry.offset and entry.offset + entry.length <= end
            if entry.path == path and inside and not ours:
                with contextlib.suppress(OSError):  # a full disk
                    self._clear(entry.slot)

    def drop_dead(self, directory: bytes) -> list[Entry]:
        """Punch what dead processes left half written; returns the entries dropped. Blocks.

        A lane whose lock can be had has no owner. An entry whose file somebody else has open, a
        process or an EROFS mount, stays: they may take it for present. It is left out of what is
        present for everybody who opens the file until the range has been written again.
        """
        dropped: list[Entry] = []
        for lane in range(LANES):
            if lane == self._lane or not any(self._lane_entries(lane)):
                continue
            if not ofd_lock(self._fd, fcntl.F_WRLCK, lane * _LANE_SIZE, _LANE_SIZE):
                continue
            for entry in self._lane_entries(lane):
                try:
                    if _punch_entry(os.path.join(directory, entry.path), entry):
                        self._clear(entry.slot)
                        dropped.append(entry)
                except OSError as problem:
                    if problem.errno not in _FULL:
                        raise
            ofd_lock(self._fd, fcntl.F_UNLCK, lane * _LANE_SIZE, _LANE_SIZE)
        return dropped


def _possible(path: bytes, end: int) -> bool:
    """Whether an entry can have been made by `enter`: a damaged table must not punch elsewhere."""
    parts = path.split(b"/")
    return parts[0] == CACHE_DIR and b".." not in parts and b"\0" not in path and end <= _MAX_END


def _punch_entry(path: bytes, entry: Entry) -> bool:
    try:
        fd = open_cache_file(path)
    except BlockingIOError:
        return False
    except OSError as problem:
        if problem.errno not in _NO_FILE:
            raise
        return True
    # Whole pages: the write of a tail that is none would leave zeros in the rest of its page.
    start = entry.offset & -PAGE_SIZE
    length = round_up(entry.offset + entry.length) - start
    try:
        # First the range, then the question who else is there: somebody who opens the file from
        # now on takes the range for missing, and must not fill it before it is punched.
        if not ofd_lock(fd, fcntl.F_WRLCK, start, length) or not sole_user(fd):
            return False
        punch(fd, start, length)
        return True
    finally:
        os.close(fd)


def punch(fd: int, offset: int, length: int) -> None:
    """Make [offset, offset + length) of an open cache file a hole again. Blocks."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
