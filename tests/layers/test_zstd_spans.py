"""A small read that lies in two spans of a zstd layer: what is fetched of the second."""

from __future__ import annotations

import asyncio
import io
import random
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard
from tests.layers.rig import Bytes, Indexed

from pagein.images.layers import pointlist, tarbytes
from pagein.images.layers.index import Place
from pagein.images.layers.read import LayerOrigin
from pagein.images.layers.zstd import unpacker


class Counting(Bytes):
    """Notes what is asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.requests: list[tuple[int, int]] = []

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        self.requests.append((offset, offset + length))
        for at in range(offset, offset + length, 10_000):
            yield await self.read(at, min(10_000, offset + length - at))


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Indexed:
    monkeypatch.setattr(unpacker, "SPAN", 2 << 20)
    for limit in ("_MOST", "_DEAR_MOST"):
        monkeypatch.setattr(pointlist, limit, 1)  # points may take all of it
    draw, out = random.Random(3), io.BytesIO()
    lines = [draw.randbytes(50).hex().encode() for _ in range(2000)]
    with tarfile.open(fileobj=out, mode="w") as archive:  # the same everywhere, nearly
        info = tarfile.TarInfo("file")
        info.size = 6_000_000
        content = b"".join(
            draw.choice(lines) if draw.randrange(3) else draw.randbytes(50).hex().encode()
            for _ in range(info.size // 100)
        )
        archive.addfile(info, io.BytesIO(content))
    given = zstandard.ZstdCompressionParameters.from_level(3, window_log=20)
    packed = zstandard.ZstdCompressor(compression_params=given).compress(out.getvalue())
    return Indexed(packed, tmp_path / "index")


def two(layer: Indexed) -> tuple[Place, Place, int]:
    """Neighbouring spans, and where in the blob the second begins, or a little before."""
    with layer.opened() as index:
        first, second = index.place(0), index.place(1)
        inside = index.within(0, second.point.out, 0)
    assert inside is not None and second.size >= 2 << 20
    return first, second, inside[1]


def test_of_the_second_only_the_first_blocks_come(layer: Indexed) -> None:
    first, second, border = two(layer)
    low, high = border - 30_000, border + 30_000

    async def main() -> None:
        server = Counting(layer.data)
        with layer.opened() as index:
            origin = LayerOrigin(index, server)
            start, end = await origin.around(low, high)
            assert start == 0 and high <= end < high + 65536
            assert await origin.read(start, end - start) == layer.blob[start:end]
            ((begin, stop),) = server.requests
            assert begin == first.start
            assert second.start < stop < second.start + (second.end - second.start) // 2
            # Again: all of it is here. Then the rest, from there on.
            assert await origin.read(low, 60_000) == layer.blob[low:high]
            assert len(server.requests) == 1
            assert await origin.read(high, 1 << 20) == layer.blob[high : high + (1 << 20)]
            assert server.requests[1][0] == stop
            await origin.close()

    asyncio.run(main())


def test_too_little_was_asked_for(layer: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    _, second, border = two(layer)
    monkeypatch.setattr(tarbytes, "_first_blocks", lambda place, wanted: place.start + 10)

    async def main() -> None:
        server = Counting(layer.data)
        with layer.opened() as index:
            origin = LayerOrigin(index, server)
            async with asyncio.timeout(60):
                found = await asyncio.gather(
                    origin.read(border - 30_000, 60_000), origin.read(border + 10_000, 90_000)
                )
            assert found[0] == layer.blob[border - 30_000 : border + 30_000]
            assert found[1] == layer.blob[border + 10_000 : border + 100_000]
            assert {stop for _, stop in server.requests} >= {second.end}
            await origin.close()

    asyncio.run(main())
