"""The maps of sparse members, in the four forms that GNU tar has written them in.

Old GNU: in the header block, continued in blocks after it. PAX 0.0: repeated records. PAX 0.1: one
record. PAX 1.0: decimal lines in front of the data. Rules: GNU tar 1.34 manual, "Storing Sparse
Files", and its `src/sparse.c`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pagein.images.layers import pax
from pagein.images.layers.entry import Segment
from pagein.images.layers.errors import LayerError
from pagein.images.layers.tarheader import number

Map = list[tuple[int, int]]
"""(offset in the file, length) of each stored piece, in bytes."""

_IN_HEADER, _IN_EXTENSION, _PAIR = 4, 21, 24
_MAX_SIZE = (1 << 63) - 1


def old_gnu(block: bytes, at: int) -> tuple[Map, int, bool]:
    """Of a header block: the map so far, the file's size, whether an extension block follows."""
    found = _pairs(block, 386, _IN_HEADER, at)
    return found, number(block[483:495], "a real size", at), block[482] != 0


def old_gnu_extension(block: bytes, at: int) -> tuple[Map, bool]:
    """Of an extension block: its part of the map, and whether another block follows."""
    return _pairs(block, 0, _IN_EXTENSION, at), block[504] != 0


def _pairs(block: bytes, start: int, count: int, at: int) -> Map:
    found: Map = []
    for place in range(start, start + count * _PAIR, _PAIR):
        if not block[place] or not block[place + 12]:
            break
        offset = number(block[place : place + 12], "a sparse offset", at)
        found.append((offset, number(block[place + 12 : place + 24], "a sparse length", at)))
    return found


def pax_0(records: Iterable[tuple[bytes, bytes]], at: int) -> Map | None:
    """The map in PAX records of version 0.0 or 0.1; None if there is none."""
    values: list[int] = []
    found = False
    for key, value in records:
        if key == b"GNU.sparse.map":
            found = True
            values = [pax.number(item, key, at) for item in value.split(b",") if item]
        elif key == b"GNU.sparse.numblocks":
            found = True
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            values.append(pax.number(value, key, at))
    if not found:
        return None
    if len(values) % 2:
        raise LayerError(f"tar: odd sparse map in the extended header at offset {at}")
    return list(zip(values[::2], values[1::2], strict=True))


def check(found: Map, size: int, at: int) -> None:
    """LayerError unless the pieces are in order, apart, and inside a file of `size` bytes."""
    end = 0
    for offset, length in found:
        if offset < end or length < 0:
            raise LayerError(f"tar: sparse map out of order at offset {at}")
        end = offset + length
    if not end <= size <= _MAX_SIZE:
        raise LayerError(f"tar: sparse map beyond the file's size of {size} at offset {at}")


def segments(
    found: Sequence[tuple[int, int]], position: int, stored: int, at: int
) -> list[Segment]:
    """Where the pieces lie in the tar, whose data of `stored` bytes begins at `position`."""
    placed = []
    end = position + stored
    for offset, length in found:
        if length:
            placed.append(Segment(offset, position, length))
        position += length
    if position != end:
        missing = end - position
        raise LayerError(f"tar: sparse map and stored size differ by {missing} at offset {at}")
    return placed
