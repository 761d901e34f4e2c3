"""Writes an index file."""

from __future__ import annotations

import hashlib
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from typing import BinaryIO

from pagein.images.layers import format as layout
from pagein.images.layers.format import Header, Kind, Table
from pagein.images.layers.point import Point

_PACKERS = 2  # threads
_BATCH = 64  # blocks in memory at a time


def write(
    out: BinaryIO,
    header: Header,
    *,
    metadata: BinaryIO,
    extents: tuple[array[int], array[int], array[int]],
    points: Iterable[Point],
    digests: bytes | bytearray,
    implied: Sequence[bytes],
) -> None:
    """Write the index to `out`, which is empty and can seek.

    `extents` are the columns of `BlobBuilder`; `metadata` is read from where it stands. The sizes
    in `header` are those given, but for the file's own.
    """
    blank = _pack_header(header, [Table(kind, 0, 0, b"") for kind in Kind])
    names = b"".join(path + b"\0" for path in implied)
    sections: dict[Kind, Iterator[tuple[int, bytes]]] = {
        Kind.METADATA: _file(metadata),
        Kind.EXTENTS: _extents(*extents),
        Kind.POINTS: ((p.out, struct.pack("<Q", p.bit) + p.window) for p in points),
        Kind.CHUNKS: _cut(bytes(digests), layout.DIGEST),
        Kind.IMPLIED: _cut(names, 1),
    }
    with ThreadPoolExecutor(_PACKERS, "index") as packers:
        writer = _Writer(out, len(blank), packers)
        blocks = {
            kind: writer.blocks(of, pack=kind is not Kind.CHUNKS) for kind, of in sections.items()
        }
    tables = [writer.table(kind, table) for kind, table in blocks.items()]
    size = writer.at
    out.seek(0)
    out.write(_pack_header(header._replace(file_size=size), tables))
    out.seek(size)


class _Writer:
    def __init__(self, out: BinaryIO, header_size: int, packers: Executor) -> None:
        self.at = header_size
        self._out = out
        self._packers = packers
        out.seek(header_size)

    def blocks(self, blocks: Iterable[tuple[int, bytes]], *, pack: bool) -> bytes:
        """Write blocks, given as (key, content); the table of them."""
        table = bytearray()
        todo = iter(blocks)
        while batch := list(islice(todo, _BATCH)):
            contents = [content for _, content in batch]
            stored_ones = self._packers.map(_packed, contents) if pack else contents
            for (key, content), stored in zip(batch, stored_ones, strict=True):
                sha256 = hashlib.sha256(stored).digest()
                table += layout.BLOCK.pack(key, self.at, len(stored), len(content), sha256)
                self._write(stored)
        return bytes(table)

    def table(self, kind: Kind, table: bytes) -> Table:
        """Write a section's table."""
        at = self.at
        self._write(table)
        return Table(kind, len(table) // layout.BLOCK.size, at, hashlib.sha256(table).digest())

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self.at += len(data)


def _packed(content: bytes) -> bytes:
    """As it is stored: packed if that is smaller."""
    stored = zlib.compress(content, 6)
    return stored if len(stored) < len(content) else content


def _pack_header(header: Header, tables: Sequence[Table]) -> bytes:
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
            layout.MAGIC,
            layout.VERSION,
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


def _file(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    at = 0
    while block := file.read(layout.BLOCK_SIZE):
        yield at, block
        at += len(block)


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
        gaps = [_gaps(columns[0], sizes), _gaps(columns[1], sizes), sizes.tolist()]
        flat = [number for column in gaps for number in column]
        yield offsets[start], struct.pack(f"<{len(flat)}Q", *flat)


def _gaps(starts: array[int], lengths: array[int]) -> list[int]:
    """From the end of each range to the start of the next; the first from 0."""
    ends = [0, *(start + length for start, length in zip(starts, lengths, strict=True))]
    return [start - end for start, end in zip(starts, ends[:-1], strict=True)]
