"""What readers take of the blobs, and what was brought that nobody has read.

Bytes that are fetched ahead are worth it if they are read, and only this half hears of that: data
that is resident is read without a READ. So each byte that the user half writes is unread until
EROFS asks for it the first time. EROFS reads ahead itself; what it asks for counts as read. Of a
blob that is mounted directly nothing is heard, and what a predecessor left unread is forgotten.
"""

from __future__ import annotations

from pagein.cachefiles.object import CachefilesObject
from pagein.fscache import Cookie
from pagein.protocol.numbers import Number, Numbers
from pagein.rangeset import RangeSet

# A read of what is here takes some 15 us in all: plain indices, and no tuples as keys.
_READS, _MISSES, _READ_BYTES = (int(n) for n in (Number.READS, Number.MISSES, Number.READ_BYTES))


class Readership:
    """Keeps the numbers of a kernel half."""

    def __init__(self, numbers: Numbers) -> None:
        """Go on with `numbers`, which a predecessor may have begun."""
        self.numbers = numbers
        self._cells = numbers.cells
        self._unread: dict[CachefilesObject, RangeSet] = {}
        numbers[Number.UNREAD_BYTES] = 0

    def read(self, cookie: Cookie, offset: int, length: int, missed: bool) -> None:
        """EROFS is given a range of a blob, of which something was `missed` when it asked."""
        cells = self._cells
        cells[_READS] += 1
        cells[_READ_BYTES] += length
        if missed:
            cells[_MISSES] += 1
        unread = self._unread.get(cookie.object)
        if unread and unread.overlaps(offset, offset + length):
            touched = unread.intersection(offset, offset + length)
            self.numbers[Number.UNREAD_BYTES] -= sum(high - low for low, high in touched)
            unread.discard(offset, offset + length)

    def wrote(self, obj: CachefilesObject, offset: int, length: int) -> None:
        """The user half wrote a range."""
        unread = self._unread.setdefault(obj, RangeSet())
        self.numbers[Number.WRITTEN_BYTES] += length
        added = sum(high - low for low, high in unread.gaps(offset, offset + length))
        self.numbers[Number.UNREAD_BYTES] += added
        unread.add(offset, offset + length)

    def withdrawn(self, cookie: Cookie) -> None:
        """Nobody uses a blob any more."""
        if (unread := self._unread.pop(cookie.object, None)) is not None:
            self.numbers[Number.UNREAD_BYTES] -= unread.total
            self.numbers[Number.WASTED_BYTES] += unread.total
