"""Bytes of a layer's tar, out of the compressed layer, from the nearest point of the index on.

What lies between two points, a span, is fetched and decoded whole, once however many ask, and kept
for a while: whoever reads a file reads its neighbours next. Spans too large for that (a zstd layer
that is one frame) are decoded by cursors, which stand where the last reader left them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing

from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression
from pagein.images.layers.gzip import GzipDecoder
from pagein.images.layers.index import Index
from pagein.images.layers.point import Point
from pagein.images.layers.zstd import ZstdDecoder
from pagein.origins.base import Origin

WHOLE = 8 << 20
"""Bytes: larger spans are not decoded whole."""

_FETCH = 1 << 20  # bytes that a cursor asks for at a time
_CURSORS = 2

Part = tuple[int, bytes]
"""Offset in the tar, and the bytes there."""


class TarBytes:
    """Gives bytes of the tar, not verified. `budget` is how many bytes of spans are kept."""

    def __init__(self, index: Index, origin: Origin, budget: int) -> None:
        self._index = index
        self._origin = origin
        self._budget = budget
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0
        self._decoding: dict[int, asyncio.Future[None]] = {}
        self._cursors: list[_Cursor] = []

    def forget(self, start: int, end: int) -> None:
        """What was kept of [start, end) turned out wrong: it has to be fetched again."""
        self._cursors.clear()
        for number in [*self._kept]:
            if self._index.point_out(number) < end and start < self._index.point_out(number + 1):
                self._size -= len(self._kept.pop(number))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._cursors.clear()
        self._size = 0

    async def parts(self, start: int, end: int, run: Run) -> AsyncGenerator[Part, None]:
        """Parts that cover [start, end), in order; the first may begin before, the last end after.

        OSError as the origin; LayerError when what it gives cannot be decoded.
        """
        if self._index.header.compression is Compression.NONE:
            yield start, await run.take(start, end)
            return
        number = self._index.point_before(start)
        if number < 0:
            raise LayerError(f"no point of the index lies before byte {start} of the tar")
        while number < self._index.points and self._index.point_out(number) < end:
            out, after = self._index.point_out(number), self._index.point_out(number + 1)
            if after - out <= WHOLE:
                yield out, await self._span(number, run)
            else:
                within = max(start, out), min(end, after)
                async with aclosing(self._by_cursor(number, *within)) as parts:
                    async for part in parts:
                        yield part
            number += 1

    # ---- spans

    async def _span(self, number: int, run: Run) -> bytes:
        while True:
            data = self._kept.get(number)
            if data is not None:
                self._kept.move_to_end(number)
                return data
            busy = self._decoding.get(number)
            if busy is None:
                break
            await asyncio.wait([busy])  # then look again: if that failed, it is our turn
        done = self._decoding[number] = asyncio.get_running_loop().create_future()
        try:
            data = await self._decode(number, run)
        finally:
            del self._decoding[number]
            done.set_result(None)
        self._keep(number, data)
        return data

    async def _decode(self, number: int, run: Run) -> bytes:
        point = await asyncio.to_thread(self._index.point, number)
        start, end = point.bit // 8, await asyncio.to_thread(self._index.point_end, number)
        if not start < end <= self._index.header.layer.size:
            raise LayerError(f"point {number} of the index lies outside of the layer")
        packed = await run.take(start, end)
        size = self._index.point_out(number + 1) - point.out
        return await asyncio.to_thread(_decode, self._decoder(point), packed, size)

    def _decoder(self, point: Point) -> GzipDecoder | ZstdDecoder:
        gzip = self._index.header.compression is Compression.GZIP
        return GzipDecoder(point) if gzip else ZstdDecoder(point)

    def _keep(self, number: int, data: bytes) -> None:
        self._kept[number] = data
        self._size += len(data)
        while self._size > self._budget and len(self._kept) > 1:
            self._size -= len(self._kept.popitem(last=False)[1])

    # ---- cursors

    async def _by_cursor(self, number: int, start: int, end: int) -> AsyncGenerator[Part, None]:
        able = [c for c in self._cursors if c.number == number and c.last[0] <= start]
        if able:
            cursor = max(able, key=lambda c: c.last[0])
            self._cursors.remove(cursor)
        else:
            point = await asyncio.to_thread(self._index.point, number)
            limit = await asyncio.to_thread(self._index.point_end, number)
            cursor = _Cursor(number, point, self._decoder(point), self._origin, limit)
        # While it is in use nobody else has it; if this fails, nobody will.
        while True:
            out, data = cursor.last
            if start < out + len(data):
                yield cursor.last
            if end <= out + len(data):
                break
            await cursor.advance()
        self._cursors.append(cursor)
        del self._cursors[:-_CURSORS]


class _Cursor:
    """A decoder, and the last part that came out of it."""

    def __init__(
        self,
        number: int,
        point: Point,
        decoder: GzipDecoder | ZstdDecoder,
        origin: Origin,
        limit: int,
    ) -> None:
        self.number = number
        self.last: Part = (point.out, b"")
        self._at = point.bit // 8
        self._decoder = decoder
        self._origin = origin
        self._limit = limit
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


class Run:
    """One pass over a part of the compressed layer: one request, as long as it goes forward.

    Use it with `contextlib.aclosing`.
    """

    def __init__(self, origin: Origin, end: int) -> None:
        self._origin = origin
        self._end = end
        self._at = 0  # offset of what `_data` begins with
        self._data = bytearray()
        self._stream: AsyncIterator[bytes | memoryview] | None = None

    async def take(self, start: int, end: int) -> bytes:
        """The bytes [start, end) of the layer; a later call may begin in the last byte again."""
        have = self._at + len(self._data)
        if self._stream is None or not self._at <= start <= have:
            await self.aclose()
            self._end = max(self._end, end)
            self._stream = self._origin.stream(start, self._end - start)
            self._at = have = start
            self._data.clear()
        while have < end:
            piece = await anext(self._stream, None)
            if piece is None:
                raise LayerError(f"the layer ends at byte {have}, not {self._end}")
            self._data += piece
            have += len(piece)
        taken = bytes(self._data[start - self._at : end - self._at])
        keep = max(end - 1, self._at)  # two spans may share a byte
        del self._data[: keep - self._at]
        self._at = keep
        return taken

    async def aclose(self) -> None:
        """End the request."""
        stream, self._stream = self._stream, None
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


def _decode(decoder: GzipDecoder | ZstdDecoder, packed: bytes, size: int) -> bytes:
    data = bytearray()
    for piece in decoder.feed(packed):
        data += piece
        if len(data) >= size:
            break
    if len(data) < size:
        raise LayerError(f"a span of {size} bytes decodes to {len(data)}")
    return bytes(data)
