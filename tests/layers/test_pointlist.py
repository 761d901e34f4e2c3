"""Points thinned out where they would take too much of the layer."""

import itertools

from pagein.images.layers.format import Block
from pagein.images.layers.point import PACKED_INTERVAL, Point
from pagein.images.layers.pointlist import PointList

NOISE = bytes(byte for byte in range(1, 201))  # does not pack: with its table entry 264 bytes


def blocks(layer_size: int, bits: list[int]) -> list[Block]:
    points = PointList()
    for number, bit in enumerate(bits):
        points.add(Point(number << 20, bit, NOISE if number else b""))
    return points.blocks(layer_size)


def test_few_points_all_stay() -> None:
    assert len(blocks(100_000_000, [n * 8 * 100_000 for n in range(1000)])) == 1000


def test_every_second_one_goes_until_the_rest_is_little_enough() -> None:
    found = blocks(10_000_000, [n * 8 * 10_000 for n in range(1000)])
    assert [block.key >> 20 for block in found] == list(range(0, 1000, 2))
    assert sum(len(block.stored) + 56 for block in found) <= 10_000_000 // 50


def test_spans_of_the_packed_layer_stay_short() -> None:
    """A few of them make one; none is longer than a read may cost."""
    step = PACKED_INTERVAL // 3
    found = blocks(1_000_000, [n * 8 * step for n in range(100)])
    gaps = [(b.key - a.key) >> 20 for a, b in itertools.pairwise(found)]
    assert max(gaps) * step <= PACKED_INTERVAL
    assert len(found) < 70


def test_the_first_one_always_stays() -> None:
    assert [block.key for block in blocks(10, [80, 8000])][:1] == [0]
    assert blocks(10, []) == []
