"""The backing file of one object: what is present in it, and how it is read and written.

Read with pread and POSIX_FADV_RANDOM only, never mmap (facts half-to-half 3). A page is present
when the write that made it has returned; before that the write stands in the table of writes
under way, and if the writer dies the page is dropped.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import mmap
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from pagein.cachefiles import tracepoints
from pagein.cachefiles.inflight import ofd_lock, punch
from pagein.cachefiles.inuse import sole_user
from pagein.cachefiles.openfiles import HeldFile
from pagein.cachefiles.presence import PAGE_SIZE, round_up, whole_pages
from pagein.cachefiles.tracepoints import trace
from pagein.cachefiles.writers import to_its_end
from pagein.rangeset import RangeSet

if TYPE_CHECKING:
    from pagein.cachefiles.cache import Cache

log = logging.getLogger("pagein.cachefiles")

ReadBuffer = memoryview | bytearray | mmap.mmap
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05
"""Seconds between two tries for a range that another process has locked."""


class BackingFile:
    """One open cache file. Methods that block say so; the async ones use threads."""

    __slots__ = (
        "_file",
        "_landed",
        "_owed",
        "_present",
        "_taking_back",
        "_writing",
        "cache",
        "length",
        "path",
        "read_only",
        "written",
    )

    def __init__(self, cache: Cache, path: bytes, fd: int, object_size: int) -> None:
        """Take over `fd`, open for reading and writing, even if this fails; reads the extents.

        Blocks. `path` is relative to the cache directory; `object_size` is in bytes. A complete
        file that somebody else has open, as a direct mount has, is kept open read-only: see
        `read_only`.
        """
        self.cache = cache
        self.path = path
        self._writing: dict[tuple[int, int], asyncio.Event] = {}
        """Ranges that are being written, and when that is over."""
        self._taking_back = threading.Lock()
        self._owed: list[tuple[int, list[tuple[int, int]]]] = []
        """Slots of failed writes, and what has to become a hole again before they are free."""
        self._file = HeldFile(cache.open_files, cache.directory, path, fd)
        self.length = round_up(object_size)
        self.written = 0
        """Bytes written through this object since it was opened."""
        self._present = RangeSet()
        self._landed: list[tuple[int, int, Callable[[int], None] | None]] = []
        """Writes that a thread has ended and `_present` does not have yet."""
        self.read_only = False
        """Whether writes are refused: nothing is missing, and a reader would see them at once
        (design decision 7). A file with holes stays open for writing: it cannot be mounted
        directly, and somebody who copies it must not stop it from being filled."""
        try:
            with self._in_use():
                self._present = self._at_rest(0, self.length)
                self._file.swap(self._settled)
        except BaseException:
            self._file.close()
            raise
        if trace.on:
            trace.event(tracepoints.MARK_ACTIVE, path, self._file.inode)

    def _settled(self, fd: int) -> int:
        """The fd to keep of a file that was just opened, again or for the first time. Blocks."""
        # Not `present`: that is the loop's.
        complete = not self.length or self._present.covers(0, self.length)
        self.read_only = not self.cache.shared and complete and not sole_user(fd)
        kept = fd
        if self.read_only:
            kept = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(kept, 0, 0, os.POSIX_FADV_RANDOM)
        if kept != fd:
            os.close(fd)
        return kept

    @property
    def fd(self) -> int:
        """The file's descriptor, or -1 while it has none."""
        return self._file.fd

    @property
    def blocks(self) -> int:
        """How many blocks of 512 bytes it has on the disk; 0 of one that somebody removed."""
        try:
            return self._file.stat().st_blocks
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Let go of the file: at once, or when the last thread at work on it has returned."""
        if trace.on:
            trace.event(tracepoints.MARK_INACTIVE, self.path, self._file.inode)
        self._file.close()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's file, and with it of its range locks."""
        self._file.abandon()

    def _in_use(self) -> AbstractContextManager[int]:
        """The fd for one blocking call. Raises ENOBUFS after `close`."""
        return self._file.use(self._settled)

    @property
    def present(self) -> RangeSet:
        """What is there, in bytes: whoever was told that a write has ended finds it here."""
        while self._landed:
            offset, written, wrote = self._landed.pop(0)
            # What is no page multiple reaches the object's end: the rest of the page is zeros.
            self._present.add(offset, round_up(offset + written))
            self.written += written
            if wrote is not None:
                wrote(written)
        return self._present

    @property
    def complete(self) -> bool:
        """Whether every page of the object is present."""
        return not self.length or self.present.covers(0, self.length)

    def present_from(self, start: int) -> int:
        """Where the present extent that holds `start` ends, in bytes."""
        gap = self.present.first_gap(start, self.length)
        return gap[0] if gap else self.length

    def _at_rest(self, start: int, end: int) -> RangeSet:
        """What the holes say is there, less what is being or was half written. Blocks."""
        # Before the holes are read, for who drops an entry of the dead meanwhile; and after, for
        # a write that began in between.
        unsure = [*self.cache.inflight.of_path(self.path)]
        found = self._data(start, end)
        unsure += self.cache.inflight.of_path(self.path)
        if self.cache.shared:
            # Another process's write may have begun, failed and been taken back in between.
            again = self._data(start, end)
            found = RangeSet(part for each in again for part in found.intersection(*each))
            unsure += self.cache.inflight.of_path(self.path)
        for first, last in unsure:
            found.discard(first & -PAGE_SIZE, round_up(last))
        return found

    def _data(self, start: int, end: int) -> RangeSet:
        with self._in_use() as fd:
            return whole_pages(fd, start, end)

    def read_now(self, buffers: Sequence[ReadBuffer], offset: int) -> int:
        """preadv that never waits for the disk: bytes read, or -1 when it would have to."""
        if (fd := self._file.pin()) < 0:
            return -1
        if trace.on:
            trace.event(tracepoints.READ, self.path, offset, sum(map(len, buffers)))
        try:
            return os.preadv(fd, buffers, offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return -1
            if error.errno == errno.EOPNOTSUPP:  # tmpfs, which is memory
                return os.preadv(fd, buffers, offset)
            raise
        finally:
            self._file.unpin()

    def read(self, buffers: Sequence[ReadBuffer], offset: int) -> int:
        """preadv. Blocks. Raises EIO when the object was withdrawn meanwhile."""
        try:
            with self._in_use() as fd:
                if trace.on:
                    trace.event(tracepoints.READ, self.path, offset, sum(map(len, buffers)))
                return os.preadv(fd, buffers, offset)
        except OSError as problem:
            raise OSError(errno.EIO, problem.strerror, os.fsdecode(self.path)) from problem

    def read_ahead(self, offset: int, length: int) -> None:
        """Have a range read into memory, all of which must be present. Blocks.

        Not what is absent: no page of a hole may get into the page cache before its data.
        """
        with suppress(OSError), self._in_use() as fd:
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)

    def drop_page_cache(self, offset: int, length: int) -> None:
        """Let go of clean pages in memory that a reader's own cache now holds. Blocks."""
        with suppress(OSError), self._in_use() as fd:
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def lseek(self, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE over what is present, not over what the file system shows.

        ENXIO past the last data, as lseek(2).
        """
        if offset < 0 or offset >= self.length:
            raise OSError(errno.ENXIO, "past the end of the object")
        gap = self.present.first_gap(offset, self.length)
        if whence == os.SEEK_HOLE:
            return gap[0] if gap else self.length
        if gap is None or gap[0] > offset:
            return offset
        if gap[1] >= self.length:
            raise OSError(errno.ENXIO, "no data past this offset")
        return gap[1]

    async def write(
        self,
        data: memoryview,
        offset: int,
        *,
        then: Callable[[int], None] | None = None,
        wrote: Callable[[int], None] | None = None,
    ) -> int:
        """Write `data` at `offset`, a page multiple; returns the bytes written.

        Whole pages written are present when this returns. `then` hears how many bytes that are, in
        the thread that wrote them: for an answer that need not wait for the loop. `wrote` hears
        the same on the loop, before anybody there finds them present. `data` must stay as it is
        meanwhile and be resident memory: a copy cut short by a kill must not leave zeros.

        Raises the OSError of the file system when nothing could be written, ENOSPC among them, and
        EBUSY when the file is mounted directly.
        """
        while (writing := self.begin_write(data, offset, then=then, wrote=wrote)) is None:
            if (over := self._in_the_way(offset, round_up(offset + len(data)))) is not None:
                await over.wait()
        return await to_its_end(writing)

    def begin_write(
        self,
        data: memoryview,
        offset: int,
        *,
        then: Callable[[int], None] | None = None,
        wrote: Callable[[int], None] | None = None,
    ) -> asyncio.Future[int] | None:
        """As `write`, which has begun when this returns; None while another write is in the way.

        The future must not be cancelled. What a failed write takes back could be what another has
        just written: so nobody writes a range while somebody else writes any of it.
        """
        self._check_writable()
        end = round_up(offset + len(data))
        if self._in_the_way(offset, end) is not None:
            return None
        absent = list(self.present.gaps(offset, end))

        def write() -> int:
            written = self._write(data, offset, absent)
            self._landed.append((offset, written, wrote))
            if then is not None:
                then(written)
            return written

        writing = self.cache.writers.start(write)
        self._writing[offset, end] = asyncio.Event()
        writing.add_done_callback(lambda _: self._write_ended(offset, end))
        return writing

    def idle(self, offset: int, length: int) -> bool:
        """Whether a write of this range could begin at once."""
        return self._in_the_way(offset, round_up(offset + length)) is None

    def _in_the_way(self, start: int, end: int) -> asyncio.Event | None:
        """Set when somebody who writes some of a range has ended."""
        for (low, high), over in self._writing.items():
            if low < end and start < high:
                return over
        return None

    def _write_ended(self, start: int, end: int) -> None:
        self._writing.pop((start, end)).set()
        _ = self.present  # which takes in what has landed

    def _check_writable(self) -> None:
        if self.read_only:
            raise OSError(errno.EBUSY, "cache file is in use", os.fsdecode(self.path))

    def _write(self, data: memoryview, offset: int, absent: list[tuple[int, int]]) -> int:
        with self._in_use() as fd:
            self._check_writable()  # once more: the file may just have been opened again
            self._take_back_owed(fd)
            self._check_room(fd, len(data))
            with self.cache.space.writing(len(data)):
                written, problem = self._write_entered(fd, data, offset, absent)
        if problem is not None and not written:
            raise problem
        return written

    def _check_room(self, fd: int, length: int) -> None:
        """ENOBUFS below the stop marks, also to who writes again what is there (facts 8.1, 11)."""
        try:
            self.cache.space.check(fd, length=length)
        except OSError as problem:
            log.warning("%s: %s", os.fsdecode(self.path), problem.strerror)
            raise

    def _write_entered(
        self, fd: int, data: memoryview, offset: int, absent: list[tuple[int, int]]
    ) -> tuple[int, BaseException | None]:
        """Write with an entry in the table: how many bytes, and what stopped it."""
        slot = self.cache.inflight.enter(self.path, offset, len(data))
        if trace.on:
            trace.event(tracepoints.WRITE, self.path, offset, len(data))
        written, problem = self._write_all(fd, data, offset)
        if problem is None:
            self.cache.inflight.strike(slot)
            return written, None
        if trace.on:
            number = getattr(problem, "errno", None) or 0
            trace.event(tracepoints.VFS_ERROR, self.path, "write", -number)
        # Whole pages only, and of the rest nothing may be left: on a full disk ext4 has
        # blocks of zeros, which would pass for data, where it says it wrote nothing.
        written -= written % PAGE_SIZE
        rest = [(max(low, offset + written), high) for low, high in absent]
        with self._taking_back:
            self._owed.append((slot, [(low, high) for low, high in rest if low < high]))
        self._take_back_owed(fd)
        return written, problem

    def _write_all(
        self, fd: int, data: memoryview, offset: int
    ) -> tuple[int, BaseException | None]:
        """How many bytes could be written, and what stopped it."""
        done = 0
        try:
            while done < len(data):
                done += self.cache.store(fd, data[done:], offset + done)
        except BaseException as problem:
            return done, problem
        return done, None

    def _take_back_owed(self, fd: int) -> None:
        """Punch what failed writes may have left; until that is done their entries stay."""
        # Locked until the holes are there: who writes these ranges next comes through here first.
        with self._taking_back:
            while self._owed:
                slot, ranges = self._owed[-1]
                for low, high in ranges:
                    punch(fd, low, high - low)
                self.cache.inflight.strike(slot)
                self._owed.pop()

    @asynccontextmanager
    async def claim(
        self, start: int, end: int, *, timeout: float
    ) -> AsyncIterator[list[tuple[int, int]]]:
        """Lock [start, end) against other processes; yields what is missing of it now.

        For caches shared by library processes: whoever holds the range fetches it, the others
        wait here and then find it present. Raises TimeoutError after `timeout` seconds.
        """
        give_up = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while not self._lock_range(start, end):
            if time.monotonic() > give_up:
                raise TimeoutError(
                    errno.ETIMEDOUT, "another process holds this range", os.fsdecode(self.path)
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        try:
            loop = asyncio.get_running_loop()
            for found in await loop.run_in_executor(None, self._at_rest, start, end):
                self.present.add(*found)
            yield list(self.present.gaps(start, end))
            if self.present.covers(start, end):
                self.cache.inflight.clear_dead(self.path, start, end)
        finally:
            if self.fd >= 0:  # else the lock went with it
                ofd_lock(self.fd, fcntl.F_UNLCK, start, end - start)

    def _lock_range(self, start: int, end: int) -> bool:
        with self._in_use() as fd:
            return ofd_lock(fd, fcntl.F_WRLCK, start, end - start)
