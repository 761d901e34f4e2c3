"""`pagein.open` in one process: what it reads, what it fetches, how it fails."""

import asyncio
import errno
import fcntl
import io
import itertools
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import once_it_works

import pagein
from pagein.testing.answers import Fault
from pagein.testing.webserver import WebServer, serve_in_thread

CONTENT = random.Random(1).randbytes((3 << 20) + 1234)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serve_in_thread(WebServer({"/blob": CONTENT, "/empty": b""})) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def fetched(web: WebServer) -> list[tuple[int, int]]:
    """Ranges asked for, but for the first byte, which tells the size."""
    return sorted((start, end) for _, start, end in web.requests if (start, end) != (0, 1))


def test_it_is_a_file(web: WebServer, cache: str) -> None:
    with pagein.open(web.url("/blob"), cache=cache) as file:
        assert isinstance(file, io.RawIOBase)
        assert (file.size, file.readable(), file.seekable(), file.writable()) == (
            len(CONTENT),
            True,
            True,
            False,
        )
        assert file.read(10) == CONTENT[:10]
        assert file.tell() == 10
        assert file.seek(-5, os.SEEK_END) == len(CONTENT) - 5
        assert file.read(100) == CONTENT[-5:]
        assert file.read(1) == b""
        assert file.seek(1000) == 1000
        assert file.seek(24, os.SEEK_CUR) == 1024
        assert io.BufferedReader(file).read() == CONTENT[1024:]
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_only_what_is_read_is_fetched_and_only_once(web: WebServer, cache: str) -> None:
    with pagein.open(web.url("/blob"), cache=cache) as file:
        assert file.pread(5000, 1 << 20) == CONTENT[1 << 20 : (1 << 20) + 5000]
        first = fetched(web)
        assert sum(end - start for start, end in first) == 64 << 10
        assert file.pread(100, (1 << 20) + 9000) == CONTENT[(1 << 20) + 9000 : (1 << 20) + 9100]
        assert fetched(web) == first


def test_the_second_time_the_server_is_not_needed(cache: str) -> None:
    with serve_in_thread(WebServer({"/blob": CONTENT})) as web:
        url = web.url("/blob")
        with pagein.open(url, cache=cache) as file:
            assert file.readall() == CONTENT
    with pagein.open(url, cache=cache, timeout=20) as file:
        assert file.readall() == CONTENT


def test_threads_share_a_file(web: WebServer, cache: str) -> None:
    wrong: list[int] = []
    with pagein.open(web.url("/blob"), cache=cache) as file:

        def read(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(50):
                at = draw.randrange(len(CONTENT))
                if file.pread(5000, at) != CONTENT[at : at + 5000]:
                    wrong.append(at)

        threads = [threading.Thread(target=read, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
    assert not wrong
    assert not overlaps(fetched(web))


def overlaps(ranges: list[tuple[int, int]]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Neighbours in a sorted list of ranges that share bytes."""
    return [(left, right) for left, right in itertools.pairwise(ranges) if right[0] < left[1]]


def test_inside_a_running_loop(web: WebServer, cache: str) -> None:
    async def main() -> None:
        with pagein.open(web.url("/blob"), cache=cache) as file:
            assert file.pread(10, 5) == CONTENT[5:15]
        async with await pagein.aopen(web.url("/blob"), cache=cache) as twin:
            assert await twin.read(7) == CONTENT[:7]
            pieces = await asyncio.gather(*(twin.pread(1000, i * 70_000) for i in range(40)))
            assert pieces == [CONTENT[i * 70_000 : i * 70_000 + 1000] for i in range(40)]
            twin.seek(len(CONTENT) - 3)
            assert await twin.read() == CONTENT[-3:]

    asyncio.run(main())


def test_a_path_is_a_source_too(tmp_path: Path, cache: str) -> None:
    path = tmp_path / "blob"
    path.write_bytes(CONTENT)
    with pagein.open(str(path), cache=cache) as file:
        assert file.readall() == CONTENT


@pytest.mark.parametrize("path", ["/none", "/empty"])
def test_a_source_that_cannot_be_read_is_named(web: WebServer, cache: str, path: str) -> None:
    with pytest.raises(pagein.OriginError, match=path):
        pagein.open(web.url(path), cache=cache, timeout=20)


def test_a_cache_that_a_kernel_half_has_bound_is_refused(web: WebServer, cache: str) -> None:
    Path(cache).mkdir()
    fd = os.open(cache, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="in use") as refused:
            pagein.open(web.url("/blob"), cache=cache, timeout=20)
        assert refused.value.errno == errno.EBUSY
    finally:
        os.close(fd)
    # And it is not remembered as broken.
    with pagein.open(web.url("/blob"), cache=cache, timeout=20) as file:
        assert file.pread(3, 0) == CONTENT[:3]


def test_a_read_that_cannot_be_fetched_fails_and_the_next_one_tries_again(cache: str) -> None:
    sick = True

    def faults(number: int, path: str, start: int, end: int) -> Fault | None:
        return Fault("status", code=403) if sick and end - start > 1 else None

    with (
        serve_in_thread(WebServer({"/blob": CONTENT}, faults=faults)) as web,
        pagein.open(web.url("/blob"), cache=cache, timeout=20) as file,
    ):
        with pytest.raises(OSError) as refused:
            file.read(10)
        assert refused.value.errno == errno.EIO
        sick = False
        assert once_it_works(lambda: file.read(10)) == CONTENT[:10]
