"""Sorted, disjoint ranges of integers: which bytes are present, in flight, wanted."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import ClassVar


class RangeSet:
    """A set of integers from 0 on, held as half-open ranges `(start, end)`.

    Ranges that touch are one range. With n ranges a lookup costs O(log n); a change costs that and
    a move of list entries. Every method takes `start <= end`, both at least 0, and raises
    ValueError otherwise; the empty range is covered by every set and overlaps none.

    The iterators are over what the set was when they were asked for: the set may change while one
    of them is in use.
    """

    __slots__ = ("_ends", "_starts")
    __hash__: ClassVar[None]  # type: ignore[assignment]  # it changes

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Make a set of `ranges`, in any order, which may touch and overlap."""
        # Two lists instead of one of pairs, so that bisect compares plain integers.
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add [start, end)."""
        _check(start, end)
        if start == end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def discard(self, start: int, end: int) -> None:
        """Remove [start, end), as far as it is there."""
        first, last = self._touched(start, end)
        if first == last:
            return
        rest = [(self._starts[first], start), (end, self._ends[last - 1])]
        kept = [(low, high) for low, high in rest if low < high]
        self._starts[first:last] = [low for low, _ in kept]
        self._ends[first:last] = [high for _, high in kept]

    def covers(self, start: int, end: int) -> bool:
        """Return whether all of [start, end) is in the set."""
        _check(start, end)
        if start == end:
            return True
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and end <= self._ends[index]

    def overlaps(self, start: int, end: int) -> bool:
        """Return whether any of [start, end) is in the set."""
        first, last = self._touched(start, end)
        return first < last

    def intersection(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Return the parts of [start, end) that are in the set, in order."""
        return iter(self._inside(start, end))

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Return the parts of [start, end) that are not in the set, in order."""
        missing: list[tuple[int, int]] = []
        for low, high in self._inside(start, end):
            if start < low:
                missing.append((start, low))
            start = high
        if start < end:
            missing.append((start, end))
        return iter(missing)

    def first_gap(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the first of `gaps(start, end)`, or None if there is none; O(log n)."""
        _check(start, end)
        index = bisect_right(self._ends, start)
        if index < len(self._starts) and self._starts[index] <= start:
            start = self._ends[index]
            index += 1
        if index < len(self._starts):
            end = min(end, self._starts[index])
        return (start, end) if start < end else None

    @property
    def total(self) -> int:
        """How many integers are in the set; O(n)."""
        return sum(self._ends) - sum(self._starts)

    def copy(self) -> RangeSet:
        """Return an independent set of the same ranges."""
        twin = RangeSet()
        twin._starts = self._starts.copy()
        twin._ends = self._ends.copy()
        return twin

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Return the ranges, in order."""
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __len__(self) -> int:
        """Return the number of ranges (see `total` for that of integers)."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    def __repr__(self) -> str:
        return f"RangeSet({list(self)!r})"

    def _touched(self, start: int, end: int) -> tuple[int, int]:
        """Return the slice of the lists whose ranges share an integer with [start, end)."""
        _check(start, end)
        if start == end:
            return 0, 0
        return bisect_right(self._ends, start), bisect_left(self._starts, end)

    def _inside(self, start: int, end: int) -> list[tuple[int, int]]:
        first, last = self._touched(start, end)
        pairs = zip(self._starts[first:last], self._ends[first:last], strict=True)
        return [(max(start, low), min(end, high)) for low, high in pairs]


def _check(start: int, end: int) -> None:
    if not 0 <= start <= end:
        raise ValueError(f"not a range: [{start}, {end})")
