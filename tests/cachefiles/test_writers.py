"""The threads that write, and writes that are answered before the loop hears of them."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cachefiles.rig import until

from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.inflight import SLOTS_PER_LANE
from pagein.cachefiles.writers import Writers

PAGE = 4096
SIZE = 64 * PAGE
PATIENCE = 60.0


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(bytes(tmp_path))
    yield made
    made.close()


def file_of(cache: Cache) -> BackingFile:
    return cache.look_up(b"cache/Ierofs,x/@00/Dblob", SIZE)


# ---- the threads


def test_what_is_returned_and_what_is_raised_come_back() -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "full")

    async def main() -> None:
        writers = Writers(2)
        assert await writers.start(lambda: 7) == 7
        with pytest.raises(OSError, match="full"):
            await writers.start(fail)
        assert await writers.start(threading.current_thread) is not threading.main_thread()
        writers.close()
        with pytest.raises(OSError, match="given back") as refused:
            writers.start(lambda: 7)
        assert refused.value.errno == errno.ENOBUFS

    asyncio.run(main())


def test_one_job_after_the_other_has_one_thread() -> None:
    async def main() -> None:
        writers = Writers(8)
        threads = set()
        for _ in range(20):
            threads.add(await writers.start(threading.get_ident))
            await until(lambda: bool(writers._idle))  # it has told its result, and sleeps
        assert len(threads) == 1
        writers.close()

    asyncio.run(main())


def test_no_more_than_so_many_at_once_and_the_others_in_turn() -> None:
    async def main() -> None:
        writers, go = Writers(3), threading.Event()
        begun, order = threading.Semaphore(0), list[int]()

        def job(number: int) -> int:
            begun.release()
            assert go.wait(PATIENCE)
            order.append(number)
            return number

        first = [writers.start(lambda n=number: job(n)) for number in range(3)]  # type: ignore[misc]
        for _ in first:
            assert await asyncio.to_thread(begun.acquire, True, PATIENCE)
        rest = [writers.start(lambda n=number: job(n)) for number in range(3, 9)]  # type: ignore[misc]
        assert not begun.acquire(blocking=False)
        go.set()
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*first, *rest) == list(range(9))
        assert sorted(order) == list(range(9))
        writers.close()

    asyncio.run(main())


def test_what_was_started_is_done_after_the_close() -> None:
    async def main() -> None:
        writers, go = Writers(1), threading.Event()
        jobs = [writers.start(lambda: go.wait(PATIENCE)), writers.start(lambda: True)]
        writers.close()
        go.set()
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*jobs) == [True, True]

    asyncio.run(main())


def test_as_many_threads_as_there_are_slots_in_the_table(cache: Cache) -> None:
    assert cache.writers._most == SLOTS_PER_LANE


# ---- writes


def test_who_is_told_in_the_thread_finds_it_present(cache: Cache) -> None:
    async def main() -> None:
        file = file_of(cache)
        told, heard = threading.Event(), list[int]()

        def then(written: int) -> None:
            assert threading.current_thread() is not threading.main_thread()
            assert written == PAGE
            told.set()

        data = memoryview(bytes([7]) * PAGE)
        writing = file.begin_write(data, PAGE, then=then, wrote=heard.append)
        assert writing is not None
        assert told.wait(PATIENCE)  # the loop, which is held up here, has not heard of it
        assert not writing.done()
        assert heard == []
        assert file.present.covers(PAGE, 2 * PAGE)
        assert heard == [PAGE]
        assert file.written == PAGE
        assert await writing == PAGE
        assert heard == [PAGE]  # not twice
        file.close()

    asyncio.run(main())


def test_what_nobody_looks_at_is_taken_in_at_the_end(cache: Cache) -> None:
    async def main() -> None:
        file, heard = file_of(cache), list[int]()
        await file.write(memoryview(bytes(2 * PAGE)), 0, wrote=heard.append)
        assert heard == [2 * PAGE]
        assert file.written == 2 * PAGE
        file.close()

    asyncio.run(main())


def test_a_thread_that_opens_the_file_again_leaves_it_to_the_loop(cache: Cache) -> None:
    async def main() -> None:
        file, heard = file_of(cache), list[threading.Thread]()

        def then(_: int) -> None:
            os.close(file._settled(os.dup(file.fd)))

        data = memoryview(bytes(SIZE))
        await file.write(
            data, 0, then=then, wrote=lambda _: heard.append(threading.current_thread())
        )
        assert heard == [threading.main_thread()]
        assert file.complete
        file.close()

    asyncio.run(main())


def test_a_write_waits_for_one_that_is_in_its_way(cache: Cache) -> None:
    async def main() -> None:
        file, go = file_of(cache), threading.Event()
        first = file.begin_write(
            memoryview(bytes([1]) * (2 * PAGE)), 0, then=lambda _: ensure(go.wait(PATIENCE))
        )
        assert first is not None
        assert not file.idle(PAGE, PAGE)
        assert file.idle(2 * PAGE, PAGE)
        assert file.begin_write(memoryview(bytes(PAGE)), PAGE) is None
        second = asyncio.create_task(file.write(memoryview(bytes([2]) * PAGE), PAGE))
        await asyncio.sleep(0)
        assert not second.done()
        go.set()
        async with asyncio.timeout(PATIENCE):
            assert (await first, await second) == (2 * PAGE, PAGE)
        buffer = bytearray(2 * PAGE)
        assert file.read([buffer], 0) == len(buffer)
        assert buffer == bytes([1]) * PAGE + bytes([2]) * PAGE
        file.close()

    asyncio.run(main())


def ensure(condition: object) -> None:
    assert condition


def test_of_a_write_that_failed_nobody_is_told(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    async def main() -> None:
        file, told = file_of(cache), list[int]()
        monkeypatch.setattr(cache, "store", full)
        with pytest.raises(OSError, match="full"):
            await file.write(memoryview(bytes(PAGE)), 0, then=told.append, wrote=told.append)
        assert told == []
        assert file.idle(0, PAGE)
        assert not file.present
        file.close()

    asyncio.run(main())
