"""What a point in the middle of a frame carries, as bytes (docs/index-format.md)."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from operator import sub
from typing import NamedTuple

from pagein.images.layers.errors import LayerError
from pagein.images.layers.zstd import synthetic
from pagein.images.layers.zstd.frames import MAX_BLOCK
from pagein.images.layers.zstd.library import MAX_WINDOW
from pagein.images.layers.zstd.patch import Splice
from pagein.images.layers.zstd.synthetic import Reps

_HEAD = struct.Struct("<BBHIIIII")
"""Flags, window descriptor, splices, repeat offsets, content length, runs."""
_SPLICE = struct.Struct("<IHH")
_CHECKED = 1
_MOST_SPLICES = 4


class State(NamedTuple):
    """How to go on in the middle of a frame."""

    checked: bool
    """Whether four bytes of checksum follow the frame's last block."""
    window: int
    """Bytes of the frame's window: how far its blocks may look back."""
    reps: Reps
    length: int
    """Bytes of the window that are given, up to the point."""
    splices: Sequence[Splice]
    runs: Sequence[tuple[int, int]]
    """Which ranges of it are kept, ascending; all else is zeros."""
    kept: bytes
    """They, one after the other."""

    def dictionary(self) -> bytearray:
        """For a decoder that is to go on there."""
        made, content = synthetic.dictionary(self.reps, self.length)
        at = 0
        for start, end in self.runs:
            content[start:end] = self.kept[at : at + end - start]
            at += end - start
        return made


def pack(state: State) -> bytes:
    """As bytes. Gaps and lengths are in columns of bytes, the lowest first: so they pack best."""
    head = _HEAD.pack(
        _CHECKED * state.checked,
        synthetic.window_descriptor(state.window),
        len(state.splices),
        *state.reps,
        state.length,
        len(state.runs),
    )
    splices = [_SPLICE.pack(each.at, each.delete, len(each.insert)) for each in state.splices]
    inserted = [each.insert for each in state.splices]
    starts, ends = [start for start, _ in state.runs], [end for _, end in state.runs]
    numbers = array("I", [*map(sub, starts, [0, *ends]), *map(sub, ends, starts)])
    columns = numbers.tobytes()
    return b"".join([head, *splices, *inserted, *(columns[n::4] for n in range(4)), state.kept])


def unpack(data: bytes) -> State:
    """LayerError if it is none."""
    try:
        return _unpack(data)
    except (struct.error, ValueError) as error:
        raise LayerError(f"zstd: a damaged point: {error}") from None


def _unpack(data: bytes) -> State:
    flags, descriptor, count, first, second, third, length, runs = _HEAD.unpack_from(data)
    at = _HEAD.size
    if flags & ~_CHECKED or count > _MOST_SPLICES:
        raise ValueError("of another version")
    if not 0 < min(first, second, third) <= max(first, second, third) <= length <= MAX_WINDOW:
        raise ValueError("repeat offsets beyond its window")
    window = synthetic.window(descriptor)
    if window > MAX_WINDOW:
        raise ValueError("a window that is too large")
    heads = [_SPLICE.unpack_from(data, at + n * _SPLICE.size) for n in range(count)]
    at += count * _SPLICE.size
    splices, before = [], 0
    for place, delete, size in heads:
        splices.append(Splice(place, delete, data[at : at + size]))
        if place < before or delete > MAX_BLOCK or len(splices[-1].insert) != size:
            raise ValueError("splices out of order")
        before, at = place + delete, at + size
    columns = data[at : at + 8 * runs]
    if len(columns) != 8 * runs:
        raise ValueError("too short")
    ranges = _ranges(columns, runs)
    kept = data[at + 8 * runs :]
    if (ranges and ranges[-1][1] > length) or sum(b - a for a, b in ranges) != len(kept):
        raise ValueError("a window of another size")
    reps = first, second, third
    return State(bool(flags & _CHECKED), window, reps, length, splices, ranges, kept)


def _ranges(columns: bytes, count: int) -> list[tuple[int, int]]:
    packed = bytearray(8 * count)
    for n in range(4):
        packed[n::4] = columns[n * 2 * count : (n + 1) * 2 * count]
    numbers = array("I")
    numbers.frombytes(bytes(packed))
    ranges, end = [], 0
    for gap, length in zip(numbers[:count], numbers[count:], strict=True):
        ranges.append((end + gap, end + gap + length))
        end += gap + length
    return ranges
