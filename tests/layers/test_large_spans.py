"""Spans too large to be decoded whole: what passes by on the way to a read is kept."""

from __future__ import annotations

import asyncio
import io
import random
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zstandard
from tests.daemon.helpers import Cache
from tests.layers.rig import Bytes, Indexed

from pagein.daemon.fill import Fill
from pagein.images.layers import read, tarbytes
from pagein.images.layers.read import LayerOrigin
from pagein.origins.base import OriginError

SIZE = 6_000_000


class Counting(Bytes):
    """Gives pieces of 10,000 bytes; counts requests, and breaks off where it is told to."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.requests = 0
        self.breaks: int | None = None
        self.gate: asyncio.Event | None = None

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        self.requests += 1
        for at in range(offset, offset + length, 10_000):
            if self.breaks is not None and at >= self.breaks:
                self.breaks = None
                raise OriginError.of("server", "broke off", retry=True)
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
            yield await self.read(at, min(10_000, offset + length - at))


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Indexed:
    """One file in one span, which is far too large."""
    for module in (tarbytes, read):
        monkeypatch.setattr(module, "WHOLE", 1 << 20)
    out, draw = io.BytesIO(), random.Random(4)
    lines = [draw.randbytes(50).hex().encode() for _ in range(2000)]
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("file")
        info.size = SIZE
        content = b"".join(
            draw.choice(lines) if draw.randrange(3) else draw.randbytes(50).hex().encode()
            for _ in range(SIZE // 100)
        )
        archive.addfile(info, io.BytesIO(content))
    made = Indexed(zstandard.ZstdCompressor(level=3).compress(out.getvalue()), tmp_path / "index")
    with made.opened() as index:
        assert index.point_out(1) - index.point_out(0) > SIZE
    return made


@asynccontextmanager
async def filling(layer: Indexed) -> AsyncIterator[tuple[Fill, Cache, Counting]]:
    """The layer's blob, read through a fill engine."""
    server, cache = Counting(layer.data), Cache(len(layer.blob))
    with layer.opened() as index:
        origin = LayerOrigin(index, server)
        fill = Fill(origin, len(layer.blob), cache.write, timeout=60.0)
        try:
            async with asyncio.timeout(60):
                yield fill, cache, server
            cache.check(layer.blob)
        finally:
            await fill.close()
            await origin.close()


def test_what_passes_by_is_in_the_cache(layer: Indexed) -> None:
    async def main() -> None:
        async with filling(layer) as (fill, cache, server):
            await fill.read(SIZE // 2, 5000)
            assert cache.held.covers(0, SIZE // 2 + 4096)
            assert server.bytes_asked < 0.6 * len(layer.data)
            asked = server.requests
            for place in (100_000, 2_000_000, 7000):
                await fill.read(place, 5000)
            assert server.requests == asked == 1

    asyncio.run(main())


def test_random_reads_fetch_each_byte_of_the_layer_once(layer: Indexed) -> None:
    async def main() -> None:
        draw = random.Random(5)
        async with filling(layer) as (fill, _, server):
            for _ in range(100):
                await fill.read(draw.randrange(SIZE - 5000), 5000)
            assert server.bytes_asked <= len(layer.data)

    asyncio.run(main())


def test_who_reads_further_on_waits_for_who_is_on_the_way_there(layer: Indexed) -> None:
    async def main() -> None:
        async with filling(layer) as (fill, _, server):
            server.gate = asyncio.Event()
            places = [SIZE * part // 10 for part in (3, 1, 7, 5, 9, 2)]
            reads = [asyncio.create_task(fill.read(place, 5000)) for place in places]
            origin = fill.origin
            assert isinstance(origin, LayerOrigin)
            # The first has begun, and the third and the fifth wait for it.
            while len(origin._tar._cursors._wanted) < 2 or not server.requests:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            server.gate.set()
            await asyncio.gather(*reads)
            assert server.bytes_asked <= len(layer.data)

    asyncio.run(main())


def test_on_the_way_the_server_breaks_off(layer: Indexed) -> None:
    """What came before stays, and the reader goes on from there as well as it can."""

    async def main() -> None:
        async with filling(layer) as (fill, cache, server):
            server.breaks = len(layer.data) // 2
            first = asyncio.create_task(fill.read(SIZE * 8 // 10, 5000))
            second = asyncio.create_task(fill.read(SIZE * 9 // 10, 5000))
            await first
            await second
            assert cache.held.covers(SIZE * 9 // 10, SIZE * 9 // 10 + 5000)
            assert server.bytes_asked < 3 * len(layer.data)

    asyncio.run(main())


def test_wrong_bytes_are_not_gone_on_from(layer: Indexed) -> None:
    """A decoder that was given them is not used again."""
    half = len(layer.data) // 2
    wrong = layer.data[:half] + bytes(5000) + layer.data[half + 5000 :]

    async def main() -> None:
        async with filling(layer) as (fill, cache, server):
            right, server.data = server.data, wrong
            with pytest.raises(OSError):
                await fill.read(SIZE * 9 // 10, 5000)
            cache.check(layer.blob)
            server.data = right
            await asyncio.sleep(0.6)  # what failed is remembered for half a second
            await fill.read(SIZE * 9 // 10, 5000)

    asyncio.run(main())
