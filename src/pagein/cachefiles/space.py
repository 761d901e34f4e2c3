"""How much is free below a cache, looked at when something is added to it (facts 11).

The rules are those of `protocol.space`. What the daemon is told by POLLOUT, in both modes, and in
the original mode by the line that a read() of the device returns, is kept here.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pagein.cachefiles.presence import PAGE_SIZE
from pagein.protocol.space import Limits, Marks, State


class Space:
    """The marks of one bound cache, and whether room is short. Methods may run in any thread."""

    def __init__(self, fd: int, limits: Limits, changed: Callable[[], None]) -> None:
        """Compute the marks of the file system of `fd`, and no others later: so the kernel does.

        `changed` is called, in whatever thread, when there is news for pollers. Blocks.
        """
        found = os.fstatvfs(fd)
        self._block = found.f_frsize
        self._changed = changed
        self._lock = threading.Lock()
        self._writing = 0
        self._released = [0, 0]
        self.marks = Marks.of(limits, found.f_files, found.f_blocks)
        self.culling = False
        """Room is short: POLLOUT."""
        self.news = False
        """Something changed since the last read of the state: POLLIN in the original mode."""

    def check(self, fd: int, *, files: int = 0, length: int = 0) -> None:
        """See whether so many files and bytes more are allowed; `fd` is any in the cache. Blocks.

        Raises ENOBUFS when they would leave less than the stop marks; culling begins then, as it
        does below the cull marks, and ends at the run marks.
        """
        found = os.fstatvfs(fd)
        with self._lock:
            # Pages, whatever the size of a block: so the kernel counts.
            blocks = max(0, found.f_bavail - self._writing - (length + PAGE_SIZE - 1) // PAGE_SIZE)
            free = max(0, found.f_ffree - files)
            before = self.culling
            self.culling = self.marks.culls(free, blocks, culling=before)
            news = self.culling != before
            self.news |= news
        if news:
            self._changed()
        if self.marks.stops(free, blocks):
            raise OSError(
                errno.ENOBUFS,
                f"No space left for the cache: {free} files and {blocks} blocks are free,"
                f" {self.marks.fstop} and {self.marks.bstop} must stay",
            )

    @contextmanager
    def writing(self, length: int) -> Iterator[None]:
        """Count a write that is under way: what it takes is not taken from what is free yet."""
        blocks = (length + self._block - 1) // self._block
        with self._lock:
            self._writing += blocks
        try:
            yield
        finally:
            with self._lock:
                self._writing -= blocks

    def released(self, blocks: int) -> None:
        """An object was given back that has so many blocks of 512 bytes on the disk."""
        with self._lock:
            self._released[0] += 1
            self._released[1] += blocks
            self.news = True
        self._changed()

    def state(self, fd: int, size: int) -> bytes:
        """The line of the original mode's read(), after a look at what is free. Blocks.

        Raises EMSGSIZE for a buffer that is too small; the counters are lost by then, as in the
        kernel (facts 3.1).
        """
        try:
            self.check(fd)
        except OSError as problem:
            if problem.errno != errno.ENOBUFS:
                raise
        with self._lock:
            files, blocks = self._released
            self._released = [0, 0]
            self.news = False
            line = State(self.culling, self.marks, files, blocks).encode()
        if len(line) > size:
            raise OSError(errno.EMSGSIZE, f"the state of the cache takes {len(line)} bytes")
        return line
