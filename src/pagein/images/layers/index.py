"""Reads an index file. It is mapped: opening it reads a few kilobytes, however large it is.

What is not needed is not read, and what is read is verified: the header and the tables when it is
opened, each block when it is first used. Damage is a LayerError that names the section. Whether it
is the right index, a digest has to tell: `Index.root` covers all of it.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from pagein.images.layers import chunks, names
from pagein.images.layers import format as layout
from pagein.images.layers.chunks import Chunk
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression, Header, Kind, Layer, Table
from pagein.images.layers.names import Block as Names
from pagein.images.layers.names import Named
from pagein.images.layers.point import Point

_KEPT = 16  # unpacked blocks of a section
_KEPT_BYTES = 1 << 20
_BITS = 1 << 16  # points of which it is remembered where they are
_UNPACKED = 4  # blocks of extents as columns, 48 KiB each


class Piece(NamedTuple):
    """`length` bytes at `offset` in the data blob are those at `position` in the tar."""

    offset: int
    position: int
    length: int


class _Extents(NamedTuple):
    """Columns of a block: offsets in the blob and positions in the tar, ascending; lengths."""

    offsets: array[int]
    positions: array[int]
    lengths: array[int]


class Place(NamedTuple):
    """Span `number`, from a point to the next: `size` bytes of the tar from `out`, [start, end) of
    the layer."""

    number: int
    out: int
    size: int
    start: int
    end: int
    chunks: tuple[Chunk, ...] = ()
    """What it consists of, if the layer is one of chunks."""


class Index:
    """An open index. Its methods may wait for the disk; threads may share it. `close` it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        root: str | None = None,
        magic: bytes = layout.MAGIC,
    ) -> None:
        """Map the index at `path`; LayerError if it is damaged, or is not the one of `root`.

        `magic` is that of its kind, a layer's index by default.
        """
        self.path = os.fspath(path)
        self._unpacked: dict[int, _Extents] = {}
        self._bits: dict[int, int] = {}
        self._named: dict[int, Names] = {}
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < layout.FIXED.size:
                raise LayerError(f"{self.path}: not an index: {size} bytes")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self.header, tables, self.root = self._read_header(magic)
            if root not in (None, self.root):
                raise self._error("the header", f"this index is {self.root}, not {root}")
            self._sections = {table.kind: _Section(self, self._map, table) for table in tables}
            self._check_layout(tables)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmap it; twice is fine."""
        self._map.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what it says

    @property
    def points(self) -> int:
        """How many places there are to enter the layer's compression."""
        return self._sections[Kind.POINTS].count

    def point(self, number: int) -> Point:
        """A place to enter the layer; the first one is number 0."""
        section = self._sections[Kind.POINTS]
        content = section.block(number)
        return Point(section.key(number), self._bit_of(number, content), content[8:])

    def _bit(self, number: int) -> int:
        """That of a point; what else it says, a megabyte of window maybe, is not unpacked."""
        bit = self._bits.get(number)
        if bit is None:
            bit = self._bit_of(number, self._sections[Kind.POINTS].head(number, 8))
            if len(self._bits) < _BITS:
                self._bits[number] = bit
        return bit

    def _bit_of(self, number: int, content: bytes) -> int:
        if len(content) < 8:
            raise self._error(f"point {number}", "too short")
        bit = int.from_bytes(content[:8], "little")
        if bit >= self.header.layer.size * 8:
            raise self._error(f"point {number}", "beyond the layer")
        return bit

    def point_before(self, out: int) -> int:
        """The number of the last point at or before offset `out` in the tar."""
        return self._sections[Kind.POINTS].find(out)

    def point_out(self, number: int) -> int:
        """A point's offset in the tar; for the number after the last the tar's size."""
        section = self._sections[Kind.POINTS]
        return section.key(number) if number < section.count else self.header.tar_size

    def place(self, number: int) -> Place:
        """What lies between a point and the next; the last byte may be the next one's as well."""
        if self.header.compression in layout.CHUNKED:
            return self._of_chunks(number, self.point(number))
        start, end = self._bit(number) // 8, self.header.layer.size
        if number + 1 < self.points:
            end = -(-self._bit(number + 1) // 8)
        if start >= end:
            raise self._error(f"point {number}", "not before the next one")
        out = self.point_out(number)
        return Place(number, out, self.point_out(number + 1) - out, start, end)

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """What of [start, end) in the data blob comes from the tar, in order; the rest is zeros."""
        section = self._sections[Kind.EXTENTS]
        for number in range(max(0, section.find(start)), section.count):
            if section.key(number) >= end:
                return
            offsets, positions, lengths = self._extents(number)
            for at in range(max(0, bisect_right(offsets, start) - 1), len(offsets)):
                offset, length = offsets[at], lengths[at]
                first, last = max(start, offset), min(end, offset + length)
                if offset >= end:
                    return
                if first < last:
                    yield Piece(first, positions[at] + first - offset, last - first)

    def within(self, low: int, high: int, offset: int) -> tuple[int, int] | None:
        """From where to where in the data blob that lies which it has of [low, high) of the tar.

        None for nothing; `offset` is in the blob, of something of it.
        """
        section = self._sections[Kind.EXTENTS]
        number = max(0, section.find(offset))
        while number > 0 and self._extents(number).positions[:1] > array("Q", [low]):
            number -= 1
        found: tuple[int, int] | None = None
        while number < section.count:
            offsets, positions, lengths = self._extents(number)
            first, last = max(0, bisect_right(positions, low) - 1), bisect_left(positions, high)
            ended = last < len(positions)
            if first < last and positions[first] + lengths[first] <= low:
                first += 1
            if first < last:
                begin = offsets[first] + max(0, low - positions[first])
                stop = offsets[last - 1] + min(lengths[last - 1], high - positions[last - 1])
                found = (begin if found is None else found[0]), stop
            if ended:
                break
            number += 1
        return found

    def chunk_digest(self, number: int) -> bytes:
        """The SHA-256 of a chunk of the data blob."""
        block, within = divmod(number, layout.DIGESTS)
        content = self._sections[Kind.CHUNKS].block(block)
        digest = content[within * layout.DIGEST :][: layout.DIGEST]
        if len(digest) != layout.DIGEST:
            raise self._error("chunks", f"no digest of chunk {number}")
        return digest

    def metadata(self, offset: int, length: int) -> bytes:
        """Bytes of the EROFS image."""
        section = self._sections[Kind.METADATA]
        first, last = offset // layout.BLOCK_SIZE, -(-(offset + length) // layout.BLOCK_SIZE)
        data = b"".join(section.block(number) for number in range(first, last))
        data = data[offset - first * layout.BLOCK_SIZE :][:length]
        if len(data) != length:
            raise self._error("metadata", f"has no {length} bytes at {offset}")
        return data

    def implied(self) -> list[bytes]:
        """Paths of the directories that the archive left out; b"" is the root."""
        section = self._sections[Kind.IMPLIED]
        return b"".join(map(section.block, range(section.count))).split(b"\0")[:-1]

    @property
    def has_names(self) -> bool:
        """Whether it says what programs and modules name."""
        return Kind.NAMES in self._sections

    def names(self, start: int) -> Named | None:
        """What the file whose data begins at `start` names, if anything."""
        section = self._sections.get(Kind.NAMES)
        number = -1 if section is None else section.find(start)
        if section is None or number < 0:
            return None
        block = self._named.get(number)
        if block is None:
            try:
                block = names.unpack(section.key(number), section.block(number))
            except ValueError as error:
                raise self._error(f"names, block {number}", str(error)) from None
            self._named[number] = block
        return block.find(start)

    def verify(self) -> None:
        """Read and verify every block; LayerError names the first that is damaged."""
        for section in self._sections.values():
            for number in range(section.count):
                section.block(number)

    # ---- how it is read

    def _error(self, where: str, what: str) -> LayerError:
        return LayerError(f"{self.path}: {where} of the index: {what}")

    def _read_header(self, wanted: bytes) -> tuple[Header, list[Table], str]:
        fields = layout.FIXED.unpack_from(self._map)
        magic, version, size, file_size = fields[:4]
        if magic != wanted:
            kind = "layer" if wanted == layout.MAGIC else "file"
            raise LayerError(f"{self.path}: not an index of a {kind}")
        if version not in layout.READ:
            raise LayerError(f"{self.path}: index version {version}: {layout.VERSION} is known")
        self._version = version
        if not layout.FIXED.size < size <= min(len(self._map), 1 << 20):
            raise self._error("the header", "impossible size")
        packed = self._map[: size - layout.DIGEST]
        if hashlib.sha256(packed).digest() != self._map[len(packed) : size]:
            raise self._error("the header", "wrong digest: it is damaged")
        if file_size != len(self._map):
            raise self._error("the header", f"{file_size} bytes long, but has {len(self._map)}")
        try:
            header, tables = _unpack_header(packed)
        except (ValueError, struct.error) as error:
            raise self._error("the header", str(error)) from None
        return header, tables, f"sha256:{hashlib.sha256(self._map[:size]).hexdigest()}"

    def _check_layout(self, tables: list[Table]) -> None:
        """What nothing may be read without."""
        header = self.header
        kinds = list(Kind)[: 6 if self._version > 2 else 5]
        if [table.kind for table in tables] != kinds:
            raise self._error("the header", "not the sections of this version")
        if header.chunk != _power_of_two(header.chunk) or not 4096 <= header.chunk <= 1 << 24:
            raise self._error("the header", f"chunks of {header.chunk} bytes")
        packed = header.compression is not Compression.NONE
        if packed and header.tar_size and (not self.points or self.point_out(0) != 0):
            raise self._error("points", "none at the start")

    def _of_chunks(self, number: int, point: Point) -> Place:
        try:
            end, found = chunks.unpack(point.window)
        except LayerError as error:
            raise self._error(f"point {number}", str(error)) from None
        size, start = self.point_out(number + 1) - point.out, point.bit // 8
        if start != found[0].start or end > self.header.layer.size:
            raise self._error(f"point {number}", "not within the layer")
        if size != sum(chunk.size for chunk in found):
            raise self._error(f"point {number}", "not of the size that it should be")
        return Place(number, point.out, size, start, end, tuple(found))

    def _extents(self, number: int) -> _Extents:
        """A block of extents, its gaps added up again."""
        known = self._unpacked.get(number)
        if known is not None:
            return known
        content = self._sections[Kind.EXTENTS].block(number)
        count, odd = divmod(len(content), 24)
        if odd:
            raise self._error(f"extents, block {number}", "odd size")
        numbers = struct.unpack(f"<{3 * count}Q", content)
        lengths = numbers[2 * count :]
        before = (0, *lengths)
        gaps = [map(sum, zip(numbers[at : at + count], before, strict=False)) for at in (0, count)]
        try:
            columns = [array("Q", itertools.accumulate(each)) for each in gaps]
        except OverflowError:
            raise self._error(f"extents, block {number}", "beyond all layers") from None
        found = _Extents(columns[0], columns[1], array("Q", lengths))
        if len(self._unpacked) >= _UNPACKED:
            self._unpacked.pop(next(iter(self._unpacked), -1), None)
        self._unpacked[number] = found
        return found


class _Section:
    """The blocks of a section, by number and by key."""

    def __init__(self, index: Index, map_: mmap.mmap, table: Table) -> None:
        self.count = table.blocks
        self._index = index
        self._map = map_
        self._table = table
        self._kept: dict[int, bytes] = {}
        self._name = table.kind.name.lower()
        end = table.offset + table.blocks * layout.BLOCK.size
        if hashlib.sha256(map_[table.offset : end]).digest() != table.sha256:
            raise self._error(f"the table of {self._name}", "wrong digest: it is damaged")

    def key(self, number: int) -> int:
        """The key of a block."""
        return int(self._entry(number)[0])

    def find(self, key: int) -> int:
        """The last block whose key is not greater; -1 if there is none."""
        return bisect_right(range(self.count), key, key=self.key) - 1

    def block(self, number: int) -> bytes:
        """A block's content, verified."""
        content = self._kept.get(number)
        if content is None:
            content = self._read(number)
            self._keep(number, content)
        return content

    def head(self, number: int, length: int) -> bytes:
        """How a block begins; only that is unpacked, of what was verified."""
        content = self._kept.get(number)
        return self._read(number, length) if content is None else content[:length]

    def _keep(self, number: int, content: bytes) -> None:
        held = sum(map(len, list(self._kept.values()))) + len(content)
        for each in list(self._kept):
            if len(self._kept) < _KEPT and held <= _KEPT_BYTES:
                break
            held -= len(self._kept.pop(each, b""))
        self._kept[number] = content

    def _entry(self, number: int) -> tuple[int, int, int, int, bytes]:
        if not 0 <= number < self.count:
            raise self._error(self._name, f"has no block {number}")
        at = self._table.offset + number * layout.BLOCK.size
        return layout.BLOCK.unpack_from(self._map, at)

    def _read(self, number: int, length: int | None = None) -> bytes:
        _, offset, stored_size, size, sha256 = self._entry(number)
        where = f"{self._name}, block {number}"
        stored = self._map[offset : offset + stored_size]
        if hashlib.sha256(stored).digest() != sha256:
            raise self._error(where, "wrong digest: it is damaged")
        if size > (layout.MAX_POINT if self._table.kind is Kind.POINTS else layout.MAX_BLOCK):
            raise self._error(where, f"too large: {size} bytes")
        content = stored
        if size != stored_size:
            try:
                content = zlib.decompressobj().decompress(stored, length or size + 1)
            except zlib.error as error:
                raise self._error(where, str(error)) from None
        if length is not None:
            return content[:length]
        if len(content) != size:
            raise self._error(where, "not of the size that it should be")
        return content

    def _error(self, where: str, what: str) -> LayerError:
        return self._index._error(where, what)


def _unpack_header(packed: bytes) -> tuple[Header, list[Table]]:
    fields = layout.FIXED.unpack_from(packed)
    file_size, layer_size, tar_size, blob_size, metadata_size, chunk = fields[3:9]
    compression, sections, _ = fields[9:]
    at = layout.FIXED.size
    tables = []
    for _ in range(sections):
        kind, blocks, offset, sha256 = layout.SECTION.unpack_from(packed, at)
        tables.append(Table(Kind(kind), blocks, offset, sha256))
        at += layout.SECTION.size
    strings = []
    for _ in range(3):
        (length,) = layout.STRING.unpack_from(packed, at)
        at += layout.STRING.size
        strings.append(packed[at : at + length].decode())
        at += length
    if at != len(packed):
        raise ValueError("not of the size that it should be")
    digest, diff_id, media_type = strings
    layer = Layer(digest, layer_size, media_type, diff_id)
    sizes = (file_size, tar_size, blob_size, metadata_size, chunk)
    return Header(layer, Compression(compression), *sizes), tables


def _power_of_two(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()
