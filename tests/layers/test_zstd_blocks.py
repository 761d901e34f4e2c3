"""Frames of hand-made blocks, entered at each of their blocks."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import zstandard
from tests.layers import zstdwriter
from tests.layers.zstdwriter import (
    DESCRIBED,
    HUFFMAN,
    PREDEFINED,
    REPEAT,
    REPEATED,
    STORED,
    SYMBOL,
    TREELESS,
    Writer,
)

from pagein.images.layers.point import Point
from pagein.images.layers.zstd import ZstdDecoder, ZstdUnpacker, unpacker


@pytest.fixture(autouse=True)
def _each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points between any two blocks."""
    monkeypatch.setattr(unpacker, "BLOCKS", 1)


def content(frame: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(frame)


def points_of(frame: bytes) -> tuple[bytes, list[Point]]:
    out: list[bytes] = []
    points: list[Point] = []
    unpacking = ZstdUnpacker(lambda view: out.append(bytes(view)), points.append, span=1)
    unpacking.feed(frame)
    unpacking.finish()
    return b"".join(out), points


def check(frame: bytes, *, least: int) -> list[Point]:
    """The frame is right from each of its points on, of which there are so many."""
    wanted = content(frame)
    out, points = points_of(frame)
    assert out == wanted
    for point in points:
        assert b"".join(ZstdDecoder(point).feed(frame[point.bit // 8 :])) == wanted[point.out :]
    assert len(points) >= least
    return points


def test_treeless_literals() -> None:
    writer = Writer(random.Random(1))
    writer.compressed(HUFFMAN, None, spare=200)
    for _ in range(3):
        writer.compressed(TREELESS, None, spare=200)
    check(writer.end(), least=4)


def test_treeless_literals_whose_header_must_grow() -> None:
    """With their tree they have more bytes than the header has room for: one stream cannot."""
    text = random.Random(4).choices(b"abcdefgh", range(1, 9), k=3 << 17)
    made = zstandard.ZstdCompressor(level=1).compress(bytes(text))
    points = check(made, least=2)
    assert points[0].out == 0


@pytest.mark.parametrize("first", [PREDEFINED, SYMBOL, DESCRIBED])
@pytest.mark.parametrize("table", range(3))
def test_a_table_of_an_earlier_block(first: int, table: int) -> None:
    """Repeated predefined tables, repeated tables of one symbol, repeated descriptions."""
    writer = Writer(random.Random(first * 3 + table))
    writer.raw(5000)
    modes, again = [PREDEFINED] * 3, [PREDEFINED] * 3
    modes[table], again[table] = first, REPEAT
    writer.compressed(STORED, (modes[0], modes[1], modes[2]))
    for _ in range(3):
        writer.compressed(STORED, (again[0], again[1], again[2]))
    check(writer.end(), least=4)


def test_all_tables_of_earlier_blocks_each_of_another() -> None:
    writer = Writer(random.Random(3))
    writer.raw(5000)
    writer.compressed(HUFFMAN, (SYMBOL, SYMBOL, SYMBOL), sequences=4)
    writer.compressed(TREELESS, (REPEAT, DESCRIBED, REPEAT))
    writer.compressed(TREELESS, (REPEAT, REPEAT, PREDEFINED))
    writer.raw(100)
    writer.compressed(TREELESS, None)
    writer.compressed(TREELESS, (REPEAT, REPEAT, REPEAT))
    writer.compressed(REPEATED, (REPEAT, REPEAT, REPEAT))
    check(writer.end(), least=8)


def test_repeat_offsets_far_back() -> None:
    """Those that hundreds of blocks only ever swap are still those of the first one."""
    writer = Writer(random.Random(5))
    writer.raw(9000)
    writer.compressed(STORED, (SYMBOL, SYMBOL, SYMBOL), sequences=3, offset=lambda: 5000)
    draw = random.Random(6)
    for _ in range(200):
        modes = (SYMBOL, SYMBOL, SYMBOL)
        writer.compressed(STORED, modes, sequences=2, offset=lambda: draw.choice([1, 2, 3]))
    check(writer.end(), least=200)


def frames(count: int) -> Iterator[bytes]:
    for seed in range(count):
        draw = random.Random(seed)
        try:
            yield zstdwriter.drawn(draw, draw.choice([5, 20, 60]))
        except AssertionError as error:
            assert "no such offset yet" in str(error)


def test_blocks_of_all_kinds_in_any_order() -> None:
    found = sum(len(check(frame, least=1)) for frame in frames(6))
    assert found > 50


@pytest.mark.long
def test_blocks_of_all_kinds_in_numbers() -> None:
    found = sum(len(check(frame, least=1)) for frame in frames(500))
    assert found > 5000
