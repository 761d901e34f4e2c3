"""The points of a layer while its index is built: packed at once, and thinned out if they are many.

A window is 32 KiB, and as the index stores it some 2 KB: those of a large layer would not fit into
memory as they come.
"""

from __future__ import annotations

from typing import NamedTuple

from pagein.images.layers import format as layout
from pagein.images.layers.format import Block
from pagein.images.layers.point import PACKED_INTERVAL, Point

_MOST = 50
"""Points may take a 50th of the layer: what else is in an index takes less than as much again, and
4 % is what an index may take of its layer."""


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

    def add(self, point: Point) -> None:
        """Pack a point."""
        content = point.bit.to_bytes(8, "little") + point.window
        self._points.append(_Packed(point.bit, layout.pack(point.out, content)))

    def blocks(self, layer_size: int) -> list[Block]:
        """The points as blocks of the index of a layer of so many bytes (packed).

        While they take too much, every second one goes, as if the interval had been twice as long:
        where spans stay as short as they have to be in the packed layer.
        """
        points = self._points
        while sum(point.size for point in points) > layer_size // _MOST:
            fewer = _every_second(points, layer_size * 8)
            if len(fewer) == len(points):
                break
            points = fewer
        return [point.block for point in points]


def _every_second(points: list[_Packed], end: int) -> list[_Packed]:
    """`end` is that of the layer in bits."""
    kept: list[_Packed] = []
    dropped = True
    for point, after in zip(points, [*(point.bit for point in points[1:]), end], strict=True):
        dropped = not dropped and after - kept[-1].bit <= PACKED_INTERVAL * 8
        if not dropped:
            kept.append(point)
    return kept
