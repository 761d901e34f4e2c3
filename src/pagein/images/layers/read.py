"""A layer's data blob and its metadata as origins.

The data blob exists nowhere: it is put together from the compressed layer, by the index. Each
chunk of it is verified against the index before a byte of it is given out. Bytes that are wrong
are fetched once more, since a bad proxy may be to blame; then it is an OriginError that names
layer and chunk.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Final

from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import CHUNKED, Compression
from pagein.images.layers.index import Index, Piece
from pagein.images.layers.spans import Kept
from pagein.images.layers.tarbytes import WHOLE, Run, TarBytes
from pagein.origins.base import Around, Origin, OriginError, check_range

AROUND: Final = 1 << 20
"""Bytes of the data blob that are stored around a read, of what was decoded for it: of the eight
that a span of zstd may have most are not read, and the rest stays in memory for a while."""

_BATCH = 1 << 20  # bytes put together at a time
_TRIES = 8  # to get right bytes: as many mirrors as anybody may have


Part = tuple[int, memoryview]
"""Offset in the data blob, and the bytes there."""


class LayerOrigin(Origin):
    """The data blob of `index`, out of the compressed layer `origin`, which it closes.

    `kept` is where decoded spans are kept. The index stays its opener's.
    """

    decodes = True

    def __init__(self, index: Index, origin: Origin, kept: Kept | None = None) -> None:
        self._index = index
        self._origin = origin
        self._tar = TarBytes(index, origin, Kept() if kept is None else kept)
        self._size = index.header.blob_size
        self.watcher: Callable[[int, int], None] | None = None
        """Told of each range that somebody waits for."""
        self.server = origin.server
        self.density = max(1.0, self._size / max(1, index.header.layer.size))

    def __str__(self) -> str:
        return f"layer {self._index.header.layer.digest} from {self._origin}"

    async def size(self) -> int:
        """The blob's size in bytes, a multiple of 4096."""
        return self._size

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` verified bytes from `offset`, or OSError."""
        async with aclosing(self._verified(offset, length)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        """The bytes of `read` in pieces of up to 1 MiB, each verified; one request for all."""
        async with aclosing(self._verified(offset, length)) as pieces:
            async for piece in pieces:
                yield piece

    async def around(self, start: int, end: int) -> Around:
        """The whole chunks that the decoded spans of [start, end) hold, and all of that itself."""
        if self.watcher is not None:
            self.watcher(start, end)
        if self._index.header.compression is Compression.NONE:
            return Around(start, end)
        try:
            return await asyncio.to_thread(self._around, start, end)
        except LayerError as error:
            raise OriginError.of(str(self), str(error)) from None

    def prepare(self) -> None:
        """As for the compressed layer."""
        self._origin.prepare()

    # ---- for who knows what will be read

    async def expect(self, start: int, end: int, rank: int) -> bool:
        """Bring here what [start, end) is made of, the lowest `rank` first. LayerError.

        Returns when it is here, or will not come: then it is fetched when it is read. False if that
        is not to be done ahead.
        """
        chunk = self._index.header.chunk  # as it is read: whole chunks
        start, end = start // chunk * chunk, min(-(-end // chunk) * chunk, self._size)
        pieces = await asyncio.to_thread(self._pieces, start, end)
        if not pieces:
            return True
        last = pieces[-1]
        return await self._tar.expect(pieces[0].position, last.position + last.length, rank)

    def file_at(self, start: int, most: int) -> int:
        """Bytes of the file whose data begins at `start`, at most `most`; may wait for the disk."""
        first = next(self._index.pieces(start, min(start + most, self._size)), None)
        return first.length if first is not None and first.offset == start else 0

    async def close(self) -> None:
        """Forget what was decoded, and close the compressed layer's origin."""
        await self._tar.clear()
        await self._origin.close()

    async def _verified(self, offset: int, length: int) -> AsyncGenerator[memoryview, None]:
        check_range(str(self), offset, length, self._size)
        chunk, end = self._index.header.chunk, offset + length
        batch = max(_BATCH, chunk)
        start = offset // chunk * chunk
        last = min(self._size, -(-end // chunk) * chunk)
        try:
            until = await asyncio.to_thread(self._until, max(start, last - batch), last)
            async with aclosing(Run(self._origin, until)) as run:
                while start < end:
                    # Batches begin at multiples of their size.
                    stop = min(last, start // batch * batch + batch)
                    async with aclosing(self._batch(start, stop, until, run)) as found:
                        async for at, data in found:
                            yield data[max(offset - at, 0) : end - at]
                    start = stop
        except LayerError as error:
            raise OriginError.of(str(self), str(error)) from None

    def _around(self, start: int, end: int) -> Around:
        index, chunk = self._index, self._index.header.chunk
        start, end = start // chunk * chunk, min(-(-end // chunk) * chunk, self._size)
        wanted = list(index.pieces(start, end))
        if not wanted:
            return Around(start, end)
        first = index.point_before(wanted[0].position)
        until = wanted[-1].position + wanted[-1].length
        last = index.point_before(until - 1)
        low, after = index.point_out(first), index.point_out(last + 1)
        if first < 0:
            return Around(start, end)
        if self._tar.large(first):
            return self._on_the_way(low, start, end, wanted[0])
        if after - low > WHOLE:
            return Around(start, end)
        high = self._tar.reach(last, until)
        inside = index.within(low, high, wanted[0].offset)
        if inside is None:
            return Around(start, end)
        # What a chunk has of a neighbour must be here too.
        begin, stop = inside[0] // chunk * chunk, min(-(-inside[1] // chunk) * chunk, self._size)
        if begin < inside[0] and not self._tar.has(first - 1):
            begin += chunk
        if stop > inside[1] and (high < after or not self._tar.has(last + 1)):
            stop = inside[1] // chunk * chunk
        if self._tar.in_part:
            begin = max(begin, start // AROUND * AROUND)
            stop = min(stop, -(-end // AROUND) * AROUND)
        return Around(min(start, begin), max(end, stop))

    def _on_the_way(self, low: int, start: int, end: int, wanted: Piece) -> Around:
        """What a decoder passes from `low` in the tar on until it comes to `wanted`: whole chunks.

        To leave that out would be to fetch it again for whoever wants it.
        """
        inside = self._index.within(low, wanted.position + 1, wanted.offset)
        chunk = self._index.header.chunk
        begin = start if inside is None else -(-inside[0] // chunk) * chunk
        return Around(min(start, begin), end, in_order=True)

    def _until(self, start: int, end: int) -> int:
        """Where in the tar that ends which the blob has in [start, end); 0 for zeros only."""
        return max((p.position + p.length for p in self._index.pieces(start, end)), default=0)

    def _pieces(self, start: int, end: int) -> list[Piece]:
        """What of the blob comes from the tar; LayerError unless it goes forward there too."""
        pieces = list(self._index.pieces(start, end))
        at = 0
        for piece in pieces:
            if not at <= piece.position <= self._index.header.tar_size - piece.length:
                raise LayerError("the index has extents out of order, or beyond the tar")
            at = piece.position + piece.length
        return pieces

    async def _batch(
        self, start: int, end: int, until: int, run: Run
    ) -> AsyncGenerator[Part, None]:
        """[start, end) of the blob, whole chunks, verified, as they come; else LayerError.

        From the first chunk on that is wrong, everything is fetched once more, and again while
        there is somebody else to ask.
        """
        last_try, tries = False, 0
        while True:
            pieces = await asyncio.to_thread(self._pieces, start, end)
            try:
                async with aclosing(self._chunks(start, end, pieces, until, run)) as found:
                    async for at, data in found:
                        start = at + len(data)
                        yield at, data
                return
            except LayerError:
                if last_try or not pieces:
                    raise
            await run.aclose()
            self._tar.forget(pieces[0].position, pieces[-1].position + pieces[-1].length)
            tries += 1
            last_try = not self._origin.forget() or tries == _TRIES

    async def _chunks(
        self, start: int, end: int, pieces: Sequence[Piece], until: int, run: Run
    ) -> AsyncGenerator[Part, None]:
        # Memory is taken when something has come: a thousand readers may wait for that.
        data, chunk = bytearray(), self._index.header.chunk
        done, at = start, 0
        if pieces:
            first, last = pieces[0].position, pieces[-1].position + pieces[-1].length
            async with aclosing(self._tar.parts(first, last, until, run)) as parts:
                async for out, part in parts:
                    data = data or bytearray(end - start)
                    at = _copy(out, memoryview(part), pieces, at, data, start)
                    ready = _ready(pieces, at, out + len(part), end) // chunk * chunk
                    if ready > done and at < len(pieces):
                        yield await self._checked(data, start, done, ready)
                        done = ready
        if at < len(pieces):
            raise LayerError("the layer ends before the tar that the index describes")
        yield await self._checked(data or bytearray(end - start), start, done, end)

    async def _checked(self, data: bytearray, start: int, low: int, high: int) -> Part:
        """[low, high) of the blob, once it was verified; `data` begins at `start`."""
        part = memoryview(data)[low - start : high - start]
        await asyncio.to_thread(self._verify, low, part)
        return low, part

    def _verify(self, start: int, view: memoryview) -> None:
        if self._index.header.compression in CHUNKED:
            return  # each byte of it comes from a chunk that was verified (`chunks`)
        chunk = self._index.header.chunk
        for at in range(0, len(view), chunk):
            number = (start + at) // chunk
            found, wanted = hashlib.sha256(view[at : at + chunk]), self._index.chunk_digest(number)
            if found.digest() != wanted:
                raise LayerError(
                    f"wrong bytes in chunk {number} of its data: "
                    f"sha256:{found.hexdigest()}, not sha256:{wanted.hex()}"
                )


def _ready(pieces: Sequence[Piece], at: int, out: int, end: int) -> int:
    """How far the blob is known when the tar is up to `out`; `at` is the first unfinished piece."""
    if at == len(pieces):
        return end
    piece = pieces[at]
    return piece.offset + max(0, out - piece.position)


def _copy(
    out: int, part: memoryview, pieces: Sequence[Piece], at: int, data: bytearray, start: int
) -> int:
    """Copy what `part`, at `out` in the tar, has of pieces from `at` on; the first one unfinished.

    `data` begins at `start` in the blob.
    """
    end = out + len(part)
    while at < len(pieces):
        piece = pieces[at]
        first, last = max(piece.position, out), min(piece.position + piece.length, end)
        if first < last:
            to = piece.offset + first - piece.position - start
            data[to : to + last - first] = part[first - out : last - out]
        if piece.position + piece.length > end:
            return at
        at += 1
    return at


class MetaOrigin(Origin):
    """The EROFS image of `index`, which stays its opener's; each block is verified when read."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __str__(self) -> str:
        return f"metadata of layer {self._index.header.layer.digest}"

    async def size(self) -> int:
        """The image's size in bytes, a multiple of 4096."""
        return self._index.header.metadata_size

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` verified bytes from `offset`, or OriginError."""
        check_range(str(self), offset, length, self._index.header.metadata_size)
        try:
            return await asyncio.to_thread(self._index.metadata, offset, length)
        except LayerError as error:
            raise OriginError.of(str(self), str(error)) from None
