"""Chunks: pieces of files that are packed on their own, each with a digest of its own.

eStargz and zstd:chunked layers consist of them. A point of such a layer (docs/index-format.md) is a
group of neighbouring chunks. Here they are decoded, and each is verified before a byte of it is
given out. What lies between them in the layer, headers and padding, is passed over.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from pagein.images.layers.errors import LayerError

MAX_CHUNK = 32 << 20
"""Bytes that a stream may have up to the end of its last chunk: a chunk is held until it is
verified. Writers make chunks of 64 KiB or 4 MiB."""

_END = struct.Struct("<Q")
_CHUNK = struct.Struct("<QQQ32s")


class Chunk(NamedTuple):
    """`size` bytes, behind `skip` others in the stream that is packed at `start` of the layer."""

    start: int
    skip: int
    size: int
    sha256: bytes


class Decoder(Protocol):
    """What unpacks a stream: a gzip member or a zstd frame."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` decodes to, in pieces of up to 1 MiB; LayerError if it is damaged."""


def pack(end: int, chunks: Sequence[Chunk]) -> bytes:
    """What a point says of its chunks; the last one's stream ends before `end` of the layer."""
    return _END.pack(end) + b"".join(_CHUNK.pack(*chunk) for chunk in chunks)


def unpack(content: bytes) -> tuple[int, list[Chunk]]:
    """What `pack` made; LayerError for what it does not make."""
    count, odd = divmod(len(content) - _END.size, _CHUNK.size)
    if odd or count < 1:
        raise LayerError("odd size")
    (end,) = _END.unpack_from(content)
    chunks = [Chunk(*fields) for fields in _CHUNK.iter_unpack(content[_END.size :])]
    before = (0, 0)
    for chunk in chunks:
        if (chunk.start, chunk.skip) < before or chunk.start >= end or not chunk.size:
            raise LayerError("chunks out of order")
        if chunk.skip + chunk.size > MAX_CHUNK:
            raise LayerError(f"a chunk of more than {MAX_CHUNK} bytes")
        before = chunk.start, chunk.skip + chunk.size
    return end, chunks


class ChunkDecoder:
    """Decodes the `chunks` of a point. Feed it the layer from byte `at` on, up to `end`."""

    def __init__(
        self, at: int, end: int, chunks: Sequence[Chunk], begin: Callable[[int], Decoder]
    ) -> None:
        """`begin` makes a decoder of the stream at an offset in the layer."""
        self._at = at
        self._end = end
        self._left = deque(chunks)
        self._begin = begin
        self._stream = -1  # where in the layer it begins
        self._decoder: Decoder | None = None
        self._decoded = 0  # bytes of the stream
        self._chunk = bytearray()  # as much of the first one as there is

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The chunks that `data` completes, verified; LayerError for wrong or damaged ones."""
        while data and self._left:
            start = self._left[0].start
            if self._at < start:
                taken = min(len(data), start - self._at)
            else:
                if start != self._stream:
                    self._decoder, self._stream = self._begin(start), start
                    self._decoded = 0
                limit = next((c.start for c in self._left if c.start > start), self._end)
                taken = min(len(data), limit - self._at)
                yield from self._decode(data[:taken])
                if self._at + taken == limit and self._left and self._left[0].start == start:
                    raise self._error("it ends before it should")
            self._at += taken
            data = data[taken:]

    def _decode(self, packed: bytes) -> Iterator[bytes]:
        """More of the stream; once it has given its chunks the rest of it is not looked at."""
        assert self._decoder is not None
        try:
            for piece in self._decoder.feed(packed):
                yield from self._take(memoryview(piece))
                if not self._left or self._left[0].start != self._stream:
                    return
        except _Wrong:
            raise
        except LayerError as error:
            raise self._error(str(error)) from None

    def _take(self, piece: memoryview) -> Iterator[bytes]:
        begin = self._decoded
        self._decoded += len(piece)
        while self._left and self._left[0].start == self._stream:
            chunk = self._left[0]
            have = chunk.skip + len(self._chunk)
            self._chunk += piece[max(0, have - begin) : max(0, chunk.skip + chunk.size - begin)]
            if len(self._chunk) < chunk.size:
                return
            yield self._verified(chunk)

    def _verified(self, chunk: Chunk) -> bytes:
        data, self._chunk = bytes(self._chunk), bytearray()
        found = hashlib.sha256(data)
        if found.digest() != chunk.sha256:
            raise _Wrong(
                f"wrong bytes in the chunk at offset {chunk.start} of the layer: "
                f"sha256:{found.hexdigest()}, not sha256:{chunk.sha256.hex()}"
            )
        self._left.popleft()
        return data

    def _error(self, what: str) -> LayerError:
        return _Wrong(f"the chunk at offset {self._stream} of the layer: {what}")


class _Wrong(LayerError):
    """Says already which chunk it is."""
