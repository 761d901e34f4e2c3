"""A decoder that stands in the middle of a file, and can go on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression
from pagein.images.layers.gzip import GzipDecoder
from pagein.images.layers.zstd import ZstdDecoder
from pagein.seekable.index import CHUNK, FileIndex
from pagein.seekable.sources import Source

_FIRST = 1 << 20
"""Bytes that who reads on gets fetched from a server in advance, at first; then twice as many."""


class Cursor:
    """Gives the chunks of the content one after the other, from a point on. Not verified.

    For one thread at a time.
    """

    def __init__(self, index: FileIndex, source: Source, number: int) -> None:
        """Stand at point `number`; nothing is read yet."""
        point = index.point(number)
        gzip = index.compression is Compression.GZIP
        self._decoder = GzipDecoder(point) if gzip else ZstdDecoder(point)
        self._index = index
        self._source = source
        self._at = point.bit // 8  # what of the file comes next
        self._span = number  # the last one that is asked for
        self._ahead = 0  # bytes to ask for before they are wanted
        self._coming: Callable[[], bytes] | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._parts: list[memoryview] = []  # of content, decoded and not given out
        self._have = 0  # bytes of them
        self.chunk = -(-point.out // CHUNK)
        """Number of the chunk that comes next."""
        self._drop = self.chunk * CHUNK - point.out  # bytes of a chunk that began before

    @property
    def fetched(self) -> int:
        """How far in the content that goes which a server has sent."""
        whole = self._at >= self._index.place(self._span).end
        return self._index.begin_of(self._span + 1 if whole else self._span)

    def next(self, end: int) -> bytes:
        """The next chunk. `end` is where in the file that ends which is wanted of a server now.

        OSError as the source; LayerError when what it gives cannot be decoded.
        """
        size = min(CHUNK, self._index.size - self.chunk * CHUNK)
        wanted = self._drop + size
        while self._have < wanted:
            self._take(self._more(end))
        while self._drop:
            self._drop -= len(self._cut(self._drop))
        parts = []
        while size:
            parts.append(self._cut(size))
            size -= len(parts[-1])
        self.chunk += 1
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def _take(self, piece: bytes) -> None:
        self._parts.append(memoryview(piece))
        self._have += len(piece)

    def _cut(self, most: int) -> memoryview:
        """Up to so many of the bytes that come next."""
        part = self._parts[0]
        if len(part) <= most:
            del self._parts[0]
        else:
            self._parts[0], part = part[most:], part[:most]
        self._have -= len(part)
        return part

    def _more(self, end: int) -> bytes:
        while True:
            piece = next(self._pieces, None)
            if piece is not None:
                return piece
            data = self._fetch(end)
            self._at += len(data)
            self._pieces = self._decoder.feed(data)

    def _fetch(self, end: int) -> bytes:
        """Of a file on this machine a little; of a server whole spans, more for who reads on."""
        coming, self._coming = self._coming, None
        data = coming() if coming else self._source.read(self._at, self._length(end))
        if self._source.remote:
            self._reads_on(self._at + len(data))
        return data

    def _length(self, end: int) -> int:
        until = self._end_of_span(end) if self._source.remote else self._index.packed_size
        length = min(self._source.step, until - self._at)
        if length <= 0:
            raise LayerError("it ends before the content that its index describes")
        return length

    def _reads_on(self, at: int) -> None:
        """From the second request on the next one is under way while this one is decoded."""
        if self._ahead and at < self._index.packed_size:
            until = self._end_of_span(at + self._ahead)
            self._coming = self._source.begin(at, min(self._source.step, until - at))
        self._ahead = min(2 * self._ahead or _FIRST, self._source.step)

    def _end_of_span(self, wanted: int) -> int:
        """The end of the span in which the file's byte before `wanted` is, or of one before."""
        wanted = max(wanted, self._at + 1)
        while (found := self._index.place(self._span).end) < wanted:
            if self._span + 1 == self._index.points:
                break
            self._span += 1
        return found
