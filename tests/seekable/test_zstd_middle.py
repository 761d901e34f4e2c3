"""A zstd file that is one frame is entered in its middle."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from tests.seekable.files import text

from pagein import seekable
from pagein.testing.webserver import WebServer, serve_in_thread

SIZE = (24 << 20) + 99
CONTENT = text(4 << 20) + random.Random(1).randbytes(2 << 20) + text(18 << 20, 3) + bytes(99)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("frame") / "file.zst"
    made.write_bytes(zstandard.ZstdCompressor(level=1, write_checksum=True).compress(CONTENT))
    seekable.build(made)
    yield made


def test_random_reads_and_all_of_it(path: Path) -> None:
    draw = random.Random(2)
    with seekable.open(path, memory=1 << 20) as file:
        assert file.index.points >= 3
        assert file.index.widest_span() < SIZE // 2
        for _ in range(20):
            at = draw.randrange(SIZE)
            assert file.pread(70_000, at) == CONTENT[at : at + 70_000]
    with seekable.open(path) as file:
        assert file.read() == CONTENT


def test_of_a_url_only_the_span_is_fetched(path: Path) -> None:
    with (
        serve_in_thread(WebServer(path.parent)) as web,
        seekable.open(web.url("/file.zst")) as file,
    ):
        web.requests.clear()
        place = file.index.place(file.index.points - 1)
        at = place.out + 100_000
        assert file.pread(1000, at) == CONTENT[at : at + 1000]
        assert web.requests == [("/file.zst", place.start, place.end)]
        assert place.start > path.stat().st_size // 3
