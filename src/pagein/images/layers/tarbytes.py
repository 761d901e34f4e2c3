"""Bytes of a layer's tar, out of the compressed layer, from the nearest point of the index on.

Spans are fetched whole and kept (`spans.py`), as many at once as their readers ask for; those too
large for that are decoded by cursors. Who wants the end of one span and the beginning of the next
gets the first blocks of that one only: else a small read could cost two.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from pagein.images.layers.chunks import ChunkDecoder, Decoder
from pagein.images.layers.cursors import Cursors
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression
from pagein.images.layers.guesses import at_once
from pagein.images.layers.gzip import GzipDecoder
from pagein.images.layers.index import Index, Place
from pagein.images.layers.point import Point
from pagein.images.layers.spans import Kept, Span, Transfer, own
from pagein.images.layers.zstd import ZstdDecoder
from pagein.images.layers.zstd.frames import MAX_BLOCK
from pagein.origins.base import Origin

WHOLE: Final = 32 << 20
"""Bytes: larger spans are not decoded whole. Those of zstd have 8 MiB, or three times as much where
points would take too much of an index."""

REQUEST: Final = 4 << 20
"""Bytes of the layer that one request asks for, unless a single span has more."""

FORESEEN_REQUEST: Final = 512 << 10
"""The same, for what is only said to be read soon."""

_LITTLE = 32 << 10  # bytes of the layer: blocks differ
_SKIP = 1 << 20  # bytes of headers that are cheaper passed over than asked for anew

Part = tuple[int, bytes | memoryview]
"""Offset in the tar, and the bytes there."""


class TarBytes:
    """Gives bytes of the tar, not verified; `clear` it at the end."""

    def __init__(self, index: Index, origin: Origin, kept: Kept) -> None:
        self._index = index
        self._origin = origin
        self._kept = kept
        self._spans: dict[int, Span] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._cursors = Cursors(origin, self._decoder)

    def forget(self, start: int, end: int) -> None:
        """What was kept of [start, end) turned out wrong: it has to be fetched again."""
        self._cursors.clear()
        for span in list(self._spans.values()):
            if span.out < end and start < span.out + span.size:
                self._kept.forget(span)

    def has(self, number: int) -> bool:
        """Whether all of a span is in memory."""
        span = self._spans.get(number)
        return span is not None and span.complete

    def begins(self, number: int, until: int) -> bool:
        """Whether of a span that is not here so little is wanted, up to `until` in the tar, that
        behind the one before it only its first blocks are fetched."""
        out, after = self._index.point_out(number), self._index.point_out(number + 1)
        return (
            self._index.header.compression is Compression.ZSTD
            and number not in self._spans
            and after - out <= WHOLE
            and until - out + MAX_BLOCK <= (after - out) // 4
        )

    async def clear(self) -> None:
        """End all requests, and forget everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for span in list(self._spans.values()):
            self._kept.forget(span)
        self._cursors.clear()

    async def parts(self, start: int, end: int, until: int, run: Run) -> AsyncGenerator[Part, None]:
        """Parts that cover [start, end), in order, as they come; the next ones up to `until`.

        A part may begin before `start`, and end after `end`. OSError as the origin; LayerError
        when what it gives cannot be decoded.
        """
        if self._index.header.compression is Compression.NONE:
            async with aclosing(run.parts(start, end)) as parts:
                async for each in parts:
                    yield each
            return
        number = self._index.point_before(start)
        if number < 0:
            raise LayerError(f"no point of the index lies before byte {start} of the tar")
        while number < self._index.points and self._index.point_out(number) < end:
            async with aclosing(self._of_span(number, start, end, until)) as found:
                async for part in found:
                    yield part
            number += 1

    async def _of_span(
        self, number: int, start: int, end: int, until: int
    ) -> AsyncGenerator[Part, None]:
        out, after = self._index.point_out(number), self._index.point_out(number + 1)
        if after - out > WHOLE:
            place = await asyncio.to_thread(self._place, number)
            async with aclosing(
                self._cursors.parts(place, max(start, out), min(end, after))
            ) as found:
                async for part in found:
                    yield part
            return
        have, end = max(start, out), min(end, after)
        until = max(until, end)
        try:
            while have < end:
                span = await self._provide(number, until)
                async with aclosing(span.parts(have, end)) as decoded:
                    async for at, piece in decoded:
                        yield at, piece
                        have = at + len(piece)
                until = max(until, after)  # if what was asked for did not give it
        finally:
            self._kept.shrink()

    # ---- what is said to be read soon

    async def expect(self, start: int, end: int, rank: int) -> bool:
        """Bring the spans of [start, end) here, not decoded; return when they came, or did not.

        Few at a time, in small requests; the lowest `rank` first. False if they are too large: then
        it is not to be read before somebody wants it.
        """
        if self._index.header.compression is Compression.NONE or start >= end:
            return True
        places = await asyncio.to_thread(self._between, start, end)
        if any(place.size > WHOLE for place in places):
            return False
        groups: list[list[Place]] = []
        for place in places:
            if not groups or place.end - groups[-1][0].start > FORESEEN_REQUEST:
                groups.append([])
            groups[-1].append(place)
        await asyncio.gather(*(self._foresee(group, rank) for group in groups))
        return True

    def _between(self, start: int, end: int) -> list[Place]:
        first, last = self._index.point_before(start), self._index.point_before(end - 1)
        return [self._place(number) for number in range(max(first, 0), last + 1)]

    async def _foresee(self, places: list[Place], rank: int) -> None:
        if not any(self._lacks(place.number) for place in places):
            return await self._arrived(places)
        async with self._kept.turns.take(places[-1].end - places[0].start, rank):
            while places := [place for place in places if self._lacks(place.number)]:
                spans = list[Span]()
                for place in places:
                    if spans and place.number != spans[-1].number + 1:
                        break
                    if not self._kept.guesses.foresee(place.end - place.start):
                        break
                    spans.append(self._span(place))
                    spans[-1].foreseen = True
                if not spans:
                    return
                await Transfer(spans, self._origin, self._kept, self._tasks).over()
                places = places[len(spans) :]

    async def _arrived(self, places: list[Place]) -> None:
        """Wait until what is on its way has come, or has not."""
        for place in places:
            span = self._spans.get(place.number)
            if span is not None and span.transfer is not None:
                await span.transfer.over()

    # ---- spans

    async def _provide(self, number: int, until: int) -> Span:
        """A span that is here or on its way; so are those that follow, as far as `until`."""
        last = max(number, self._index.point_before(until - 1))
        while (first := self._missing(number, last, until)) is not None:
            places = await asyncio.to_thread(self._places, first, last + 1)
            places = [place for place in places if self._lacks(place.number, until)]
            self._transfer(places, last, until=until if first == last - 1 else None)
        span = self._spans[number]
        self._kept.touch(span, self._spans)
        if span.foreseen:
            span.foreseen = False
            self._kept.guesses.foreseen(span.length)
        if span.guess is not None:
            self._came_true(span)
        return span

    def _came_true(self, span: Span) -> None:
        """Somebody reads a span that was guessed: guess the next ones."""
        run, span.guess = span.guess or 0, None
        self._kept.guesses.came_true(span.length)
        following = span.number + 1
        if following < self._index.points and self._lacks(following):
            own(self._tasks, self._guess(following, run + 1))

    async def _guess(self, number: int, run: int) -> None:
        with contextlib.suppress(LayerError):  # whoever reads it will meet it
            last = min(number + at_once(run), self._index.points) - 1
            places = await asyncio.to_thread(self._places, number, last)
            self._transfer([place for place in places if self._lacks(place.number)], -1, run)

    def _missing(self, number: int, last: int, until: int) -> int | None:
        """The first span from `number` on that nobody fetches yet, if it is due."""
        ahead = 0
        while number <= last and ahead < REQUEST and not self._large(number):
            if self._lacks(number, until):
                return number
            ahead += self._spans[number].length  # received or not: it is memory
            number += 1
        return None

    def _lacks(self, number: int, until: int | None = None) -> bool:
        """Whether nobody fetches what it is missing; what lies behind `until` does not matter."""
        span = self._spans.get(number)
        if span is None or span.error is not None:
            return span is None or not (span.complete or span.transfer)
        if span.complete or span.transfer is not None:
            return False
        return span.at < span.end and (until is None or span.out + span.reach < until)

    def _large(self, number: int) -> bool:
        return self._index.point_out(number + 1) - self._index.point_out(number) > WHOLE

    def _transfer(
        self, places: list[Place], last: int, run: int = 0, until: int | None = None
    ) -> None:
        """Ask for the first of `places`, and for those that follow without a gap.

        Those beyond `last` are guesses, `run` of which came true before. With `until`, `last` is
        the second of two spans, and may be asked for in part.
        """
        end = None
        guesses, spans = self._kept.guesses, list[Span]()
        for place in places:
            known = self._spans.get(place.number)
            in_part = known is not None and place.start < known.at < place.end
            if spans and (in_part or place.number != spans[-1].number + 1):
                break
            guessed = place.number > last
            if guessed and (self._origin.guided or not guesses.allow(place.end - place.start)):
                break
            in_part = bool(spans) and until is not None and self.begins(place.number, until)
            spans.append(self._span(place))
            if in_part and until is not None:
                spans[-1].reach = until - place.point.out
                end = _first_blocks(place, spans[-1].reach)
                guesses.asked(end - place.start)
                break
            if guessed:
                spans[-1].guess = run
            else:
                guesses.asked(spans[-1].length)
        if spans:
            Transfer(spans, self._origin, self._kept, self._tasks, end)

    def _span(self, place: Place) -> Span:
        span = self._spans.get(place.number)
        if span is not None and span.at == span.end:  # what came cannot be decoded
            self._kept.forget(span)
            span = None
        if span is None:
            span = self._spans[place.number] = Span(place, self._decoder(place), self._tasks)
        self._kept.touch(span, self._spans)
        return span

    def _decoder(self, place: Place) -> Decoder:
        match self._index.header.compression:
            case Compression.GZIP:
                return GzipDecoder(place.point)
            case Compression.GZIP_CHUNKS:
                return ChunkDecoder(place.start, place.end, place.chunks, _member)
            case Compression.ZSTD_CHUNKS:
                return ChunkDecoder(place.start, place.end, place.chunks, _frame)
            case _:
                return ZstdDecoder(place.point)

    # ---- in threads

    def _places(self, first: int, last: int) -> list[Place]:
        """Spans from `first` on, for one request."""
        places = [self._place(first)]
        last = min(last, self._index.points - 1)
        while places[-1].number < last and not self._large(places[-1].number + 1):
            place = self._place(places[-1].number + 1)
            if place.end - places[0].start > REQUEST:
                break
            places.append(place)
        return places

    def _place(self, number: int) -> Place:
        place = self._index.place(number)
        if place.end > self._index.header.layer.size:
            raise LayerError(f"point {number} of the index lies outside of the layer")
        return place


def _first_blocks(place: Place, wanted: int) -> int:
    """Where in the layer those blocks of a span end, most likely, that give `wanted` bytes."""
    give = wanted + MAX_BLOCK
    likely = (place.end - place.start) * give // place.size * 3 // 2 + _LITTLE
    return min(place.end, place.start + min(likely, give + _LITTLE))


def _member(_: int) -> GzipDecoder:
    return GzipDecoder()


def _frame(start: int) -> ZstdDecoder:
    return ZstdDecoder(Point(0, start * 8, b""))


class Run:
    """One pass over a layer that is a plain tar: one request, as long as it goes forward.

    Use it with `contextlib.aclosing`.
    """

    def __init__(self, origin: Origin, end: int) -> None:
        """`end` is where what is wanted of the layer ends."""
        self._origin = origin
        self._end = end
        self._at = 0  # offset of what `_rest` begins with
        self._rest: bytes | memoryview = b""
        self._stream: AsyncIterator[bytes | memoryview] | None = None

    async def parts(self, start: int, end: int) -> AsyncGenerator[Part, None]:
        """The bytes [start, end) of the layer, as they come."""
        if self._stream is None or not self._at <= start <= self._at + _SKIP:
            await self.aclose()
            self._end = max(self._end, end)
            self._stream = self._origin.stream(start, self._end - start)
            self._at, self._rest = start, b""
        while self._at < end:
            if not self._rest:
                piece = await anext(self._stream, None)
                if piece is None:
                    raise LayerError(f"the layer ends at byte {self._at}, not {self._end}")
                self._rest = piece
            taken = min(len(self._rest), end - self._at)
            part = (self._at, self._rest[:taken])
            self._at, self._rest = self._at + taken, self._rest[taken:]
            yield part

    async def aclose(self) -> None:
        """End the request."""
        stream, self._stream = self._stream, None
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
