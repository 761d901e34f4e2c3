"""A cache on a disk that is full: errors that say so, nothing wrong, and then it works."""

import errno
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import once_it_works
from tests.library.fulldisk import KINDS, full, tiny, wait_until_unused

import pagein
from pagein.cachefiles.presence import data_ranges
from pagein.testing.webserver import WebServer, serve_in_thread

pytestmark = pytest.mark.root

CONTENT = random.Random(5).randbytes((6 << 20) + 4095)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serve_in_thread(WebServer({"/blob": CONTENT})) as server:
        yield server


@pytest.fixture(params=KINDS)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    with tiny(request.param, tmp_path / "small", 12) as directory:
        yield directory
        wait_until_unused()


def check(cache: Path) -> int:
    """Bytes in the cache, all of which must be right."""
    found = 0
    for path in (cache / "cache").glob("I*/@*/D*"):
        with path.open("rb") as file:
            for start, end in data_ranges(file.fileno(), 0, path.stat().st_size):
                data = os.pread(file.fileno(), end - start, start)
                assert data == CONTENT[start:end].ljust(end - start, b"\0")
                found += end - start
    return found


@pytest.mark.parametrize("left", [0, 300_000])
def test_reads_fail_until_there_is_room(
    web: WebServer, small: Path, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache = small / "cache"
    with pagein.open(web.url("/blob"), cache=str(cache), timeout=20) as file:
        assert file.pread(100, 0) == CONTENT[:100]
        with full(small, left):
            with caplog.at_level(logging.ERROR), pytest.raises(OSError) as caught:
                file.pread(len(CONTENT), 0)
            assert caught.value.errno == errno.EIO
            assert "No space left" in caplog.text
            assert file.pread(100, 0) == CONTENT[:100]
        assert once_it_works(file.readall) == CONTENT
    wait_until_unused()
    assert check(cache) == len(CONTENT) + 1


@pytest.mark.parametrize("left", [0])
def test_what_is_cached_can_be_read(web: WebServer, small: Path, left: int) -> None:
    cache = small / "cache"
    with pagein.open(web.url("/blob"), cache=str(cache), timeout=20) as file:
        file.readall()
    wait_until_unused()
    with full(small, left), pagein.open(web.url("/blob"), cache=str(cache), timeout=20) as file:
        assert file.readall() == CONTENT


@pytest.mark.parametrize("left", [0, 900_000])
def test_a_first_open_fails_with_the_reason(web: WebServer, small: Path, left: int) -> None:
    cache = small / "cache"
    cache.mkdir()
    with full(small, left), pytest.raises(OSError) as caught:
        pagein.open(web.url("/blob"), cache=str(cache), timeout=20)
    assert caught.value.errno == errno.ENOSPC
    with pagein.open(web.url("/blob"), cache=str(cache), timeout=20) as file:
        assert file.readall() == CONTENT
