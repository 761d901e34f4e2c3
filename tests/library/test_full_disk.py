"""A cache directory on a disk that is full: errors that say so, nothing wrong, and then it works."""

import contextlib
import errno
import logging
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pagein
from pagein.cachefiles.presence import PAGE_SIZE, data_ranges
from pagein.testing.webserver import WebServer, serve_in_thread

pytestmark = pytest.mark.root

CONTENT = random.Random(5).randbytes((6 << 20) + 4095)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serve_in_thread(WebServer({"/blob": CONTENT})) as server:
        yield server


@pytest.fixture(params=["tmpfs", "ext4 -b4096", "ext4 -b1024"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    target = tmp_path / "small"
    target.mkdir()
    if request.param == "tmpfs":
        mount: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", target]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(12 << 20)
        command = ["mkfs.ext4", "-q", "-m0", "-O^has_journal", *request.param.split()[1:], image]
        subprocess.run(command, check=True, capture_output=True)
        mount = ["mount", "-o", "loop", image, target]
    subprocess.run(mount, check=True)
    yield target
    subprocess.run(["umount", target], check=True)


@contextlib.contextmanager
def full(directory: Path, left: int) -> Iterator[None]:
    """Fill a file system but for `left` bytes."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            try:
                file.write(bytes(PAGE_SIZE))
            except OSError:
                break
        os.fsync(file.fileno())
        os.truncate(ballast, max(0, ballast.stat().st_size - left))
    try:
        yield
    finally:
        ballast.unlink()


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


@pytest.mark.parametrize("left", [0, 300_000, 1_500_000])
def test_reads_fail_until_there_is_room(
    web: WebServer, small: Path, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache = small / "cache"
    with pagein.open(web.url("/blob"), cache=str(cache), timeout=5) as file:
        assert file.pread(100, 0) == CONTENT[:100]
        with full(small, left):
            with caplog.at_level(logging.ERROR), pytest.raises(OSError) as caught:
                file.pread(len(CONTENT), 0)
            assert caught.value.errno == errno.EIO
            assert "No space left" in caplog.text
            assert file.pread(100, 0) == CONTENT[:100]
        time.sleep(0.7)  # a range that failed a moment ago is not asked for again
        assert file.readall() == CONTENT
    wait_until_unused()
    assert check(cache) == len(CONTENT) + 1


@pytest.mark.parametrize("left", [0, 40_000])
def test_what_is_cached_can_be_read(web: WebServer, small: Path, left: int) -> None:
    cache = small / "cache"
    with pagein.open(web.url("/blob"), cache=str(cache), timeout=5) as file:
        file.readall()
    wait_until_unused()
    with full(small, left), pagein.open(web.url("/blob"), cache=str(cache), timeout=5) as file:
        assert file.readall() == CONTENT
    wait_until_unused()


@pytest.mark.parametrize("left", [0, 40_000, 900_000])
def test_a_first_open_fails_with_the_reason(web: WebServer, small: Path, left: int) -> None:
    cache = small / "cache"
    cache.mkdir()
    with full(small, left), pytest.raises(OSError) as caught:
        pagein.open(web.url("/blob"), cache=str(cache), timeout=5)
    assert caught.value.errno == errno.ENOSPC
    with pagein.open(web.url("/blob"), cache=str(cache), timeout=5) as file:
        assert file.readall() == CONTENT
    wait_until_unused()


def wait_until_unused() -> None:
    """Until the last runtime has ended, and closed what it had open."""
    from pagein.library import runtime

    give_up = time.monotonic() + 30
    while runtime._process.living:
        assert time.monotonic() < give_up
        time.sleep(0.02)
