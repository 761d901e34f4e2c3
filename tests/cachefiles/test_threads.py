"""Threads at work on a cache file that is closed, or whose caller is cancelled, meanwhile."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.cachefiles.files import PATH, Disk, content, found
from tests.cachefiles.rig import PAGE, pages, settle, soon

from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.inflight import SLOTS_PER_LANE
from pagein.rangeset import RangeSet

SIZE = 8 * PAGE


@pytest.fixture
def file(cache: Cache) -> Iterator[BackingFile]:
    file = cache.look_up(PATH, SIZE)
    yield file
    file.close()


class Gate:
    """Stands in for pwrite or preadv: waits inside until it is let through."""

    def __init__(self, real: Callable[..., int]) -> None:
        self.real = real
        self.entered = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self, *arguments: Any) -> int:
        if isinstance(arguments[1], bytes):  # an entry of the table of writes under way
            return self.real(*arguments)
        self.entered.release()
        assert self.let.acquire(timeout=100)
        return self.real(*arguments)

    async def inside(self, count: int = 1) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.entered.acquire, timeout=100)


def gated(
    monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[Gate], Coroutine[Any, Any, None]]
) -> None:
    gate = Gate(getattr(os, name))
    monkeypatch.setattr(os, name, gate)

    async def main() -> None:
        async with asyncio.timeout(200):
            await work(gate)

    asyncio.run(main())


def test_a_closed_file_outlives_the_write_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(os.fsencode(tmp_path))
    file = cache.look_up(PATH, SIZE)
    number = file.fd

    async def work(gate: Gate) -> None:
        writing = asyncio.create_task(file.write(pages(7), 0))
        await gate.inside()
        file.close()
        cache.close()
        # The number is not free: the write cannot land in what is opened now.
        other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        assert other != number
        gate.let.release()
        assert await writing == PAGE
        assert os.fstat(other).st_size == 0
        os.close(other)

    gated(monkeypatch, "pwrite", work)
    monkeypatch.undo()
    with pytest.raises(OSError):
        os.fstat(number)
    again = Cache(os.fsencode(tmp_path))
    assert found(again, SIZE) == RangeSet([(0, PAGE)])
    again.close()


def test_a_closed_file_outlives_the_read_under_way(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cache.look_up(PATH, SIZE)
    asyncio.run(soon(file.write(pages(9), 0)))

    async def work(gate: Gate) -> None:
        reading = asyncio.create_task(asyncio.to_thread(content, file, 0, PAGE))
        await gate.inside()
        file.close()
        file.close()  # once is enough
        gate.let.release()
        assert await reading == b"\x09" * PAGE

    gated(monkeypatch, "preadv", work)


def test_after_close(cache: Cache) -> None:
    file = cache.look_up(PATH, SIZE)
    file.close()
    with pytest.raises(OSError) as caught:
        asyncio.run(soon(file.write(pages(1), 0)))
    assert caught.value.errno == errno.ENOBUFS
    with pytest.raises(OSError) as caught:
        content(file, 0, PAGE)
    assert caught.value.errno == errno.EIO
    file.drop_page_cache(0, PAGE)


def test_who_is_cancelled_waits_for_the_thread(
    cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(gate: Gate) -> None:
        writing = asyncio.create_task(file.write(pages(1), 0))
        await gate.inside()
        for _ in range(2):
            writing.cancel()
            await settle()
            assert not writing.done()  # its memory is still being read
        gate.let.release()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert cache.inflight.slots_free == SLOTS_PER_LANE

    gated(monkeypatch, "pwrite", work)


def test_cancelled_and_failed(
    cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(gate: Gate) -> None:
        gate.real = Disk()
        writing = asyncio.create_task(file.write(pages(1), 0))
        await gate.inside()
        writing.cancel()
        await settle()
        gate.let.release()
        with pytest.raises(asyncio.CancelledError):
            await writing

    gated(monkeypatch, "pwrite", work)


def test_more_writes_than_slots_wait(
    cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(gate: Gate) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(SLOTS_PER_LANE + 8) as pool:
            loop.set_default_executor(pool)
            writing = [
                asyncio.create_task(file.write(pages(1), (n % 8) * PAGE))
                for n in range(SLOTS_PER_LANE + 3)
            ]
            await gate.inside(SLOTS_PER_LANE)
            await settle()
            assert cache.inflight.slots_free == 0
            for _ in writing:
                gate.let.release()
            assert await asyncio.gather(*writing) == [PAGE] * len(writing)

    gated(monkeypatch, "pwrite", work)
