"""How much to fetch for one READ: the granule policy, pure and in one place.

What is asked for is known, what will be asked next is guessed. Too small a guess costs a round trip
per READ, too large a one fetches an image of which a hundredth is used: a directory walk over a
single-file image touches 7 % of it in 4 KiB granules, 35 % in 64 KiB and 74 % in 1 MiB ones (facts
half-to-half 5). So a random READ fetches little around itself, a larger one nothing but itself, and
only a proven stream grows:

* A READ is sent only for data that is not resident. A reader that consumes what was prefetched is
  silent, and its next READ comes exactly where the last window ended: that is a *miss at the edge*,
  it proves the stream, and the next window is larger.
* A reader that is faster than the link catches up with the fetch; its READs hit what is in flight.
  The next window is planned while half of the current one is left, and what the link carries in a
  round trip; or a little before the link would idle, where its rate is known.
* Files that lie next to each other, read one after the other, are a stream like any other.
* READs at equal distances are a stream too: of what lies between them nothing is fetched.

A proven stream starts with what the link carries in a round trip: less would leave the link idle,
and if nothing of it is read, it has cost the link the time of one more READ. Where READs turn
random, or streams end soon, it is half of that, a quarter, and so on, until a stream goes on.

A page of metadata is asked for as one READ of 4 KiB. Its neighbours are often file data that nobody
wants, so it gets a quarter of the granule.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from pagein.protocol.messages import PAGE_SIZE
from pagein.rangeset import RangeSet

GRANULE: Final = 64 << 10
"""Bytes fetched around a random READ of more than a page, and of no more than half of this."""

PAGE_GRANULE: Final = 16 << 10
"""Bytes fetched around a random READ of one page."""

WINDOW_MAX: Final = 16 << 20
"""Bytes of the largest window of a stream."""

STREAMS: Final = 32
"""Streams that are followed at once in one blob; the one unused for longest is forgotten."""

STRIDE_MOST: Final = 16 << 20
"""Bytes between two READs of a strided stream, at most."""

# A window should not take longer than this: another READ of its range has to wait behind it. The
# least is so large that a window still shows how fast the origin is.
_WINDOW_SECONDS = 1.0
_WINDOW_LEAST = 1 << 20
_LONG = 4 << 20  # bytes: a stream whose windows are so large will go on without being asked
_LEAD = 0.03  # seconds beyond a round trip: so early the next window is asked for
_SKIP = 128 << 10  # bytes: READs of one reader's read-ahead may arrive in another order
_RECENT = 8  # random READs that the next one may be at equal distances to
_STRIDES = 8  # strided streams that are followed at once
_STEPS_MOST = 64  # READs that are fetched ahead of one of them
_RANDOM = 2  # random READs in a row that halve the credit of streams
_HALVED = 8  # times, at most
_SHRINK = 4  # random READs in a row that halve the windows of streams


Range = tuple[int, int]


class Plan(NamedTuple):
    """Half-open byte ranges: what to fetch now, and what may follow when nobody waits."""

    demand: Range
    ahead: tuple[Range, ...] = ()


@dataclass(slots=True)
class _Stream:
    start: int  # of the window that was planned last
    edge: int  # its end
    window: int  # its length
    pos: int  # end of the furthest READ
    proven: bool = False


@dataclass(slots=True)
class _Stride:
    first: int  # where some READ of it was
    step: int
    length: int
    edge: int  # where the first READ will be that is not planned
    steps: int  # that were planned at once


def window_limit(speed: float | None) -> int:
    """Bytes of the largest window that makes sense where `speed` bytes come in a second."""
    if speed is None:
        return WINDOW_MAX
    return max(_WINDOW_LEAST, int(min(speed * _WINDOW_SECONDS, WINDOW_MAX)))


def lead_of(speed: float | None, rtt: float | None) -> int | None:
    """How many bytes before the end of a window the next one is asked for; `rtt` in seconds."""
    return None if speed is None else int(speed * ((rtt or 0.0) + _LEAD))


class Policy:
    """The streams of one blob, and what to fetch for its next READ. No I/O, no clock."""

    def __init__(self, size: int) -> None:
        """`size` is that of the blob in bytes; plans end at its last page."""
        self._end = -(-size // PAGE_SIZE) * PAGE_SIZE
        self._streams: OrderedDict[int, _Stream] = OrderedDict()
        self._strides: deque[_Stride] = deque(maxlen=_STRIDES)
        self._recent: deque[Range] = deque(maxlen=_RECENT)
        self._random_in_a_row = 0
        self._lost = 0  # streams that did not go on, lately
        self._next_id = 0

    def plan(
        self,
        off: int,
        length: int,
        present: RangeSet,
        inflight: RangeSet,
        *,
        limit: int = WINDOW_MAX,
        round_trip: int | None = None,
        lead: int | None = None,
    ) -> Plan:
        """What to fetch for a READ of `length` > 0 bytes at `off`, within the blob.

        `limit` is the largest window in bytes that makes sense now: on a slow link a large one
        would stand in the way of the next READ. `round_trip` is how many bytes the link carries in
        a round trip, if that is known; `lead` is how many bytes before the end of a window the next
        one has to be asked for, if the rate is known: sooner, the two would share the link, and
        the reader wait for bytes that others take the room of. The demand always contains the READ.
        """
        end = min(off + length, self._end)
        limit = max(GRANULE, min(limit // PAGE_SIZE * PAGE_SIZE, WINDOW_MAX))
        start = None if round_trip is None else round_trip // PAGE_SIZE * PAGE_SIZE
        stream = self._find(off, present)
        if stream is not None:
            if stream.proven:
                self._random_in_a_row = 0
            elif end - off < stream.window and inflight.overlaps(stream.start, stream.edge):
                return self._rest(stream, off, end)
            if off == stream.edge or end > stream.edge:
                return self._grow(stream, off, end, limit, start)
            near = stream.window // 2 + min(start or 0, limit)
            return self._follow(stream, off, end, limit, start, min(near, lead or near))
        stride = self._find_stride(off, end)
        if stride is not None:
            return self._step(stride, off, end, limit, start)
        return self._random(off, end, present, inflight)

    def follow(self, edge: int, *, limit: int = WINDOW_MAX) -> Range:
        """What to fetch, perhaps nothing, when a fetch that ends at `edge` is over.

        If that was of a long stream, its reader is behind it, and silent: the link need not wait
        for its next READ. Seen in this window it has to be, so no more than one goes beyond what a
        READ has asked for.
        """
        limit = max(GRANULE, min(limit // PAGE_SIZE * PAGE_SIZE, WINDOW_MAX))
        for stream in self._streams.values():
            seen = stream.proven and stream.pos - stream.start >= _SKIP
            long = seen and stream.window > max(limit // 2, _LONG)
            if stream.edge == edge < self._end and long:
                self._next_window(stream, limit, None)
                return edge, stream.edge
        return edge, edge

    # ---- streams

    def _find(self, off: int, present: RangeSet) -> _Stream | None:
        """The stream that a READ at `off` continues."""
        for key in reversed(self._streams):
            stream = self._streams[key]
            if off == stream.edge or (
                stream.start <= off < stream.edge and _goes_on(stream, off, present)
            ):
                self._streams.move_to_end(key)
                return stream
        return None

    def _rest(self, stream: _Stream, off: int, end: int) -> Plan:
        """What EROFS asks for at once may come as two READs: the smaller rest proves nothing."""
        stream.pos = max(stream.pos, end)
        stream.edge = max(stream.edge, end)
        return Plan((off, end))

    def _grow(self, stream: _Stream, off: int, end: int, limit: int, start: int | None) -> Plan:
        """A miss at the edge, or across it."""
        self._next_window(stream, limit, start)
        stream.start, stream.pos = off, end
        stream.edge = min(max(stream.edge, end), self._end)
        return Plan((off, stream.edge))

    def _follow(
        self, stream: _Stream, off: int, end: int, limit: int, start: int | None, near: int
    ) -> Plan:
        """A READ of what is in flight: plan the next window when less than `near` is left."""
        progress = end > stream.pos
        stream.pos = max(stream.pos, end)
        if not progress or stream.edge - end > near or stream.edge >= self._end:
            return Plan((off, end))
        edge = stream.edge
        self._next_window(stream, limit, start)
        return Plan((off, end), ((edge, stream.edge),))

    def _next_window(self, stream: _Stream, limit: int, start: int | None) -> None:
        """Larger than the last one, from its end on; `start` stays for READs behind."""
        least = 2 * stream.window
        if stream.proven:
            self._lost = max(0, self._lost - 2)
        elif start is not None:
            least = max(least, (start >> self._doubt()) // PAGE_SIZE * PAGE_SIZE)
            self._lost = min(self._lost + 1, _HALVED)
        stream.proven = True
        stream.window = min(least, limit)
        stream.start, stream.edge = stream.pos, min(stream.edge + stream.window, self._end)

    # ---- strides

    def _find_stride(self, off: int, end: int) -> _Stride | None:
        """The strided stream that a READ continues; it may be the one that shows it."""
        for stride in self._strides:
            if (
                off <= stride.edge
                and off >= stride.first
                and not (off - stride.first) % stride.step
            ):
                return stride
        for start, stop in reversed(self._recent):
            step = off - start
            if end - off < step <= STRIDE_MOST and self._equally_far(off, step):
                found = _Stride(start, step, max(end - off, stop - start), off, 1)
                self._strides.append(found)
                return found
        return None

    def _equally_far(self, off: int, step: int) -> bool:
        """Whether a READ is the third in a row, or the fourth of the last ones, so far apart.

        Of READs at random places in a small region three are so now and then by chance.
        """
        if [start for start, _ in self._recent][-2:] == [off - 2 * step, off - step]:
            return True
        known = {start for start, _ in self._recent}
        return all(off - number * step in known for number in (1, 2, 3))

    def _step(self, stride: _Stride, off: int, end: int, limit: int, start: int | None) -> Plan:
        """A READ at equal distance to others: plan the next ones, twice as many as before."""
        stride.length = max(stride.length, end - off)
        if stride.edge - off > stride.steps * stride.step // 2 and off != stride.edge:
            return Plan((off, end))  # far from the last one that is planned
        room = min(limit, max(start or 0, 2 * GRANULE)) // stride.length
        stride.steps = max(1, min(2 * stride.steps, room, _STEPS_MOST))
        first = max(stride.edge, off + stride.step)
        stride.edge = off + (stride.steps + 1) * stride.step
        ahead = [
            (at, min(at + stride.length, self._end))
            for at in range(first, stride.edge, stride.step)
            if at < self._end
        ]
        return Plan((off, end), tuple(ahead))

    # ---- random READs

    def _random(self, off: int, end: int, present: RangeSet, inflight: RangeSet) -> Plan:
        if present.first_gap(off, end) is None or inflight.covers(off, end):
            return Plan((off, end))  # on its way already; no evidence of anything
        self._note_random(off, end)
        start, stop = off, end
        if end - off <= GRANULE // 2:
            granule = PAGE_GRANULE if end - off <= PAGE_SIZE else GRANULE
            start = off // granule * granule
            stop = min(-(-end // granule) * granule, self._end)
        self._streams[self._next_id] = _Stream(start, stop, stop - start, end)
        self._next_id += 1
        if len(self._streams) > STREAMS:
            self._streams.popitem(last=False)
        return Plan((start, stop))

    def _note_random(self, off: int, end: int) -> None:
        self._recent.append((off, end))
        self._random_in_a_row += 1
        if self._random_in_a_row % _SHRINK == 0:
            for stream in self._streams.values():
                if stream.proven:
                    stream.window = max(stream.window // 2 // PAGE_SIZE * PAGE_SIZE, GRANULE)

    def _doubt(self) -> int:
        """How often the first window of a stream is halved."""
        return min(self._random_in_a_row // _RANDOM + self._lost, _HALVED)


def _goes_on(stream: _Stream, off: int, present: RangeSet) -> bool:
    """Whether a READ within the window is of its reader: there, or beyond what is here already."""
    if not stream.proven:
        return off <= stream.pos
    return off <= stream.pos + _SKIP or present.covers(stream.pos, off - _SKIP)
