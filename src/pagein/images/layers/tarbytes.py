"""Bytes of a layer's tar, out of the compressed layer, from the nearest point of the index on.

Spans are fetched and kept (`spans.py`), as many at once as their readers ask for; those too large
for that are decoded by cursors. Those of zstd are fetched up to what is wanted of them: they are
ten times as long as those of gzip, and half of one is not read, mostly.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from pagein.images.layers.chunks import ChunkDecoder, Decoder
from pagein.images.layers.cursors import Cursor, Cursors
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression
from pagein.images.layers.guesses import at_once
from pagein.images.layers.gzip import GzipDecoder
from pagein.images.layers.index import Index, Place
from pagein.images.layers.point import Point
from pagein.images.layers.spans import Kept, Span
from pagein.images.layers.transfer import Transfer, own
from pagein.images.layers.zstd import ZstdDecoder
from pagein.origins.base import Origin

WHOLE: Final = 32 << 20
"""Bytes: larger spans are not decoded whole. Those of zstd have 8 MiB, or three times as much where
points would take too much of an index."""

REQUEST: Final = 4 << 20
"""Bytes of the layer that one request asks for, unless a single span has more."""

FORESEEN_REQUEST: Final = 512 << 10
"""The same, for what is only said to be read soon."""

GUESSED_MOST: Final = 1 << 20
"""Bytes of the layer of a span that may be guessed: more of it takes longer than a round trip."""

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

    def reach(self, number: int, until: int) -> int:
        """Up to where in the tar a span is at hand when somebody has read up to `until`."""
        after = self._index.point_out(number + 1)
        if not self.in_part:
            return after
        span = self._spans.get(number)
        return min(after, until if span is None else max(until, span.out + span.filled))

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
            async with aclosing(self._of_span(number, start, end, until, run)) as found:
                async for part in found:
                    yield part
            number += 1

    async def _of_span(
        self, number: int, start: int, end: int, until: int, run: Run
    ) -> AsyncGenerator[Part, None]:
        out, after = self._index.point_out(number), self._index.point_out(number + 1)
        if after - out > WHOLE:
            place = await asyncio.to_thread(self._place, number)
            async with aclosing(
                run.decoded(self._cursors, place, max(start, out), min(end, after))
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
        await asyncio.gather(*(self._foresee(group, end, rank) for group in groups))
        return True

    def _between(self, start: int, end: int) -> list[Place]:
        first, last = self._index.point_before(start), self._index.point_before(end - 1)
        return [self._place(number) for number in range(max(first, 0), last + 1)]

    async def _foresee(self, places: list[Place], until: int, rank: int) -> None:
        if not any(self._lacks(place.number, until) for place in places):
            await self._arrived(places)
        lacking = [place for place in places if self._lacks(place.number, until)]
        if not lacking:
            return
        size = sum(self._span(place).new(until) for place in lacking)
        async with self._kept.turns.take(size, rank) as came:
            while places := [place for place in places if self._lacks(place.number, until)]:
                spans = list[Span]()
                for place in places:
                    if spans and place.number != spans[-1].number + 1:
                        break
                    span = self._span(place)
                    if not self._kept.guesses.foresee(span.new(until)):
                        break
                    span.foreseen += span.ask(until)
                    spans.append(span)
                if not spans:
                    return
                await Transfer(spans, self._origin, self._kept, self._tasks, came).over()
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
            self._transfer(places, last, until)
        span = self._spans[number]
        if span.transfer is not None and span.out + span.reach < min(until, span.out + span.size):
            self._kept.guesses.asked(span.ask(until))
        self._kept.touch(span, self._spans)
        if span.foreseen:
            self._kept.guesses.foreseen(span.foreseen)
            span.foreseen = 0
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
            self._transfer([place for place in places if self._lacks(place.number)], -1, run=run)

    def _missing(self, number: int, last: int, until: int) -> int | None:
        """The first span from `number` on that nobody fetches yet, if it is due."""
        ahead = 0
        while number <= last and ahead < REQUEST and not self.large(number):
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

    def large(self, number: int) -> bool:
        """Whether a span is not decoded whole, but by cursors."""
        return self._index.point_out(number + 1) - self._index.point_out(number) > WHOLE

    def _transfer(
        self, places: list[Place], last: int, until: int | None = None, run: int = 0
    ) -> None:
        """Ask for the first of `places`, and for those that follow without a gap, up to `until`.

        Those beyond `last` are guesses, `run` of which came true before.
        """
        guesses, spans = self._kept.guesses, list[Span]()
        for place in places:
            known = self._spans.get(place.number)
            begun = known is not None and place.start < known.at < place.end
            if spans and (begun or place.number != spans[-1].number + 1):
                break
            if place.number > last:
                if not self._may_guess(place):
                    break
                spans.append(self._span(place))
                spans[-1].guess = run
                spans[-1].ask()
                continue
            spans.append(self._span(place))
            guesses.asked(spans[-1].ask(until))
            if spans[-1].due < place.end:
                break
        if spans:
            Transfer(spans, self._origin, self._kept, self._tasks)

    def _may_guess(self, place: Place) -> bool:
        size = place.end - place.start
        small = size <= GUESSED_MOST and not self._origin.guided
        return small and self._kept.guesses.allow(size)

    def _span(self, place: Place) -> Span:
        span = self._spans.get(place.number)
        if span is not None and span.failed:
            self._kept.forget(span)
            span = None
        if span is None:
            span = Span(place, self._decoder, self._tasks, whole=not self.in_part)
            self._spans[place.number] = span
        self._kept.touch(span, self._spans)
        return span

    @property
    def in_part(self) -> bool:
        """Whether spans are so large that only what is wanted of them is fetched."""
        return self._index.header.compression is not Compression.GZIP

    def _decoder(self, place: Place) -> Decoder:
        """In a thread: one that stands at the beginning of a span."""
        match self._index.header.compression:
            case Compression.GZIP:
                return GzipDecoder(self._index.point(place.number))
            case Compression.GZIP_CHUNKS:
                return ChunkDecoder(place.start, place.end, place.chunks, _member)
            case Compression.ZSTD_CHUNKS:
                return ChunkDecoder(place.start, place.end, place.chunks, _frame)
            case _:
                return ZstdDecoder(self._index.point(place.number))

    # ---- in threads

    def _places(self, first: int, last: int) -> list[Place]:
        """Spans from `first` on, for one request."""
        places = [self._place(first)]
        last = min(last, self._index.points - 1)
        while places[-1].number < last and not self.large(places[-1].number + 1):
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


def _member(_: int) -> GzipDecoder:
    return GzipDecoder()


def _frame(start: int) -> ZstdDecoder:
    return ZstdDecoder(Point(0, start * 8, b""))


class Run:
    """One pass over a layer: of a plain tar one request, as long as it goes forward; of a span
    too large to be decoded whole one cursor.

    Use it with `contextlib.aclosing`.
    """

    def __init__(self, origin: Origin, end: int) -> None:
        """`end` is where what is wanted of the layer ends."""
        self._origin = origin
        self._end = end
        self._at = 0  # offset of what `_rest` begins with
        self._rest: bytes | memoryview = b""
        self._stream: AsyncIterator[bytes | memoryview] | None = None
        self._cursor: tuple[Cursors, Cursor] | None = None

    async def decoded(
        self, cursors: Cursors, place: Place, start: int, end: int
    ) -> AsyncGenerator[Part, None]:
        """Parts that cover [start, end) of the tar, which a span has."""
        goal = max(self._end, end)
        if self._cursor is not None:
            cursor = self._cursor[1]
            if cursor.number != place.number or cursor.last[0] > start or not cursor.good:
                await self._give()
        if self._cursor is None:
            self._cursor = cursors, await cursors.take(place, start, goal)
        async with aclosing(self._cursor[1].parts(start, end, goal)) as parts:
            async for part in parts:
                yield part

    async def _give(self) -> None:
        taken, self._cursor = self._cursor, None
        if taken is not None:
            await taken[0].give(taken[1])

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
        """End the request, and leave the cursor to others."""
        await self._give()
        stream, self._stream = self._stream, None
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
