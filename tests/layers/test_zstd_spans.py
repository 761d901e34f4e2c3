"""What is fetched of a span of a zstd layer of which some is wanted."""

from __future__ import annotations

import asyncio
import io
import itertools
import random
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zstandard
from tests.layers.rig import Bytes, Indexed

from pagein.images.layers import index as index_module
from pagein.images.layers import pointlist, spans
from pagein.images.layers.index import Place
from pagein.images.layers.read import AROUND, LayerOrigin
from pagein.images.layers.spans import Kept
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
        inside = index.within(0, second.out, 0)
    assert inside is not None and second.size >= 2 << 20
    return first, second, inside[1]


def test_of_the_second_only_the_first_blocks_come(layer: Indexed) -> None:
    first, second, border = two(layer)
    low, high = border - 30_000, border + 30_000

    async def main() -> None:
        server = Counting(layer.data)
        with layer.opened() as index:
            origin = LayerOrigin(index, server)
            start, end, _ = await origin.around(low, high)
            assert start == low // AROUND * AROUND and high <= end < high + 65536
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
    first, _, border = two(layer)
    monkeypatch.setattr(spans, "enough", lambda place, wanted, at, out: at + 10)

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
            assert len(server.requests) > 2
            assert_each_once(server.requests, first.start)
            await origin.close()

    asyncio.run(main())


def assert_each_once(requests: list[tuple[int, int]], start: int) -> None:
    """One goes on where another ended, from `start` on."""
    at = start
    for low, high in sorted(requests):
        assert (low, at) == (at, low) and high > low
        at = high


@asynccontextmanager
async def reading(layer: Indexed) -> AsyncIterator[tuple[Counting, LayerOrigin]]:
    """The layer's origin, and the server that counts what it asks for."""
    server = Counting(layer.data)
    with layer.opened() as index:
        origin = LayerOrigin(index, server)
        try:
            yield server, origin
        finally:
            await origin.close()


def test_a_read_fetches_what_lies_before_it_and_little_more(layer: Indexed) -> None:
    first, _, _ = two(layer)

    async def main() -> None:
        async with reading(layer) as (server, origin):
            third = first.size // 3
            assert await origin.read(third, 5000) == layer.blob[third : third + 5000]
            ((begin, stop),) = server.requests
            assert begin == first.start and stop < (first.start + first.end) * 6 // 10
            # What lies before is here; what lies behind goes on from there.
            assert await origin.read(4096, 5000) == layer.blob[4096:9096]
            assert len(server.requests) == 1
            further = first.size * 6 // 10
            assert await origin.read(further, 5000) == layer.blob[further : further + 5000]
            assert len(server.requests) == 2
            assert_each_once(server.requests, first.start)

    asyncio.run(main())


def test_who_wants_more_while_it_comes_gets_it_too(layer: Indexed) -> None:
    first, _, _ = two(layer)

    async def main() -> None:
        async with reading(layer) as (server, origin):
            places = [first.size * part // 10 for part in (5, 1, 7, 3, 4)]
            found = await asyncio.gather(*(origin.read(place, 5000) for place in places))
            assert found == [layer.blob[place : place + 5000] for place in places]
            assert_each_once(server.requests, first.start)

    asyncio.run(main())


def test_what_does_not_fit_into_memory_is_decoded_again(layer: Indexed) -> None:
    first, second, _ = two(layer)
    packed = second.end - first.start

    async def main() -> None:
        server = Counting(layer.data)
        with layer.opened() as index:
            kept = Kept(packed + 300_000)
            origin = LayerOrigin(index, server, kept)
            for place in (100_000, 3_000_000, 1_500_000, 200_000, 3_100_000, 1_800_000):
                found = await origin.read(place, 5000)
                assert found == layer.blob[place : place + 5000]
                kept.shrink()
                assert sum(span.held for span in kept._spans) <= packed + 300_000
            asked = sorted(server.requests)
            assert all(high <= low for (_, high), (low, _) in itertools.pairwise(asked))
            await origin.close()

    asyncio.run(main())


def test_decoders_are_few(layer: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "STANDING", 1)
    first, _, _ = two(layer)

    async def main() -> None:
        server = Counting(layer.data)
        with layer.opened() as index:
            kept = Kept()
            origin = LayerOrigin(index, server, kept)
            for place in (100_000, first.size + 100_000, 500_000, first.size + 900_000, 800_000):
                assert await origin.read(place, 5000) == layer.blob[place : place + 5000]
                kept.shrink()
                assert sum(span.stands for span in kept._spans) <= 1
            await origin.close()

    asyncio.run(main())


def test_what_is_foreseen_comes_up_to_its_end_and_is_not_asked_for_again(layer: Indexed) -> None:
    first, _, _ = two(layer)

    async def main() -> None:
        async with reading(layer) as (server, origin):
            place = first.size // 3
            assert await origin.expect(place, place + 5000, 0)
            ((_, stop),) = server.requests
            assert stop < (first.start + first.end) * 6 // 10
            assert await origin.read(place, 5000) == layer.blob[place : place + 5000]
            assert len(server.requests) == 1

    asyncio.run(main())


def test_where_a_span_lies_is_told_without_its_window(
    layer: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with layer.opened() as index:
        lengths = []
        read = index_module._Section._read

        def noted(section: object, number: int, length: int | None = None) -> bytes:
            lengths.append(length)
            return read(section, number, length)  # type: ignore[arg-type]

        monkeypatch.setattr(index_module._Section, "_read", noted)
        places = [index.place(number) for number in range(index.points)]
        assert lengths == [8] * index.points
        assert places == [index.place(number) for number in range(index.points)]
        assert len(lengths) == index.points
        assert all(index.point(each.number).bit // 8 == each.start for each in places)
