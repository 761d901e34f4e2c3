"""Spans too large to be decoded whole: zstd with a window of 128 MiB, gzip of nothing but zeros.

Decoders stand where the last reader left them, and whoever reads on from there pays for no more
than that. A reader who wants what lies behind another's goal waits for that one's decoder, rather
than begin the span once more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Final

from pagein.images.layers.chunks import Decoder
from pagein.images.layers.enough import LITTLE, enough
from pagein.images.layers.errors import LayerError
from pagein.images.layers.index import Place
from pagein.origins.base import Origin

_KEPT: Final = 2
_PATIENCE: Final = 10.0
"""Seconds that a reader waits for another's decoder: less than a fetch waits for its first byte."""

_TOGETHER: Final = 0.01
"""Seconds before a span is begun: of readers that come together the first in order begins it."""


class Cursors:
    """The cursors of one layer. `decoder` makes one for a place."""

    def __init__(self, origin: Origin, decoder: Callable[[Place], Decoder]) -> None:
        self._origin = origin
        self._decoder = decoder
        self._idle: list[Cursor] = []
        self._busy: dict[Cursor, int] = {}  # up to where in the tar each will go
        self._wanted: list[tuple[int, int]] = []  # by those who wait: span, offset in the tar
        self._news = asyncio.Event()

    def clear(self) -> None:
        """Forget all of them: those in use will not be used again."""
        self._idle.clear()
        for cursor in self._busy:
            cursor.wrong = True

    async def take(self, place: Place, start: int, goal: int) -> Cursor:
        """A cursor of a span, at or before `start`, that will go up to `goal`; `give` it back.

        Somebody else's if it is on its way there and comes in time, or a new one.
        """
        wanted, loop = (place.number, start), asyncio.get_running_loop()
        self._wanted.append(wanted)
        try:
            if self._before(*wanted) is None:
                await asyncio.sleep(_TOGETHER)
            deadline = loop.time() + _PATIENCE
            while self._later(*wanted) and (left := deadline - loop.time()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), left)
        finally:
            self._wanted.remove(wanted)
        if (cursor := self._before(*wanted)) is not None:
            self._idle.remove(cursor)
        else:
            cursor = Cursor(place, self._origin)
        self._busy[cursor] = goal
        self._tell()
        try:
            await cursor.begin(self._decoder)
        except BaseException:
            await self.give(cursor)
            raise
        return cursor

    async def give(self, cursor: Cursor) -> None:
        """Nobody uses it any more; it stays for a while if it may be gone on from."""
        del self._busy[cursor]
        self._tell()
        if cursor.good and not cursor.wrong:
            self._idle.append(cursor)
            del self._idle[:-_KEPT]
        await cursor.rest()

    def _later(self, number: int, start: int) -> bool:
        """Whether a cursor will come that is nearer to `start` than those that nobody uses."""
        before = self._before(number, start)
        at = -1 if before is None else before.out
        coming = any(
            cursor.number == number and not cursor.wrong and at < goal <= start
            for cursor, goal in self._busy.items()
        )
        return coming or any(each == number and at <= low < start for each, low in self._wanted)

    def _before(self, number: int, start: int) -> Cursor | None:
        able = [cursor for cursor in self._idle if cursor.number == number]
        able = [cursor for cursor in able if cursor.last[0] <= start]
        return max(able, key=lambda cursor: cursor.out, default=None)

    def _tell(self) -> None:
        """Those who wait look again."""
        self._news.set()
        self._news = asyncio.Event()


class Cursor:
    """A decoder, and the last part that came out of it.

    Attributes:
        number: of the span.
        good: whether it has ended where it should, and may be gone on from.
        wrong: whether what it was given may be wrong.
        last: the last part: its offset in the tar, and its bytes.
    """

    def __init__(self, place: Place, origin: Origin) -> None:
        self.number = place.number
        self.good = self.wrong = False
        self.last: tuple[int, bytes] = (place.out, b"")
        self._place = place
        self._at = place.start
        self._decoder: Decoder | None = None
        self._origin = origin
        self._stream: AsyncIterator[bytes | memoryview] | None = None
        self._pieces: Iterator[bytes] = iter(())

    @property
    def out(self) -> int:
        """Where in the tar that ends which it gave."""
        return self.last[0] + len(self.last[1])

    async def begin(self, decoder: Callable[[Place], Decoder]) -> None:
        """Have its decoder."""
        if self._decoder is None:
            self._decoder = await asyncio.to_thread(decoder, self._place)
        self.good = True

    async def parts(
        self, start: int, end: int, goal: int
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Offsets in the tar and the bytes there, until all of [start, end) has come.

        `goal` is up to where it will be asked for.
        """
        self.good = False
        while True:
            if start < self.out:
                yield self.last
            if end <= self.out:
                break
            await self._advance(goal)
        self.good = True

    async def rest(self) -> None:
        """End its request."""
        stream, self._stream = self._stream, None
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()

    async def _advance(self, goal: int) -> None:
        """Decode the next part."""
        assert self._decoder is not None
        while (piece := await asyncio.to_thread(next, self._pieces, None)) is None:
            self._pieces = self._decoder.feed(await self._receive(goal))
        self.last = (self.out, piece)

    async def _receive(self, goal: int) -> bytes:
        """The next bytes of the layer; one request for all that is needed up to `goal`."""
        while self._at < self._place.end:
            if self._stream is None:
                self._stream = self._origin.stream(self._at, self._need(goal))
            piece = await anext(self._stream, None)
            if piece:
                self._at += len(piece)
                return bytes(piece)
            self._stream = None
        raise LayerError("the layer ends before the tar that the index describes")

    def _need(self, goal: int) -> int:
        """Bytes of the layer."""
        place = self._place
        end = enough(place, goal - place.out, self._at, self.out - place.out)
        return min(max(end, self._at + LITTLE), place.end) - self._at
