"""The points of a layer while its index is built: packed at once, and thinned out if they are many.

A window of gzip is 32 KiB, and as the index stores it some 2 KB: those of a large layer would not
fit into memory as they come. What a point in a zstd frame needs of its window takes from nothing to
a megabyte, and two places near each other differ much: so the dearest ones go, one by one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pagein.images.layers import format as layout
from pagein.images.layers.format import Block
from pagein.images.layers.point import PACKED_INTERVAL, Point

_MOST = 50
"""Points may take a 50th of the layer: what else is in an index takes less than as much again, and
4 % is what an index may take of its layer."""

_DEAR: Final = PACKED_INTERVAL // 64
"""Bytes of the index from which on a point is dear: a gzip point never is."""

_DEAR_MOST: Final = 20
"""Dear ones may take a 20th of the layer before spans become longer than `_DEAR_REACH`."""

_DEAR_REACH: Final = 1_850_000
"""Bytes of the layer that a span may have so that dear points take only a 50th of it."""

_LEVEL: Final = 5
"""Of zlib: the next one takes a third more time, for points that are a 100th smaller."""

_AHEAD: Final = 4 << 20  # bytes that they may take beyond that while the layer comes


class _Packed(NamedTuple):
    bit: int
    block: Block

    @property
    def size(self) -> int:
        """Bytes of the index."""
        return len(self.block.stored) + layout.BLOCK.size


class PointList:
    """`add` points in order, then take `blocks`."""

    def __init__(self) -> None:
        self._points: list[_Packed] = []
        self._size = 0

    def add(self, point: Point) -> None:
        """Pack a point. One that is too large for an index is left out."""
        content = point.bit.to_bytes(8, "little") + point.window
        if len(content) > layout.MAX_POINT:
            return
        self._points.append(_Packed(point.bit, layout.pack(point.out, content, _LEVEL)))
        self._size += self._points[-1].size
        so_far = point.bit // 8
        if self._size > so_far // _DEAR_MOST + _AHEAD:
            self._points = _without_dear(self._points, so_far)
            self._size = sum(each.size for each in self._points)

    def blocks(self, layer_size: int) -> list[Block]:
        """The points as blocks of the index of a layer of so many bytes (packed).

        While they take too much, every second one goes, as if the interval had been twice as long:
        where spans stay as short as they have to be in the packed layer.
        """
        points = _without_dear(self._points, layer_size)
        while _size(points) > layer_size // _MOST:
            fewer = _every_second(points, layer_size * 8)
            if len(fewer) == len(points):
                break
            points = fewer
        return [point.block for point in points]


def _size(points: list[_Packed]) -> int:
    return sum(point.size for point in points)


def _every_second(points: list[_Packed], end: int) -> list[_Packed]:
    """`end` is that of the layer in bits."""
    kept: list[_Packed] = []
    dropped = True
    for point, after in zip(points, [*(point.bit for point in points[1:]), end], strict=True):
        dropped = not dropped and after - kept[-1].bit <= PACKED_INTERVAL * 8
        if not dropped:
            kept.append(point)
    return kept


def _without_dear(points: list[_Packed], layer_size: int) -> list[_Packed]:
    """As few dear ones left out as need be, the dearest first."""
    reach = _DEAR_REACH
    points = _up_to(points, layer_size, layer_size // _MOST, reach)
    while _size(points) > layer_size // _DEAR_MOST and reach < layer_size:
        reach += reach // 4
        points = _up_to(points, layer_size, layer_size // _DEAR_MOST, reach)
    return points


def _up_to(points: list[_Packed], layer_size: int, most: int, reach: int) -> list[_Packed]:
    """`points` of at most `most` bytes, if spans of up to `reach` bytes of the layer allow that."""
    size = _size(points)
    before, after = list(range(-1, len(points) - 1)), list(range(1, len(points) + 1))
    bits = [*(point.bit for point in points), layer_size * 8]
    dear = [number for number in range(1, len(points)) if points[number].size > _DEAR]
    gone = set()
    for number in sorted(dear, key=lambda number: -points[number].size):
        if size <= most:
            break
        low, high = before[number], after[number]
        if bits[high] - bits[low] <= reach * 8:
            gone.add(number)
            size -= points[number].size
            after[low] = high
            if high < len(points):
                before[high] = low
    return [point for number, point in enumerate(points) if number not in gone]
