"""Trees of layers with a TOC, without reading more than it takes: what the tar has."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.layers.rig import Bytes, Indexed, gzipped
from tests.toc.rig import Opened, archive, whole_seconds
from tests.toc.writers import Made, Options, estargz, zstd_chunked

from pagein.images.layers.index import Index
from pagein.images.layers.read import LayerOrigin

Write = Callable[[bytes], Made]

WRITERS: dict[str, Write] = {
    "estargz": estargz,
    "estargz, small chunks": lambda tar: estargz(tar, Options(chunk=10_000)),
    "estargz, several files a member": lambda tar: estargz(tar, Options(inner=50_000)),
    "estargz, both": lambda tar: estargz(tar, Options(chunk=7_000, inner=30_000)),
    "zstd:chunked": zstd_chunked,
    "zstd:chunked, small chunks": lambda tar: zstd_chunked(tar, Options(chunk=5_000)),
}


@pytest.fixture(params=WRITERS)
def made(request: pytest.FixtureRequest) -> Made:
    return WRITERS[request.param](archive())


def test_the_tree_is_that_of_the_tar(made: Made, tmp_path: Path) -> None:
    opened, plain = Opened(made, tmp_path / "toc"), Indexed(gzipped(archive()), tmp_path / "index")
    wanted = plain.seen()
    assert opened.seen() == (whole_seconds(wanted) if "gzip" in made.media_type else wanted)
    assert opened.built.tree.implied == plain.built.tree.implied


def test_few_requests_and_little_data(made: Made, tmp_path: Path) -> None:
    opened = Opened(made, tmp_path / "toc")
    assert len(opened.source.asked) == 1

    async def main() -> None:
        source = Bytes(made.data)
        with Index(opened.path) as index:
            origin = LayerOrigin(index, source)
            size = await origin.size()
            whole = await LayerOrigin(index, Bytes(made.data)).read(0, size)
            draw = random.Random(3)
            for _ in range(30):
                offset = draw.randrange(size)
                length = draw.randrange(1, min(size - offset, 100_000) + 1)
                assert await origin.read(offset, length) == whole[offset : offset + length]
            # What was decoded is kept: no byte is asked for twice.
            assert source.bytes_asked <= len(made.data)
            await origin.close()

    asyncio.run(main())
