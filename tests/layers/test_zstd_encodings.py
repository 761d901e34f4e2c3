"""Layers by every encoder: points in the middle of their frames, read from in random places."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.layers import zstdencoders
from tests.layers.rig import Bytes, Indexed
from tests.layers.zstdencoders import ENCODERS, VARIANTS, Encode

from pagein.images.layers.point import Point
from pagein.images.layers.read import LayerOrigin
from pagein.images.layers.zstd import ZstdDecoder, ZstdUnpacker, unpacker

READ = 64 << 10
FEED = 100_000


@pytest.fixture
def _each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points between any two blocks, of less than 1 MiB."""
    monkeypatch.setattr(unpacker, "BLOCKS", 1)


def unpack(data: bytes, span: int | None) -> tuple[bytes, list[Point]]:
    out: list[bytes] = []
    points: list[Point] = []
    unpacking = ZstdUnpacker(lambda view: out.append(bytes(view)), points.append, span)
    for at in range(0, len(data), FEED):
        unpacking.feed(data[at : at + FEED])
    unpacking.finish()
    return b"".join(out), points


def read(data: bytes, points: list[Point], start: int, length: int) -> bytes:
    """From the point before, as little of the layer as is needed."""
    point = points[bisect_right(points, start, key=lambda each: each.out) - 1]
    decoder, found, at = ZstdDecoder(point), bytearray(), point.bit // 8
    wanted = start + length - point.out
    while len(found) < wanted and at < len(data):
        for piece in decoder.feed(data[at : at + FEED]):
            found += piece
        at += FEED
    return bytes(found[start - point.out : wanted])


def check(content: bytes, data: bytes, *, reads: int, span: int | None) -> int:
    """Random reads are right; how many points there are."""
    out, points = unpack(data, span)
    assert out == content
    draw = random.Random(len(data))
    for _ in range(reads):
        start = draw.randrange(max(1, len(content)))
        length = min(READ, len(content) - start)
        assert read(data, points, start, length) == content[start : start + length]
    return len(points)


@pytest.mark.usefixtures("_each_block")
@pytest.mark.parametrize("name", ENCODERS)
def test_each_encoder(name: str) -> None:
    content = zstdencoders.tar_of_text(random.Random(1), 1 << 20)
    assert check(content, ENCODERS[name](content), reads=30, span=128 << 10) >= 5


@pytest.mark.usefixtures("_each_block")
def test_skopeo(tmp_path: Path) -> None:
    content = zstdencoders.tar_of_text(random.Random(2), 2 << 20)
    data = zstdencoders.by_skopeo(tmp_path)(content)
    assert check(content, data, reads=30, span=256 << 10) >= 6


@pytest.mark.usefixtures("_each_block")
@pytest.mark.parametrize("name", ["level 19", "window 10", "tiny blocks", "frames"])
def test_some_variants(name: str) -> None:
    for _, content in zstdencoders.contents(400_000):
        check(content, VARIANTS[name](content), reads=5, span=64 << 10)


pieces = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.builds(lambda one, n: one * n, st.binary(min_size=1, max_size=9), st.integers(1, 9000)),
        st.builds(
            lambda seed, n: random.Random(seed).randbytes(n),
            st.integers(0, 3),
            st.integers(0, 90_000),
        ),
    ),
    max_size=40,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces=pieces, level=st.integers(-5, 19), log=st.integers(10, 20))
def test_any_content(pieces: list[bytes], level: int, log: int) -> None:
    content = b"".join(pieces)
    encode = zstdencoders.by_library(level, window_log=log)
    check(content, encode(content), reads=5, span=16 << 10)


# ---- in numbers ---------------------------------------------------------------------------------


def many(name: str, encode: Encode, size: int, reads: int) -> int:
    done = 0
    for kind, content in zstdencoders.contents(size):
        data = encode(content)
        for span in (200_000, 1 << 20):
            check(content, data, reads=reads, span=span)
            done += reads
        assert content, (name, kind)
    return done


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_twenty_thousand_reads_of_all_variants() -> None:
    every = {**ENCODERS, **VARIANTS}
    assert len(every) >= 40
    assert sum(many(name, encode, 2 << 20, 35) for name, encode in every.items()) >= 20_000


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", [*ENCODERS, "skopeo"])
def test_a_thousand_reads_of_each_encoder(name: str, tmp_path: Path) -> None:
    """With points where layers have them."""
    content = zstdencoders.tar_of_text(random.Random(3), 40 << 20)
    encode = zstdencoders.by_skopeo(tmp_path) if name == "skopeo" else ENCODERS[name]
    assert check(content, encode(content), reads=1000, span=None) >= 1


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_thousand_reads_where_the_window_is_128_mib(tmp_path: Path) -> None:
    """All of the layer is one span, too large to be decoded whole."""
    content = zstdencoders.tar_of_text(random.Random(4), 48 << 20)
    layer = Indexed(ENCODERS["zstd --long=27"](content), tmp_path / "index")
    draw = random.Random(5)

    async def main() -> None:
        with layer.opened() as index:
            assert index.points == 1 and index.header.tar_size == len(content)
            origin = LayerOrigin(index, Bytes(layer.data))
            for _ in range(1000):
                at = draw.randrange(len(layer.blob) - READ)
                assert await origin.read(at, READ) == layer.blob[at : at + READ]
            await origin.close()

    asyncio.run(main())
