"""A layer's data blob and its metadata as origins.

The data blob exists nowhere: it is put together from the compressed layer, by the index. Each
chunk of it is verified against the index before a byte of it is given out. Bytes that are wrong
are fetched once more, since a bad proxy may be to blame; then it is an OriginError that names
layer and chunk.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression
from pagein.images.layers.index import Index, Piece
from pagein.images.layers.tarbytes import WHOLE, Run, TarBytes
from pagein.origins.base import Origin, OriginError, check_range

_BATCH = 1 << 20  # bytes put together and verified at a time
_BUDGET = 32 << 20
_NEAR = 8 << 20  # bytes of the blob in which the rest of a span is looked for: files are padded


class LayerOrigin(Origin):
    """The data blob of `index`, out of the compressed layer `origin`, which it closes.

    `budget` is how many bytes of decoded spans are kept. The index stays its opener's.
    """

    def __init__(self, index: Index, origin: Origin, *, budget: int = _BUDGET) -> None:
        self._index = index
        self._origin = origin
        self._tar = TarBytes(index, origin, budget)
        self._size = index.header.blob_size

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

    async def around(self, start: int, end: int) -> tuple[int, int]:
        """The whole chunks that the decoded spans of [start, end) hold, and all of that itself."""
        if self._index.header.compression is Compression.NONE:
            return start, end
        try:
            return await asyncio.to_thread(self._around, start, end)
        except LayerError as error:
            raise OriginError.of(str(self), str(error)) from None

    async def close(self) -> None:
        """Forget what was decoded, and close the compressed layer's origin."""
        self._tar.clear()
        await self._origin.close()

    async def _verified(self, offset: int, length: int) -> AsyncGenerator[memoryview, None]:
        check_range(str(self), offset, length, self._size)
        chunk, end = self._index.header.chunk, offset + length
        batch = max(_BATCH, chunk)
        start = offset // chunk * chunk
        last = min(self._size, -(-end // chunk) * chunk)
        try:
            async with aclosing(await self._run(start, last)) as run:
                while start < end:
                    # Batches begin at multiples of their size, so that few spans are cut twice.
                    stop = min(last, start // batch * batch + batch)
                    data = await self._batch(start, stop, run)
                    yield memoryview(data)[max(offset - start, 0) : end - start]
                    start = stop
        except LayerError as error:
            raise OriginError.of(str(self), str(error)) from None

    async def _run(self, start: int, end: int) -> Run:
        """A pass over as much of the compressed layer as holds [start, end) of the blob."""
        pieces = await asyncio.to_thread(self._pieces, max(start, end - _BATCH), end)
        if not pieces:
            return Run(self._origin, 0)
        last = pieces[-1].position + pieces[-1].length
        if self._index.header.compression is Compression.NONE:
            return Run(self._origin, last)
        number = self._index.point_before(last - 1)
        whole = self._index.point_out(number + 1) - self._index.point_out(number)
        if number < 0 or whole > WHOLE:
            return Run(self._origin, 0)
        return Run(self._origin, await asyncio.to_thread(self._index.point_end, number))

    def _around(self, start: int, end: int) -> tuple[int, int]:
        index, chunk = self._index, self._index.header.chunk
        start, end = start // chunk * chunk, min(-(-end // chunk) * chunk, self._size)
        wanted = list(index.pieces(start, end))
        if not wanted:
            return start, end
        first = index.point_before(wanted[0].position)
        last = index.point_before(wanted[-1].position + wanted[-1].length - 1)
        low, high = index.point_out(first), index.point_out(last + 1)
        if first < 0 or high - low > WHOLE:
            return start, end
        near = index.pieces(max(0, start - _NEAR), min(self._size, end + _NEAR))
        inside = [p for p in near if low <= p.position and p.position + p.length <= high]
        if not inside:
            return start, end
        begin = -(-inside[0].offset // chunk) * chunk
        stop = (inside[-1].offset + inside[-1].length) // chunk * chunk
        return min(start, begin), max(end, stop)

    def _pieces(self, start: int, end: int) -> list[Piece]:
        """What of the blob comes from the tar; LayerError unless it goes forward there too."""
        pieces = list(self._index.pieces(start, end))
        at = 0
        for piece in pieces:
            if not at <= piece.position <= self._index.header.tar_size - piece.length:
                raise LayerError("the index has extents out of order, or beyond the tar")
            at = piece.position + piece.length
        return pieces

    async def _batch(self, start: int, end: int, run: Run) -> bytearray:
        pieces = await asyncio.to_thread(self._pieces, start, end)
        try:
            return await self._attempt(start, end, pieces, run)
        except LayerError:
            if not pieces:
                raise
        self._tar.forget(pieces[0].position, pieces[-1].position + pieces[-1].length)
        await run.aclose()
        return await self._attempt(start, end, pieces, run)

    async def _attempt(self, start: int, end: int, pieces: Sequence[Piece], run: Run) -> bytearray:
        """[start, end) of the blob, whole chunks, verified; else LayerError."""
        data = bytearray(end - start)
        if pieces:
            first, last = pieces[0].position, pieces[-1].position + pieces[-1].length
            at = 0
            async with aclosing(self._tar.parts(first, last, run)) as parts:
                async for out, part in parts:
                    at = _copy(out, memoryview(part), pieces, at, data, start)
        await asyncio.to_thread(self._verify, start, data)
        return data

    def _verify(self, start: int, data: bytearray) -> None:
        chunk = self._index.header.chunk
        view = memoryview(data)
        for at in range(0, len(data), chunk):
            number = (start + at) // chunk
            found, wanted = hashlib.sha256(view[at : at + chunk]), self._index.chunk_digest(number)
            if found.digest() != wanted:
                raise LayerError(
                    f"wrong bytes in chunk {number} of its data: "
                    f"sha256:{found.hexdigest()}, not sha256:{wanted.hex()}"
                )


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
