"""Writes an index file."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from operator import add, sub
from typing import BinaryIO

from pagein.images.layers import format as layout
from pagein.images.layers.format import Block, Header, Kind, Table
from pagein.images.layers.worker import Worker

_BEHIND = 32  # blocks that wait to be packed


def write(
    out: BinaryIO,
    header: Header,
    *,
    metadata: Iterable[bytes],
    extents: tuple[array[int], array[int], array[int]],
    points: Iterable[Block],
    digests: bytes | bytearray,
    implied: Sequence[bytes],
    names: Iterable[tuple[int, bytes]] | None = None,
    magic: bytes = layout.MAGIC,
) -> Header:
    """Write the index to `out`, which is empty and can seek; the header as it is then.

    `extents` are the columns of `BlobBuilder`, `metadata` the image in pieces of any size. They
    are packed in a thread while they are made. The sizes in `header` are those given, but for the
    metadata's and the file's own. `names` are blocks of that section; None: there is none.
    """
    kinds = [kind for kind in Kind if kind is not Kind.NAMES or names is not None]
    blank = _pack_header(magic, header, [Table(kind, 0, 0, b"") for kind in kinds])
    paths = b"".join(path + b"\0" for path in implied)
    writer = _Writer(out, len(blank), kinds)
    try:
        metadata_size = writer.pack(Kind.METADATA, _blocks(metadata))
        writer.pack(Kind.EXTENTS, _extents(*extents))
        writer.store(Kind.POINTS, points)
        writer.store(Kind.CHUNKS, _as_they_are(_cut(bytes(digests), layout.DIGEST)))
        writer.pack(Kind.IMPLIED, _cut(paths, 1))
        writer.pack(Kind.NAMES, names or ())
        tables = writer.finish()
    finally:
        writer.close()
    header = header._replace(file_size=writer.at, metadata_size=metadata_size)
    out.seek(0)
    out.write(_pack_header(magic, header, tables))
    out.seek(writer.at)
    return header


class _Writer:
    """Writes blocks in the order in which they are given; its thread packs and hashes them."""

    def __init__(self, out: BinaryIO, header_size: int, kinds: Sequence[Kind]) -> None:
        self.at = header_size
        """Offset of what comes next; right once `finish` has returned."""
        self._out = out
        self._tables = {kind: bytearray() for kind in kinds}
        self._worker = Worker("index", self._one, _BEHIND)
        out.seek(header_size)

    def close(self) -> None:
        """End the thread, also half-way."""
        self._worker.close()

    def pack(self, kind: Kind, blocks: Iterable[tuple[int, bytes]]) -> int:
        """Write the blocks of a section, given as (key, content); the size of all, unpacked."""
        size = 0
        for key, content in blocks:
            self._worker.submit(kind, Block(key, len(content), content), True)
            size += len(content)
        return size

    def store(self, kind: Kind, blocks: Iterable[Block]) -> None:
        """Write blocks that are packed already."""
        for block in blocks:
            self._worker.submit(kind, block, False)

    def finish(self) -> list[Table]:
        """Write the tables."""
        self._worker.finish()
        return [self._table(kind, bytes(table)) for kind, table in self._tables.items()]

    def _one(self, kind: Kind, block: Block, pack: bool) -> None:
        key, size, stored = layout.pack(block.key, block.stored) if pack else block
        sha256 = hashlib.sha256(stored).digest()
        self._tables[kind] += layout.BLOCK.pack(key, self.at, len(stored), size, sha256)
        self._write(stored)

    def _table(self, kind: Kind, table: bytes) -> Table:
        at = self.at
        self._write(table)
        return Table(kind, len(table) // layout.BLOCK.size, at, hashlib.sha256(table).digest())

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self.at += len(data)


def _as_they_are(blocks: Iterable[tuple[int, bytes]]) -> Iterator[Block]:
    return (Block(key, len(content), content) for key, content in blocks)


def _pack_header(magic: bytes, header: Header, tables: Sequence[Table]) -> bytes:
    layer = header.layer
    strings = [text.encode() for text in (layer.digest, layer.diff_id, layer.media_type)]
    size = (
        layout.FIXED.size
        + len(tables) * layout.SECTION.size
        + sum(layout.STRING.size + len(text) for text in strings)
        + layout.DIGEST
    )
    parts = [
        layout.FIXED.pack(
            magic,
            layout.VERSION if len(tables) == len(Kind) else layout.VERSION - 1,
            size,
            header.file_size,
            layer.size,
            header.tar_size,
            header.blob_size,
            header.metadata_size,
            header.chunk,
            header.compression,
            len(tables),
            0,
        )
    ]
    parts += (layout.SECTION.pack(*table) for table in tables)
    parts += (layout.STRING.pack(len(text)) + text for text in strings)
    packed = b"".join(parts)
    return packed + hashlib.sha256(packed).digest()


def _blocks(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Pieces of any size as blocks of one, each with its offset."""
    at = 0
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= layout.BLOCK_SIZE:
            yield at, bytes(waiting[: layout.BLOCK_SIZE])
            del waiting[: layout.BLOCK_SIZE]
            at += layout.BLOCK_SIZE
    if waiting:
        yield at, bytes(waiting)


def _cut(data: bytes, unit: int) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(data), layout.BLOCK_SIZE):
        yield at // unit, data[at : at + layout.BLOCK_SIZE]


def _extents(
    offsets: array[int], positions: array[int], lengths: array[int]
) -> Iterator[tuple[int, bytes]]:
    """Gaps are small and alike, so they pack to a few bytes each. Each block begins anew."""
    for start in range(0, len(offsets), layout.EXTENTS):
        part = slice(start, start + layout.EXTENTS)
        columns = [offsets[part], positions[part], lengths[part]]
        sizes = columns[2]
        flat = [*_gaps(columns[0], sizes), *_gaps(columns[1], sizes), *sizes]
        yield offsets[start], struct.pack(f"<{len(flat)}Q", *flat)


def _gaps(starts: array[int], lengths: array[int]) -> Iterator[int]:
    """From the end of each range to the start of the next; the first from 0."""
    return map(sub, starts, [0, *map(add, starts, lengths)])
