"""Which bytes of one blob are present, and which are in flight: nothing is asked for twice.

The loop changes this, and a thread that has bytes at hand takes ranges in it; so all of it is under
one lock, held for no longer than a look or a change takes.
"""

from __future__ import annotations

import threading

from pagein.daemon.readahead import Plan, Policy
from pagein.protocol.messages import PAGE_SIZE
from pagein.rangeset import RangeSet


class Ranges:
    """What is present (in the cache) and in flight (on its way) of a blob, in whole pages.

    Attributes:
        present: changed by the methods only, on the loop; there it may be looked at.
    """

    def __init__(self, size: int) -> None:
        """`size` is that of the blob in bytes."""
        self.present = RangeSet()
        self._limit = -(-size // PAGE_SIZE) * PAGE_SIZE
        self._inflight = RangeSet()
        self._lock = threading.Lock()
        self._closed = False

    def pages(self, off: int, length: int) -> tuple[int, int]:
        """The whole pages that [off, off + length) touches, as far as the blob has them."""
        if off < 0 or length < 0:
            raise ValueError(f"not a range: {length} bytes at {off}")
        start = min(off // PAGE_SIZE * PAGE_SIZE, self._limit)
        end = min(-(-(off + length) // PAGE_SIZE) * PAGE_SIZE, self._limit)
        return (start, end) if length else (start, start)

    @property
    def complete(self) -> bool:
        """Whether all of the blob is present."""
        return self.present.covers(0, self._limit)

    def within(self, low: int, high: int) -> tuple[int, int] | None:
        """The whole pages within [low, high); the blob's last one may end beyond its bytes."""
        start, end = -(-low // PAGE_SIZE) * PAGE_SIZE, min(high, self._limit)
        end = end // PAGE_SIZE * PAGE_SIZE
        return (start, end) if start < end else None

    def missing(self, start: int, end: int) -> bool:
        """Whether some of [start, end) is neither present nor in flight."""
        with self._lock:
            return bool(self._gaps(start, end))

    def first_missing(self, start: int) -> tuple[int, int] | None:
        """The first range from `start` on that is neither present nor in flight."""
        with self._lock:
            while start < self._limit and (gap := self.present.first_gap(start, self._limit)):
                if (free := self._inflight.first_gap(*gap)) is not None:
                    return free
                start = gap[1]
        return None

    def claim(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that were neither; now they are in flight."""
        with self._lock:
            gaps = self._gaps(start, end)
            for gap in gaps:
                self._inflight.add(*gap)
        return gaps

    def take(self, start: int, end: int) -> bool:
        """In any thread: claim all of [start, end), if nothing of it is either."""
        with self._lock:
            if self._closed or self.present.overlaps(start, end):
                return False
            if self._inflight.overlaps(start, end):
                return False
            self._inflight.add(start, end)
        return True

    def release(self, start: int, end: int) -> None:
        """[start, end) is in flight no more: it is present, or a gap again."""
        with self._lock:
            self._inflight.discard(start, end)

    def arrived(self, start: int, end: int) -> None:
        """[start, end) is present now."""
        with self._lock:
            self.present.add(start, end)

    def forget(self, start: int, end: int) -> None:
        """[start, end) is not present any more."""
        with self._lock:
            self.present.discard(start, end)

    def plan(
        self,
        policy: Policy,
        off: int,
        length: int,
        *,
        limit: int,
        round_trip: int | None,
        lead: int | None,
    ) -> Plan:
        """What `policy` wants to be fetched for a READ, as things are."""
        with self._lock:
            return policy.plan(
                off,
                length,
                self.present,
                self._inflight,
                limit=limit,
                round_trip=round_trip,
                lead=lead,
            )

    def close(self) -> None:
        """From now on nothing can be taken."""
        with self._lock:
            self._closed = True

    def _gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        missing = self.present.gaps(start, end)
        return [gap for each in missing for gap in self._inflight.gaps(*each)]
