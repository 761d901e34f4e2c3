"""From what was touched to what is requested: spans of the compressed layer, in few large pieces.

A layer is entered at the points of its index; what lies between two, a span, is fetched whole. The
spans that a trace touches are put together into *runs* of neighbours, in the order of the first
touch of each run, and a run is cut into pieces of a size that suits a request. The data of a piece
is one range of the data blob. Neighbours share the chunk that lies across the two of them: it is of
the later one, which comes next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from pagein.images.layers.enough import enough
from pagein.images.layers.format import Compression
from pagein.images.layers.index import Index
from pagein.images.layers.tarbytes import WHOLE
from pagein.rangeset import RangeSet

PIECE: Final = 2 << 20
"""Bytes of the compressed layer in one request; a single span may have more."""
GAP: Final = 256 << 10
"""Bytes of it that are fetched though nobody wants them, to save a request: about what a link
carries in one round trip."""

_UNPACKED = 1 << 20  # bytes of a plain tar that count as a span


@dataclass(frozen=True, slots=True)
class Want:
    """[start, end) of the data blob, in bytes; of two, the one with the lower rank comes first."""

    rank: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One request: [low, high) of the compressed layer, for [start, end) of the data blob."""

    rank: int
    low: int
    high: int
    start: int
    end: int


def plan(index: Index, wanted: Iterable[Want], taken: set[int] | None = None) -> list[Piece]:
    """The pieces for `wanted`, in order. LayerError when the index is damaged; may wait for disk.

    Spans too large to be decoded at once are left out: they are read from their beginning anyway.
    So are those whose numbers are in `taken`; numbers of those that are not are added to it.
    """
    spans = _Spans(index, sorted(wanted, key=attrgetter("rank")))
    pieces: list[Piece] = []
    for run in spans.runs(set() if taken is None else taken):
        pieces += spans.cut(run)
    # Stable: pieces of a run have the rank of the run, and stay in their order.
    return sorted(pieces, key=attrgetter("rank"))


@dataclass(slots=True)
class _Span:
    """What is wanted of a span: a range of the blob, in whole chunks."""

    rank: int
    start: int
    end: int
    until: int = 0
    """Up to where in the tar it is wanted."""
    low: int = 0
    high: int = 0


class _Spans:
    """The spans of a layer that somebody wants."""

    def __init__(self, index: Index, wanted: Sequence[Want]) -> None:
        self._index = index
        self._plain = index.header.compression is Compression.NONE
        self._found: dict[int, _Span] = {}
        if not wanted:
            return
        chunk, size = index.header.chunk, index.header.blob_size
        first = max(0, min(want.start for want in wanted)) // chunk * chunk
        last = min(-(-max(want.end for want in wanted) // chunk) * chunk, size)
        self._pieces = list(index.pieces(first, last))
        self._offsets = [piece.offset for piece in self._pieces]
        seen = RangeSet()  # what came with a lower rank: nothing is looked at twice
        for want in wanted:
            start = want.start // chunk * chunk
            end = min(-(-want.end // chunk) * chunk, size)
            if 0 <= want.start < end:
                for low, high in seen.gaps(start, end):
                    self._add(want.rank, low, high)
                seen.add(start, end)

    def _add(self, rank: int, start: int, end: int) -> None:
        """Note which spans the chunks [start, end) of the blob are made of, chunk by chunk."""
        chunk = self._index.header.chunk
        for at in range(start, end, chunk):
            upto = min(at + chunk, end)
            numbers, until = self._made_of(at, upto)
            for number in numbers:
                span = self._found.setdefault(number, _Span(rank, at, upto))
                span.start, span.end = min(span.start, at), max(span.end, upto)
                span.until = max(span.until, until)

    def _made_of(self, start: int, end: int) -> tuple[Iterable[int], int]:
        at = max(0, bisect_right(self._offsets, start) - 1)
        first = last = -1
        until = 0
        while at < len(self._pieces) and self._pieces[at].offset < end:
            piece = self._pieces[at]
            low, high = max(start, piece.offset), min(end, piece.offset + piece.length)
            if low < high:
                position = piece.position + low - piece.offset
                first = self._number(position) if first < 0 else first
                until = position + high - low
                last = self._number(until - 1)
            at += 1
        return (range(first, last + 1) if first >= 0 else ()), until

    def _number(self, position: int) -> int:
        return position // _UNPACKED if self._plain else self._index.point_before(position)

    def _packed(self, number: int, until: int) -> tuple[int, int] | None:
        """Where a span lies in the compressed layer, as far as it is wanted, up to `until`.

        None if it is too large for us.
        """
        if self._plain:
            return number * _UNPACKED, min((number + 1) * _UNPACKED, self._index.header.layer.size)
        if self._index.point_out(number + 1) - self._index.point_out(number) > WHOLE:
            return None
        place = self._index.place(number)
        if self._index.header.compression is not Compression.ZSTD:
            return place.start, place.end
        return place.start, enough(place, min(until - place.out, place.size), place.start, 0)

    def runs(self, taken: set[int]) -> list[list[_Span]]:
        """Neighbours, with what little lies between."""
        runs: list[list[_Span]] = []
        before = -1
        for number in sorted(self._found.keys() - taken):
            between, before = range(before + 1, number), number
            span = self._found[number]
            if (packed := self._packed(number, span.until)) is None:
                continue
            span.low, span.high = packed
            apart = not runs or span.low > runs[-1][-1].high + GAP
            if not apart and taken.isdisjoint(between):
                runs[-1].append(span)
            else:
                runs.append([span])
        taken.update(self._found)
        return runs

    def cut(self, run: list[_Span]) -> list[Piece]:
        """The pieces of a run."""
        rank = min(span.rank for span in run)
        pieces: list[Piece] = []
        group: list[_Span] = []
        for span, after in zip(run, [*run[1:], None], strict=True):
            group.append(span)
            start, end = group[0].start, max(each.end for each in group)
            if after is not None:
                end = min(end, after.start)  # a chunk that both share comes with the later one
                if end <= start or after.high - group[0].low <= PIECE:
                    continue
            pieces.append(Piece(rank, group[0].low, group[-1].high, start, end))
            group = []
        return pieces
