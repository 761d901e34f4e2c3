"""Reading a data blob out of a compressed layer: what is given out was verified."""

import asyncio
import errno
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from tests.layers import rig
from tests.layers.rig import Bytes, Indexed, member, tar_of
from tests.layers.test_gzip import text

from pagein.images.layers.index import Index
from pagein.images.layers.read import LayerOrigin, MetaOrigin
from pagein.origins.base import OriginError

Pack = Callable[[bytes], bytes]


def several_frames(data: bytes) -> bytes:
    pack = zstandard.ZstdCompressor().compress
    return b"".join(pack(data[at : at + 1_000_000]) for at in range(0, len(data), 1_000_000))


PACKS: dict[str, Pack] = {
    "tar": bytes,
    "gzip": rig.gzipped,
    "zstd, one frame": zstandard.ZstdCompressor().compress,
    "zstd, frames": several_frames,
}


def archive(size: int = 12 << 20) -> bytes:
    """Files of all sizes, of `size` bytes together."""
    draw = random.Random(5)
    content = text(size)
    members: list[bytes] = []
    at = 0
    while at < size:
        length = draw.choice([0, 1, 4096, 10_000, 70_000, 3_000_000])
        members.append(member(b"f%d" % at, data=content[at : at + length]))
        at += length + 1
    return tar_of(*members)


@pytest.fixture(scope="module", params=PACKS)
def layer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Indexed]:
    data = PACKS[request.param](archive())
    yield Indexed(data, tmp_path_factory.mktemp("layer") / "index")


@pytest.fixture(scope="module")
def gzip_layer(tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    return Indexed(rig.gzipped(archive(8 << 20)), tmp_path_factory.mktemp("layer") / "index")


async def with_origin(
    indexed: Indexed, use: Callable[[LayerOrigin, Bytes], object], data: bytes | None = None
) -> None:
    source = Bytes(indexed.data if data is None else data)
    with indexed.opened() as index:
        origin = LayerOrigin(index, source)
        try:
            await use(origin, source)  # type: ignore[misc]
        finally:
            await origin.close()
    assert source.closed


def test_random_reads(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, source: Bytes) -> None:
        draw = random.Random(1)
        size = await origin.size()
        assert size == len(layer.blob)
        for _ in range(60):
            offset = draw.randrange(size)
            length = min(size - offset, draw.choice([0, 1, 4096, 65536, 200_000]))
            assert await origin.read(offset, length) == layer.blob[offset : offset + length]

    asyncio.run(with_origin(layer, use))


def test_a_stream_asks_once(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, source: Bytes) -> None:
        found = bytearray()
        async for piece in origin.stream(4096, len(layer.blob) - 8192):
            found += piece
        assert found == layer.blob[4096:-4096]
        # The default stream() reads in pieces of 1 MiB; none of them twice.
        assert len({offset for offset, _ in source.asked}) == len(source.asked)
        assert source.bytes_asked <= len(layer.data)

    asyncio.run(with_origin(layer, use))


def test_readers_in_many_places_at_once(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, source: Bytes) -> None:
        draw = random.Random(2)
        places = [draw.randrange(len(layer.blob) - 70_000) for _ in range(24)]
        found = await asyncio.gather(*(origin.read(place, 70_000) for place in places))
        assert found == [layer.blob[place : place + 70_000] for place in places]

    asyncio.run(with_origin(layer, use))


def test_readers_of_one_span_fetch_it_once(gzip_layer: Indexed) -> None:
    async def use(origin: LayerOrigin, source: Bytes) -> None:
        await asyncio.gather(*(origin.read(n * 65536, 65536) for n in range(8)))
        assert len(source.asked) == 1

    asyncio.run(with_origin(gzip_layer, use))


@pytest.mark.parametrize("noise", [False, True])
def test_a_small_read_fetches_little(noise: bool, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(6 << 20) if noise else text(12 << 20)
    starts = range(0, len(content), 10_000)
    files = [member(b"f%d" % at, data=content[at : at + 10_000]) for at in starts]
    indexed = Indexed(rig.gzipped(tar_of(*files)), tmp_path / "index")

    async def main() -> None:
        with indexed.opened() as index:
            for place in range(0, len(indexed.blob) - 12_288, 12_288 * 37):
                source = Bytes(indexed.data)
                origin = LayerOrigin(index, source)
                assert await origin.read(place, 12_288) == indexed.blob[place : place + 12_288]
                assert source.bytes_asked <= 2 << 20
                await origin.close()

    asyncio.run(main())


def test_a_reader_that_leaves_half_way(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, _: Bytes) -> None:
        stream = origin.stream(0, len(layer.blob))
        first = await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        assert first == layer.blob[: len(first)]
        assert await origin.read(0, 100) == layer.blob[:100]

    asyncio.run(with_origin(layer, use))


def test_a_cancelled_read_leaves_no_trap(gzip_layer: Indexed) -> None:
    class Slow(Bytes):
        async def read(self, offset: int, length: int) -> bytes:
            await asyncio.sleep(0.01)
            return await super().read(offset, length)

    async def main() -> None:
        with gzip_layer.opened() as index:
            origin = LayerOrigin(index, Slow(gzip_layer.data))
            first = asyncio.create_task(origin.read(0, 65536))
            second = asyncio.create_task(origin.read(65536, 65536))
            await asyncio.sleep(0.005)
            first.cancel()
            assert await second == gzip_layer.blob[65536:131072]
            assert await origin.read(0, 65536) == gzip_layer.blob[:65536]
            await asyncio.gather(first, return_exceptions=True)
            await origin.close()

    asyncio.run(main())


# ---- wrong bytes --------------------------------------------------------------------------------


def test_wrong_bytes_are_an_error_that_names_layer_and_chunk(layer: Indexed) -> None:
    """Each of them flips one byte; whatever comes back is right, or does not come."""
    draw = random.Random(4)
    failed = 0

    async def use(origin: LayerOrigin, _: Bytes) -> None:
        nonlocal failed
        for offset in range(0, len(layer.blob) - 65536, 1 << 20):
            try:
                found = await origin.read(offset, 65536)
            except OriginError as error:
                assert layer.built.header.layer.digest in str(error)
                assert error.errno == errno.EIO
                assert not error.retry
                failed += 1
            else:
                assert found == layer.blob[offset : offset + 65536]

    for _ in range(8):
        data = bytearray(layer.data)
        at = draw.randrange(len(data) // 10, len(data) * 9 // 10)
        data[at] ^= 0x10
        asyncio.run(with_origin(layer, use, bytes(data)))
    assert failed


def test_a_chunk_is_named(tmp_path: Path) -> None:
    indexed = Indexed(tar_of(member(b"f", data=bytes(range(256)) * 1000)), tmp_path / "index")
    data = bytearray(indexed.data)
    data[512 + 65536 + 5] ^= 1

    async def use(origin: LayerOrigin, source: Bytes) -> None:
        assert await origin.read(0, 65536) == indexed.blob[:65536]
        with pytest.raises(
            OriginError, match=r"layer sha256:.*: wrong bytes in chunk 1 of its data"
        ):
            await origin.read(65536, 1)

    asyncio.run(with_origin(indexed, use, bytes(data)))


def test_bytes_that_are_wrong_once_are_fetched_again(layer: Indexed) -> None:
    class WrongOnce(Bytes):
        async def read(self, offset: int, length: int) -> bytes:
            data = await super().read(offset, length)
            middle = length // 2
            if len(self.asked) == 1:
                data = data[:middle] + bytes((data[middle] ^ 0x40,)) + data[middle + 1 :]
            return data

    async def main() -> None:
        with layer.opened() as index:
            origin = LayerOrigin(index, WrongOnce(layer.data))
            length = 1 << 20
            assert await origin.read(0, length) == layer.blob[:length]
            await origin.close()

    asyncio.run(main())


def test_a_layer_that_is_too_short(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, _: Bytes) -> None:
        with pytest.raises(OriginError, match="were asked of"):
            await origin.read(len(layer.blob) - 4096, 4096)

    asyncio.run(with_origin(layer, use, layer.data[: len(layer.data) // 2]))


def test_the_index_of_another_layer(layer: Indexed, tmp_path: Path) -> None:
    other = Indexed(rig.gzipped(tar_of(member(b"f", data=text(300_000, 9)))), tmp_path / "index")

    async def use(origin: LayerOrigin, _: Bytes) -> None:
        with pytest.raises(OriginError, match=f"{other.built.header.layer.digest}|were asked of"):
            await origin.read(0, 65536)

    asyncio.run(with_origin(other, use, layer.data))


def test_a_damaged_index_gives_nothing_wrong(tmp_path: Path) -> None:
    content = text(300_000)
    indexed = Indexed(rig.gzipped(tar_of(member(b"f", data=content))), tmp_path / "index")
    good = indexed.path.read_bytes()
    size = indexed.built.header.metadata_size

    async def main(path: Path) -> None:
        with Index(path) as index:
            origin = LayerOrigin(index, Bytes(indexed.data))
            try:
                assert await origin.read(0, len(indexed.blob)) == indexed.blob
                meta = await MetaOrigin(index).read(0, size)
                assert meta == right
            finally:
                await origin.close()

    with indexed.opened() as index:
        right = index.metadata(0, size)
    path = tmp_path / "flipped"
    for at in range(0, len(good), 7):
        flipped = bytearray(good)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        try:
            asyncio.run(main(path))
        except (OriginError, ValueError) as error:
            assert "of the index" in str(error) or "index" in str(error)


def test_what_is_not_there_is_refused(gzip_layer: Indexed) -> None:
    async def use(origin: LayerOrigin, _: Bytes) -> None:
        size = await origin.size()
        for offset, length in [(-1, 1), (0, size + 1), (size, 1), (0, -1)]:
            with pytest.raises(OriginError, match="were asked of"):
                await origin.read(offset, length)

    asyncio.run(with_origin(gzip_layer, use))


def test_metadata_is_read_at_any_place(gzip_layer: Indexed) -> None:
    async def main() -> None:
        with gzip_layer.opened() as index:
            meta = MetaOrigin(index)
            size = await meta.size()
            whole = await meta.read(0, size)
            assert whole[1024:1028] == b"\xe2\xe1\xf5\xe0"
            for offset in range(0, size, 5000):
                length = min(7000, size - offset)
                assert await meta.read(offset, length) == whole[offset : offset + length]
            with pytest.raises(OriginError, match="metadata of layer sha256:"):
                await meta.read(size - 1, 2)
            assert gzip_layer.built.header.layer.digest in str(meta)

    asyncio.run(main())
