"""Sequential readers of a blob: what of the backing file to read ahead, and what to let go of.

EROFS keeps what it has read in its own page cache. So behind a stream the backing file's pages are
of no use any more. Ahead of it the kernel reads nothing (the backing file is POSIX_FADV_RANDOM,
facts half-to-half 3): a stream from disk would wait for each of EROFS's 128 KiB reads in turn.

Pure: no I/O, no clock. What is present is the caller's to check.
"""

from __future__ import annotations

from typing import NamedTuple

DROP_STEP = 8 << 20
"""Bytes of a stream after which the pages behind it are let go."""
AHEAD = 4 << 20
"""Bytes that are read ahead of a stream which had to wait for the disk."""
_SLACK = 512 << 10  # bytes: EROFS has some reads under way at once, and they end in any order


class Span(NamedTuple):
    """A byte range: offset and length."""

    offset: int
    length: int


class Advice(NamedTuple):
    """What to do now: None is nothing."""

    drop: Span | None
    ahead: Span | None


class Stream:
    """Follows the reads of one file; more than one reader at once is taken for none."""

    def __init__(self) -> None:
        self._at = 0  # end of the furthest read
        self._dropped_to = 0
        self._ahead_to: int | None = None  # None: no read had to wait

    def follow(self, offset: int, length: int, *, waited: bool) -> Advice:
        """A read of [offset, offset + length) was answered; `waited`: its data came from disk."""
        if not -_SLACK <= offset - self._at <= _SLACK:
            self._at, self._dropped_to, self._ahead_to = offset + length, offset, None
            return Advice(None, None)
        self._at = max(self._at, offset + length)
        if waited and self._ahead_to is None:
            self._ahead_to = self._at
        return Advice(self._drop(), self._read_ahead())

    def _drop(self) -> Span | None:
        behind = Span(self._dropped_to, self._at - self._dropped_to)
        if behind.length < DROP_STEP:
            return None
        self._dropped_to = self._at
        return behind

    def _read_ahead(self) -> Span | None:
        """The next part, when less than half of the last one is left."""
        if self._ahead_to is None or self._ahead_to - self._at > AHEAD // 2:
            return None
        start = max(self._ahead_to, self._at)
        self._ahead_to = start + AHEAD
        return Span(start, AHEAD)
