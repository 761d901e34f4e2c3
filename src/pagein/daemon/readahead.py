"""How much to fetch for one READ: the granule policy, pure and in one place.

What is asked for is known, what will be asked next is guessed. Too small a guess costs a round trip
per READ, too large a one fetches an image of which a hundredth is used: a directory walk over a
single-file image touches 7 % of it in 4 KiB granules, 35 % in 64 KiB and 74 % in 1 MiB ones (facts
half-to-half 5). So a random READ fetches little around itself, and only a proven stream grows:

* A READ is sent only for data that is not resident. A reader that consumes what was prefetched is
  silent, and its next READ comes exactly where the last window ended: that is a *miss at the edge*,
  it proves the stream, and the next window is twice as large.
* A reader that is faster than the link catches up with the fetch; its READs hit what is in flight.
  When one of them comes within half a window of the end, the next window is planned while the
  current one still runs, so the link never idles.

A page of metadata is asked for as one READ of 4 KiB. Its neighbours are often file data that nobody
wants, so it gets a quarter of the granule.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

from pagein.protocol.messages import PAGE_SIZE
from pagein.rangeset import RangeSet

GRANULE: Final = 64 << 10
"""Bytes fetched around a random READ of more than a page."""

PAGE_GRANULE: Final = 16 << 10
"""Bytes fetched around a random READ of one page."""

WINDOW_MAX: Final = 16 << 20
"""Bytes of the largest window of a stream."""

STREAMS: Final = 32
"""Streams that are followed at once in one blob; the one unused for longest is forgotten."""

_SKIP = 128 << 10  # bytes: READs of one reader's read-ahead may arrive in another order


class Plan(NamedTuple):
    """Half-open byte ranges: what to fetch now, and what may follow when nobody waits."""

    demand: tuple[int, int]
    ahead: tuple[int, int] | None


@dataclass(slots=True)
class _Stream:
    start: int  # of the window that was planned last
    edge: int  # its end
    window: int  # its length
    pos: int  # end of the furthest READ


class Policy:
    """The streams of one blob, and what to fetch for its next READ. No I/O, no clock."""

    def __init__(self, size: int) -> None:
        """`size` is that of the blob in bytes; plans end at its last page."""
        self._end = -(-size // PAGE_SIZE) * PAGE_SIZE
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._next_id = 0

    def plan(
        self,
        off: int,
        length: int,
        present: RangeSet,
        inflight: RangeSet,
        *,
        limit: int = WINDOW_MAX,
    ) -> Plan:
        """What to fetch for a READ of `length` > 0 bytes at `off`, within the blob.

        `limit` is the largest window in bytes that makes sense now: on a slow link a large one
        would stand in the way of the next READ. The demand always contains the READ.
        """
        end = min(off + length, self._end)
        limit = max(GRANULE, min(limit // PAGE_SIZE * PAGE_SIZE, WINDOW_MAX))
        stream = self._find(off)
        if stream is None:
            return self._random(off, end, present, inflight)
        if off == stream.edge or end > stream.edge:
            return self._grow(stream, off, end, limit)
        return self._follow(stream, off, end, limit)

    def _find(self, off: int) -> _Stream | None:
        """The stream that a READ at `off` continues."""
        for key in reversed(self._streams):
            stream = self._streams[key]
            at_edge = off == stream.edge
            in_window = stream.start <= off < stream.edge and off <= stream.pos + _SKIP
            if at_edge or in_window:
                self._streams.move_to_end(key)
                return stream
        return None

    def _random(self, off: int, end: int, present: RangeSet, inflight: RangeSet) -> Plan:
        if present.first_gap(off, end) is None or inflight.covers(off, end):
            return Plan((off, end), None)  # on its way already; no evidence of anything
        granule = PAGE_GRANULE if end - off <= PAGE_SIZE else GRANULE
        start = off // granule * granule
        stop = min(-(-end // granule) * granule, self._end)
        self._streams[self._next_id] = _Stream(start, stop, stop - start, end)
        self._next_id += 1
        if len(self._streams) > STREAMS:
            self._streams.popitem(last=False)
        return Plan((start, stop), None)

    def _grow(self, stream: _Stream, off: int, end: int, limit: int) -> Plan:
        """A miss at the edge, or across it."""
        self._next_window(stream, limit)
        stream.start, stream.pos = off, end
        stream.edge = min(max(stream.edge, end), self._end)
        return Plan((off, stream.edge), None)

    def _follow(self, stream: _Stream, off: int, end: int, limit: int) -> Plan:
        """A READ of what is in flight: plan the next window when half of this one is left."""
        progress = end > stream.pos
        stream.pos = max(stream.pos, end)
        far = stream.edge - end > stream.window // 2
        if not progress or far or stream.edge >= self._end:
            return Plan((off, end), None)
        edge = stream.edge
        self._next_window(stream, limit)
        return Plan((off, end), (edge, stream.edge))

    def _next_window(self, stream: _Stream, limit: int) -> None:
        """Twice as large as the last one, from its end on; `start` stays for READs behind."""
        stream.window = min(2 * stream.window, limit)
        stream.start, stream.edge = stream.pos, min(stream.edge + stream.window, self._end)
