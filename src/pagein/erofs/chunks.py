"""Extents of a file as chunk indexes.

A chunk is 4096 bytes times a power of two, and every chunk of a file has the same size. The largest
one is chosen for which each chunk lies in one piece in one device, or in a hole: one index for a
contiguous file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pagein.erofs.format import (
    BLOCK_BITS,
    BLOCK_SIZE,
    CHUNK_BITS_MASK,
    CHUNK_INDEX,
    NULL_ADDRESS,
    align,
)
from pagein.erofs.tree import Device, Extent

MAX_INDEXES = 1 << 22
"""Of one file: 32 MiB. A sparse file that wants more is refused, lest a few bytes of archive make
gigabytes of metadata."""

_HOLE = CHUNK_INDEX.pack(0, 0, NULL_ADDRESS)
_PIECE = 1 << 13  # indexes made at a time


class Run(NamedTuple):
    """A contiguous part of a file, in blocks: where, how many, which device, where there."""

    start: int
    blocks: int
    device: int
    address: int

    @property
    def end(self) -> int:
        """The block after it."""
        return self.start + self.blocks


class Chunks(NamedTuple):
    """A file's map: runs in ascending order, holes between, and the size of its chunks."""

    runs: list[Run]
    blocks: int
    """Of the file."""
    bits: int
    """log2 of a chunk's blocks."""

    @property
    def total(self) -> int:
        """How many chunks."""
        return (self.blocks + (1 << self.bits) - 1) >> self.bits


def chunks_of(size: int, extents: Iterable[Extent], devices: Sequence[Device]) -> Chunks:
    """The map of a file of `size` bytes; ValueError for extents that cannot be."""
    runs = _runs(size, extents, devices)
    blocks = align(size, BLOCK_SIZE) >> BLOCK_BITS
    if len(runs) == 1 and runs[0].blocks == blocks:  # of nearly all files
        return Chunks(runs, blocks, bits_of(blocks))
    edges = {edge for run in runs for edge in (run.start, run.end) if 0 < edge < blocks}
    # An edge must lie between two chunks: its lowest set bit bounds their size.
    wide = min((edge & -edge).bit_length() - 1 for edge in edges) if edges else _log2(blocks)
    found = Chunks(runs, blocks, min(wide, CHUNK_BITS_MASK))
    if found.total > MAX_INDEXES:
        raise ValueError(f"too sparse: {found.total} chunk indexes, {MAX_INDEXES} is the limit")
    return found


def whole(size: int, extents: Sequence[Extent], devices: Sequence[Device]) -> Run | None:
    """The run of a file of `size` bytes that is one chunk; None for others. ValueError as above."""
    if len(extents) != 1 or extents[0].length != size or size > BLOCK_SIZE << CHUNK_BITS_MASK:
        return None
    return _run(size, extents[0], devices)


def bits_of(blocks: int) -> int:
    """log2 of the blocks of a chunk that holds so many, if one can."""
    return min((blocks - 1).bit_length(), CHUNK_BITS_MASK) if blocks else 0


def indexes(chunks: Chunks) -> Iterator[bytes]:
    """The chunk indexes, in pieces of at most 64 KiB."""
    if chunks.runs and chunks.total == 1:  # of nearly all files
        yield CHUNK_INDEX.pack(0, chunks.runs[0].device, chunks.runs[0].address)
        return
    at = 0
    for start, blocks, device, address in chunks.runs:
        first = start >> chunks.bits
        yield from _holes(first - at)
        at = (start + blocks + (1 << chunks.bits) - 1) >> chunks.bits
        step = 1 << chunks.bits
        for piece in range(0, at - first, _PIECE):
            begin = address + piece * step
            until = address + min(piece + _PIECE, at - first) * step
            pack = CHUNK_INDEX.pack
            yield b"".join([pack(0, device, each) for each in range(begin, until, step)])
    yield from _holes(chunks.total - at)


def _holes(count: int) -> Iterator[bytes]:
    for at in range(0, count, _PIECE):
        yield _HOLE * min(_PIECE, count - at)


def _log2(value: int) -> int:
    """Rounded up."""
    return max(0, value - 1).bit_length()


def _runs(size: int, extents: Iterable[Extent], devices: Sequence[Device]) -> list[Run]:
    runs: list[Run] = []
    for extent in extents:
        run = _run(size, extent, devices)
        last = runs[-1] if runs else None
        if last is not None and run.start < last.end:
            raise ValueError(f"extents overlap at byte {extent.offset}")
        if last is not None and _touch(last, run):
            runs[-1] = last._replace(blocks=last.blocks + run.blocks)
        else:
            runs.append(run)
    return runs


def _touch(a: Run, b: Run) -> bool:
    """Whether `b` goes on where `a` ends, in the file and in the device."""
    return (a.end, a.device, a.address + a.blocks) == (b.start, b.device, b.address)


def _run(size: int, extent: Extent, devices: Sequence[Device]) -> Run:
    offset, length, device, position = extent.offset, extent.length, extent.device, extent.position
    end = offset + length
    if offset < 0 or position < 0 or (offset | position) % BLOCK_SIZE:
        raise ValueError(f"{extent} does not begin at a block")
    if length <= 0 or end > size or (end < size and end % BLOCK_SIZE):
        raise ValueError(f"{extent} does not end at a block, nor where the file does ({size})")
    blocks, address = -(-length >> BLOCK_BITS), position >> BLOCK_BITS
    if not 0 <= device <= len(devices):
        raise ValueError(f"{extent} names a device that is not there")
    limit = devices[device - 1].blocks if device else 0
    if address + blocks > (limit or NULL_ADDRESS):
        raise ValueError(f"{extent} ends beyond its device")
    return Run(offset >> BLOCK_BITS, blocks, device, address)
