"""Damaged zstd layers, and indexes of them: an error that says so, or the right bytes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from tests.layers import zstdencoders, zstdwriter
from tests.layers.rig import Bytes, Indexed, member, tar_of
from tests.memory import forget_peak, peak

from pagein.images.layers import pointlist
from pagein.images.layers.errors import LayerError
from pagein.images.layers.index import Index
from pagein.images.layers.point import Point
from pagein.images.layers.read import LayerOrigin
from pagein.images.layers.zstd import ZstdDecoder, ZstdUnpacker, state, unpacker
from pagein.images.layers.zstd.patch import Splice

EACH = 60.0  # seconds: a hang, not a measure
WINDOW = 16 << 10


@pytest.fixture(autouse=True)
def _near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points every 16 KiB."""
    monkeypatch.setattr(unpacker, "BLOCKS", 1)
    monkeypatch.setattr(unpacker, "SPAN", WINDOW)
    monkeypatch.setattr(pointlist, "_MOST", 1)  # they may take all of it
    monkeypatch.setattr(pointlist, "_DEAR_MOST", 1)


def packed(content: bytes, log: int = 14, sizes: tuple[int, ...] = (9000, 7000, 30)) -> bytes:
    """In small blocks, with a small window."""
    given = zstandard.ZstdCompressionParameters.from_level(12, window_log=log, write_checksum=True)
    return zstdencoders.flushed(given, [*sizes])(content)


def layer(size: int, directory: Path) -> Indexed:
    """With its index: of `size` bytes, or more, until three points have a window."""
    while True:
        content = zstdencoders.tar_of_text(random.Random(1), size)
        made = Indexed(packed(content), directory / "index")
        with made.opened() as index:
            if sum(bool(index.point(number).window) for number in range(index.points)) >= 3:
                return made
        size += 20_000


def points_of(data: bytes) -> tuple[bytes, list[Point]]:
    out: list[bytes] = []
    points: list[Point] = []
    with contextlib.closing(
        ZstdUnpacker(lambda view: out.append(bytes(view)), points.append, span=1)
    ) as unpacking:
        for at in range(0, len(data), 5000):
            unpacking.feed(data[at : at + 5000])
        unpacking.finish()
    return b"".join(out), points


def flips(data: bytes) -> Iterator[bytes]:
    """With one bit wrong, in each byte in turn."""
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        yield bytes(flipped)


def test_each_flipped_bit_of_an_index_is_found_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacker, "SPAN", 1000)
    text = b" ".join(b"%d" % (n * n) for n in range(700))
    made = Indexed(packed(tar_of(member(b"a", data=text)), 10, (1000,)), tmp_path / "index")
    with made.opened() as index:
        assert sum(bool(index.point(number).window) for number in range(index.points)) >= 3
    path = tmp_path / "flipped"
    named = set()
    for flipped in flips(made.path.read_bytes()):
        path.write_bytes(flipped)
        with pytest.raises(LayerError, match="flipped: ") as caught, Index(path) as index:
            index.verify()
        named.add(str(caught.value).split(": ")[1].split(",")[0].removesuffix(" of the index"))
    assert {"points", "chunks", "the table of points"} <= named


def test_what_is_read_through_a_flipped_index_is_right_or_an_error(tmp_path: Path) -> None:
    made = layer(60_000, tmp_path)
    path = tmp_path / "flipped"
    draw = random.Random(2)
    good = made.path.read_bytes()
    refused = 0

    async def read(index: Index, offset: int, length: int) -> bytes:
        origin = LayerOrigin(index, Bytes(made.data))
        try:
            return await origin.read(offset, length)
        finally:
            await origin.close()

    for _ in range(150):
        flipped = bytearray(good)
        flipped[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        offset = draw.randrange(len(made.blob) - 4096)
        try:
            with Index(path) as index:
                found = asyncio.run(read(index, offset, 4096))
        except (LayerError, OSError) as error:
            assert str(error).isprintable()
            refused += 1
        else:
            assert found == made.blob[offset : offset + 4096]
    assert refused > 10


def mutated(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 3, 20])):
        at = draw.randrange(len(changed) or 1)
        match draw.randrange(5):
            case 0 | 1:
                changed[at : at + 1] = bytes((draw.randrange(256),))
            case 2:
                del changed[at : at + draw.choice([1, 4, 100])]
            case 3:
                changed[at:at] = draw.randbytes(draw.choice([1, 4, 30]))
            case 4:
                changed[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(changed)


def fuzz_points(count: int) -> None:
    """Points that no builder made: an error, or some bytes, which are compared with a digest."""
    data = packed(zstdencoders.tar_of_text(random.Random(5), 200_000))
    _, points = points_of(data)
    refused = 0
    for seed in range(count):
        draw = random.Random(seed)
        point = draw.choice(points[1:])
        point = point._replace(window=mutated(point.window, draw))
        began = time.monotonic()
        try:
            size = sum(map(len, ZstdDecoder(point).feed(data[point.bit // 8 :])))
            assert size < 1 << 20
        except LayerError as error:
            assert str(error).isprintable()
            refused += 1
        assert time.monotonic() - began < EACH, f"seed {seed}"
    assert refused > count // 10


def fuzz_layers(count: int) -> None:
    """An error, or what the decoder itself makes of it."""
    content = zstdencoders.tar_of_text(random.Random(6), 60_000)
    refused = 0
    for seed in range(count):
        draw = random.Random(seed)
        good = packed(content)
        if draw.randrange(2):
            with contextlib.suppress(AssertionError):
                good = zstdwriter.drawn(draw, 20)
        data = mutated(good, draw)
        began = time.monotonic()
        try:
            out, points = points_of(data)
        except LayerError as error:
            assert str(error).isprintable()
            refused += 1
        else:
            for point in points:
                found = b"".join(ZstdDecoder(point).feed(data[point.bit // 8 :]))
                assert found == out[point.out :], f"seed {seed}"
        with contextlib.suppress(LayerError):
            for point in points_of(good)[1][:3]:
                list(ZstdDecoder(point).feed(mutated(good[point.bit // 8 :], draw)))
        assert time.monotonic() - began < EACH, f"seed {seed}"
    assert refused > count // 10


def test_damaged_points() -> None:
    fuzz_points(300)


def test_damaged_layers() -> None:
    fuzz_layers(10)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_damage_in_numbers() -> None:
    before = forget_peak()
    fuzz_points(10_000)
    fuzz_layers(1000)
    assert peak() - before < 512 << 20


@pytest.mark.parametrize("change", ["reps", "splices", "runs", "kept", "cut", "flags", "window"])
def test_points_that_lie_are_refused(change: str) -> None:
    data = packed(zstdencoders.tar_of_text(random.Random(5), 100_000))
    point = points_of(data)[1][-1]
    good = state.unpack(point.window)
    bad = {
        "reps": state.pack(good._replace(reps=(1, 4, good.length + 1))),
        "splices": state.pack(good._replace(splices=[Splice(9, 3, b""), Splice(5, 1, b"")])),
        "runs": state.pack(good._replace(runs=[(0, good.length + 1)])),
        "kept": state.pack(good._replace(kept=good.kept + b"x")),
        "cut": point.window[:20],
        "flags": b"\xff" + point.window[1:],
        "window": point.window[:1] + b"\xff" + point.window[2:],
    }[change]
    with pytest.raises(LayerError, match="zstd: a damaged point"):
        list(ZstdDecoder(point._replace(window=bad)).feed(data[point.bit // 8 :]))
