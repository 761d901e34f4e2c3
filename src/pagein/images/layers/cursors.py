"""Spans too large to be decoded whole: zstd with a window of 128 MiB, gzip of nothing but zeros.

Decoders stand where the last reader left them; whoever reads on from there pays for no more than
that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator

from pagein.images.layers.chunks import Decoder
from pagein.images.layers.errors import LayerError
from pagein.images.layers.index import Place
from pagein.origins.base import Origin

_FETCH = 1 << 20  # bytes that a cursor asks for at a time
_KEPT = 2


class Cursors:
    """The cursors of one layer. `decoder` makes one for a place."""

    def __init__(self, origin: Origin, decoder: Callable[[Place], Decoder]) -> None:
        self._origin = origin
        self._decoder = decoder
        self._idle: list[_Cursor] = []

    def clear(self) -> None:
        """Forget all of them."""
        self._idle.clear()

    async def parts(
        self, place: Place, start: int, end: int
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Offsets in the tar and the bytes there, until all of [start, end) has come."""
        able = [c for c in self._idle if c.number == place.number and c.last[0] <= start]
        if able:
            cursor = max(able, key=lambda c: c.last[0])
            self._idle.remove(cursor)
        else:
            decoder = await asyncio.to_thread(self._decoder, place)
            cursor = _Cursor(place, decoder, self._origin)
        # While it is in use nobody else has it; if this fails, nobody will.
        while True:
            out, data = cursor.last
            if start < out + len(data):
                yield cursor.last
            if end <= out + len(data):
                break
            await cursor.advance()
        self._idle.append(cursor)
        del self._idle[:-_KEPT]


class _Cursor:
    """A decoder, and the last part that came out of it."""

    def __init__(self, place: Place, decoder: Decoder, origin: Origin) -> None:
        self.number = place.number
        self.last: tuple[int, bytes] = (place.out, b"")
        self._at = place.start
        self._decoder = decoder
        self._origin = origin
        self._limit = place.end
        self._pieces: Iterator[bytes] = iter(())

    async def advance(self) -> None:
        """Decode the next part."""
        while True:
            piece = await asyncio.to_thread(next, self._pieces, None)
            if piece is not None:
                self.last = (self.last[0] + len(self.last[1]), piece)
                return
            length = min(_FETCH, self._limit - self._at)
            if length <= 0:
                raise LayerError("the layer ends before the tar that the index describes")
            data = await self._origin.read(self._at, length)
            self._at += length
            self._pieces = self._decoder.feed(data)
