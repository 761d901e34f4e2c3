"""The index of a layer, made of its TOC.

It has what every index has: the tree as EROFS metadata, the extents of the data blob, points. A
point is a group of neighbouring chunks, which hold their digests; what they unpack to, one after
the other, stands in for the tar, of which nothing else is ever read.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from typing import BinaryIO, Final, NamedTuple

from pagein.erofs.tree import Extent
from pagein.images.layers import blob, chunks, indexwriter
from pagein.images.layers import format as layout
from pagein.images.layers.build import metadata_of
from pagein.images.layers.chunks import Chunk
from pagein.images.layers.entry import Entry, Limits
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Block, Compression, Header, Layer
from pagein.images.layers.tree import Tree, TreeBuilder
from pagein.images.toc.files import File

GROUP: Final = 512 << 10
"""Bytes, unpacked, after which a group of chunks is closed. What is read together was packed
together, and a request for a few kilobytes takes as long as one for a hundred."""

_CHUNKS: Final = 1024  # after so many, too
_SLACK: Final = 64 << 10  # bytes


class Made(NamedTuple):
    """What was written; sizes in bytes. `digest` is that of the whole file, its name."""

    digest: str
    size: int
    tree: Tree


def make_index(
    layer: Layer,
    compression: Compression,
    files: Iterable[File],
    end: int,
    out: BinaryIO,
    limits: Limits = Limits(),  # noqa: B008
) -> Made:
    """Write the index of `layer` to `out`, an empty file open for reading and writing.

    The chunks of `files` lie before `end` of the layer. LayerError for a tree that cannot be.
    """
    data = _Data(end)
    builder = TreeBuilder(data.place, limits)
    for file in files:
        data.file = file
        builder.add(file.entry)
    tree, points = builder.finish(), data.points.finish()
    header = indexwriter.write(
        out,
        Header(layer, compression, 0, data.points.out, data.size, 0, blob.CHUNK),
        metadata=metadata_of(tree, layer, data.size),
        extents=(data.offsets, data.positions, data.lengths),
        points=points,
        digests=b"",
        implied=tree.implied,
    )
    out.seek(0)
    digest = f"sha256:{hashlib.file_digest(out, 'sha256').hexdigest()}"  # type: ignore[arg-type]
    return Made(digest, header.file_size, tree)


class _Data:
    """Lays out the data blob as `layers.blob` does: each file whole, from a page on."""

    def __init__(self, end: int) -> None:
        self.size = 0
        self.offsets = array("Q")
        self.positions = array("Q")
        self.lengths = array("Q")
        self.points = _Points(end)
        self.file: File | None = None
        """The one that `place` is called for."""

    def place(self, entry: Entry) -> tuple[Extent, ...]:
        """Give the file its place. Chunks that are zeros have none in the layer."""
        assert self.file is not None
        at = self.size
        for offset, chunk in self.file.chunks:
            self._extent(at + offset, self.points.add(chunk), chunk.size)
        self.size = -(-(at + entry.size) // blob.PAGE) * blob.PAGE
        if self.size > blob.MAX_BLOB:
            raise LayerError(f"more than {blob.MAX_BLOB} bytes of data in one layer: EROFS's limit")
        return (Extent(0, entry.size, blob.DEVICE, at),)

    def _extent(self, offset: int, position: int, length: int) -> None:
        if self.offsets:
            last = self.lengths[-1]
            if (offset, position) == (self.offsets[-1] + last, self.positions[-1] + last):
                self.lengths[-1] = last + length
                return
        self.offsets.append(offset)
        self.positions.append(position)
        self.lengths.append(length)


class _Points:
    """Groups chunks, which come in the order of the layer."""

    def __init__(self, end: int) -> None:
        self.out = 0
        """Bytes that all chunks so far unpack to."""
        self._end = end
        self._blocks: list[Block] = []
        self._group: list[Chunk] = []
        self._begin = 0  # what `out` was at the begin of the group

    def add(self, chunk: Chunk) -> int:
        """Take the next chunk; where it stands in what all of them unpack to."""
        # A stream is never in two groups, and a group has no gap in which there is nothing.
        if (
            self._group
            and chunk.start != self._group[-1].start
            and (self._full or chunk.start > self._bound() + _SLACK)
        ):
            self._close(chunk.start)
        self._group.append(chunk)
        position = self.out
        self.out += chunk.size
        return position

    @property
    def _full(self) -> bool:
        return self.out - self._begin >= GROUP or len(self._group) >= _CHUNKS

    def finish(self) -> list[Block]:
        """The points."""
        if self._group:
            self._close(self._end)
        return self._blocks

    def _bound(self) -> int:
        """Where the last stream has given its chunks, however badly it is packed."""
        last = self._group[-1]
        size = last.skip + last.size
        return last.start + size + size // 8 + _SLACK

    def _close(self, following: int) -> None:
        end, last = min(following, self._bound()), self._group[-1]
        group, self._group = self._group, []
        content = (group[0].start * 8).to_bytes(8, "little") + chunks.pack(end, group)
        if len(content) > layout.MAX_BLOCK:
            raise LayerError(f"too many chunks at offset {last.start} of the layer")
        self._blocks.append(layout.pack(self._begin, content))
        self._begin = self.out
