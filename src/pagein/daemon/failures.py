"""Ranges that just failed, so that the same failure is not waited for again and again.

The kernel answers a failed READ by asking for each of its pages anew (facts cachefiles-kernel 9.4):
without a memory a dead server would cost one deadline per page. Errors are not cached beyond that:
whoever comes later tries again.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable
from typing import Final

REMEMBERED: Final = 0.5
"""Seconds for which a failure is remembered."""

_MOST = 4096  # ranges


class RecentFailures:
    """Byte ranges and their errors, oldest first. Time, in seconds, is the caller's."""

    def __init__(self) -> None:
        self._known: deque[tuple[float, int, int, Exception]] = deque(maxlen=_MOST)

    def add(self, ranges: Iterable[tuple[int, int]], error: Exception, now: float) -> None:
        """Remember that `ranges` failed."""
        for start, end in ranges:
            self._known.append((now + REMEMBERED, start, end, error))

    def find(self, ranges: Iterable[tuple[int, int]], now: float) -> Exception | None:
        """The error of the latest failure that overlaps one of `ranges`, or None."""
        while self._known and self._known[0][0] <= now:
            self._known.popleft()
        if not self._known:
            return None
        wanted = list(ranges)
        for _, low, high, error in reversed(self._known):
            if any(low < end and start < high for start, end in wanted):
                return error
        return None


def again(error: Exception) -> OSError:
    """A fresh exception of the same meaning: one must not be raised twice."""
    number = error.errno if isinstance(error, OSError) else None
    fresh = OSError(number or errno.EIO, text_of(error))
    fresh.__cause__ = error
    return fresh


def text_of(error: Exception) -> str:
    """What `error` says, in one line."""
    if isinstance(error, OSError) and len(error.args) > 1:
        return str(error.args[1])
    return str(error) or type(error).__name__
