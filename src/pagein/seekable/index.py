"""The index of a compressed file: where it can be entered, and what its content must hash to.

It is a layer's index (docs/index-format.md) of a file that is no archive. So three of its sections
are empty, its chunks are those of the content itself, from 0 on, and in place of an EROFS image it
has `About`: what tells this file from another one.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Final

import msgspec

from pagein.images.layers import format as layout
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression
from pagein.images.layers.index import Index, Place
from pagein.images.layers.point import Point
from pagein.origins.identity import Identity
from pagein.seekable.errors import BadIndex, told_of
from pagein.seekable.sources import Source

CHUNK: Final = 64 << 10
"""Bytes of content that have a digest of their own."""

EDGE: Final = 4096
"""Bytes at either end of a file that tell it from others."""
_MAX_ABOUT = 64 << 10


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The file as it was when its index was built; the name without its directory."""

    name: str
    etag: str | None
    last_modified: str | None
    edges: str
    """SHA-256 of its first 4096 bytes and its last 4096 bytes, in hex."""

    def told_by(self, identity: Identity) -> bool:
        """Whether the validators of a web server say that this is the file."""
        mine, other = (self.etag, self.last_modified), (identity.etag, identity.last_modified)
        return mine == other and any(mine)


def edges(head: bytes, tail: bytes) -> str:
    """The digest of both ends of a file: of so many bytes, or of all there are."""
    return hashlib.sha256(head[:EDGE] + tail[-EDGE:]).hexdigest()


def edges_of(source: Source) -> str:
    """The same, of a file that can be read."""
    length = min(EDGE, source.size)
    return edges(source.read(0, length), source.read(source.size - length, length))


class FileIndex:
    """An open index; threads may share it. Its methods raise BadIndex for what is damaged."""

    def __init__(self, path: str) -> None:
        """Map the index at `path`; BadIndex if it is damaged, OSError if it is not there."""
        self.path = path
        with told_of(path, BadIndex):
            self._index = Index(path, magic=layout.FILE_MAGIC)
            try:
                self.about = self._read_about()
            except BaseException:
                self.close()
                raise

    def _read_about(self) -> About:
        header = self._index.header
        packed = header.compression in (Compression.GZIP, Compression.ZSTD)
        if not packed or header.chunk != CHUNK or not 0 < header.metadata_size <= _MAX_ABOUT:
            raise LayerError(f"{self.path}: not an index of a compressed file")
        try:
            return msgspec.json.decode(self._index.metadata(0, header.metadata_size), type=About)
        except msgspec.MsgspecError as problem:
            raise LayerError(f"{self.path}: metadata of the index: {problem}") from None

    @property
    def compression(self) -> Compression:
        """GZIP or ZSTD."""
        return self._index.header.compression

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self._index.header.tar_size

    @property
    def packed_size(self) -> int:
        """Bytes of the compressed file."""
        return self._index.header.layer.size

    @property
    def file_size(self) -> int:
        """Bytes of the index."""
        return self._index.header.file_size

    @property
    def digest(self) -> str:
        """SHA-256 of the compressed file, as "sha256:..."."""
        return self._index.header.layer.digest

    @property
    def points(self) -> int:
        """Places to enter the file."""
        return self._index.points

    def widest_span(self) -> int:
        """Bytes of content between two points, at most: what a single read may have to decode."""
        edges = map(self.begin_of, range(self.points + 1))
        return max((after - before for before, after in pairwise(edges)), default=0)

    def span_of(self, offset: int) -> int:
        """The number of the last point at or before an offset of the content."""
        return self._index.point_before(offset)

    def begin_of(self, number: int) -> int:
        """A point's offset in the content; for the number after the last the content's size."""
        return self._index.point_out(number)

    def point(self, number: int) -> Point:
        """A place to enter the file."""
        with told_of(self.path, BadIndex):
            return self._index.point(number)

    def place(self, number: int) -> Place:
        """A point, and what of the compressed file lies between it and the next."""
        with told_of(self.path, BadIndex):
            place = self._index.place(number)
            if place.end > self.packed_size:
                raise LayerError(f"{self.path}: point {number} of the index lies beyond the file")
            return place

    def chunk_digest(self, number: int) -> bytes:
        """The SHA-256 of a chunk of the content."""
        with told_of(self.path, BadIndex):
            return self._index.chunk_digest(number)

    def check(self, source: Source, *, known: bool = False) -> None:
        """BadIndex if it is not that of `source`: by both ends of the file, unless they are `known`

        to be the right ones.
        """
        if source.size != self.packed_size:
            of, has = f"a file of {self.packed_size} bytes", f"{source.name} has {source.size}"
            raise BadIndex(f"{self.path}: the index of {of}, but {has}: build it again")
        if known or (source.remote and self.about.told_by(source.identity)):
            return
        if edges_of(source) != self.about.edges:
            changed = f"{source.name} has other content than when this index was built"
            raise BadIndex(f"{self.path}: {changed}: build it again")

    def verify(self) -> None:
        """Read and verify all of the index."""
        with told_of(self.path, BadIndex):
            self._index.verify()

    def close(self) -> None:
        """Unmap it; twice is fine."""
        self._index.close()
