"""One cache file: what is present, writes cut short, threads that outlive it, range locks."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.cachefiles.rig import PAGE, pages, settle, soon

from pagein.cachefiles import backing
from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.inflight import SLOTS_PER_LANE
from pagein.rangeset import RangeSet

PATH = b"cache/Iv/@00/Dblob"
SIZE = 8 * PAGE


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(os.fsencode(tmp_path))
    yield cache
    cache.close()


@pytest.fixture
def file(cache: Cache) -> Iterator[BackingFile]:
    file = cache.look_up(PATH, SIZE)
    yield file
    file.close()


def content(file: BackingFile, offset: int, length: int) -> bytes:
    data = bytearray(length)
    got = file.read([memoryview(data)], offset)
    return bytes(data[:got])


def at_rest(cache: Cache, size: int = SIZE) -> RangeSet:
    """What the next who opens the file takes for present."""
    again = cache.look_up(PATH, size)
    try:
        return again.present
    finally:
        again.close()


def test_a_page_is_present_when_its_write_has_returned(cache: Cache, file: BackingFile) -> None:
    async def main() -> None:
        assert list(file.present) == []
        assert await file.write(pages(1, 2), 2 * PAGE) == 2 * PAGE
        assert file.present == at_rest(cache) == RangeSet([(2 * PAGE, 4 * PAGE)])
        assert file.written == 2 * PAGE
        assert content(file, PAGE, 4 * PAGE) == bytes(PAGE) + bytes(pages(1, 2)) + bytes(PAGE)
        assert file.read_now([memoryview(bytearray(PAGE))], 2 * PAGE) in (PAGE, -1)
        await file.write(pages(1, 1), 0)
        await file.write(pages(3, 4, 5, 6), 4 * PAGE)
        assert file.complete
        assert file.present_from(PAGE) == SIZE

    asyncio.run(main())


def test_where_a_present_extent_ends(file: BackingFile) -> None:
    asyncio.run(soon(file.write(pages(1, 2), PAGE)))
    assert file.present_from(PAGE) == 3 * PAGE


def test_zeros_written_are_data(cache: Cache, file: BackingFile) -> None:
    asyncio.run(soon(file.write(pages(0), PAGE)))
    assert at_rest(cache) == RangeSet([(PAGE, 2 * PAGE)])


def test_a_tail_makes_its_page_present(cache: Cache) -> None:
    file = cache.look_up(PATH, PAGE + 700)
    asyncio.run(soon(file.write(pages(1)[:1024], PAGE)))
    assert file.present == at_rest(cache, PAGE + 700) == RangeSet([(PAGE, 2 * PAGE)])
    file.close()


def test_a_tail_goes_by_itself(cache: Cache) -> None:
    file = cache.look_up(PATH, PAGE + 700)
    asyncio.run(soon(file.write(pages(1)[:1024], PAGE)))
    assert content(file, PAGE, 2 * PAGE) == b"\1" * 1024 + bytes(PAGE - 1024)
    file.close()


def test_what_stands_in_the_table_is_not_present(cache: Cache, file: BackingFile) -> None:
    asyncio.run(soon(file.write(pages(1, 2, 3), 0)))
    slot = cache.inflight.enter(PATH, PAGE, 100)
    assert at_rest(cache) == RangeSet([(0, PAGE), (2 * PAGE, 3 * PAGE)])
    cache.inflight.strike(slot)
    assert at_rest(cache) == RangeSet([(0, 3 * PAGE)])


# ---- lseek --------------------------------------------------------------------------------------


def test_seeking_what_is_present(file: BackingFile) -> None:
    asyncio.run(soon(file.write(pages(1, 2), 2 * PAGE)))
    found = {
        (whence, offset): file.lseek(offset, whence)
        for whence, offset in (
            (os.SEEK_DATA, 0),
            (os.SEEK_DATA, 3 * PAGE + 5),
            (os.SEEK_HOLE, 0),
            (os.SEEK_HOLE, 2 * PAGE + 5),
        )
    }
    assert list(found.values()) == [2 * PAGE, 3 * PAGE + 5, 0, 4 * PAGE]
    for offset in (4 * PAGE, SIZE, SIZE + 1, -1):
        with pytest.raises(OSError) as caught:
            file.lseek(offset, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO


def test_seeking_in_a_complete_file(file: BackingFile) -> None:
    asyncio.run(soon(file.write(pages(*range(8)), 0)))
    assert file.lseek(5, os.SEEK_DATA) == 5
    assert file.lseek(5, os.SEEK_HOLE) == SIZE


# ---- reads that do not wait ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "result"), [(errno.EAGAIN, -1), (errno.EOPNOTSUPP, PAGE), (errno.EIO, None)]
)
def test_read_now(
    file: BackingFile, monkeypatch: pytest.MonkeyPatch, number: int, result: int | None
) -> None:
    real = os.preadv

    def preadv(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(number, "")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    buffer = [memoryview(bytearray(PAGE))]
    if result is not None:
        assert file.read_now(buffer, 0) == result
        return
    with pytest.raises(OSError) as caught:
        file.read_now(buffer, 0)
    assert caught.value.errno == number


# ---- writes cut short ---------------------------------------------------------------------------


class Disk:
    """Stands in for pwrite: takes so many bytes, then fails."""

    def __init__(self, *parts: int, number: int = errno.ENOSPC) -> None:
        self.parts = list(parts)
        self.number = number
        self._pwrite = os.pwrite

    def __call__(self, fd: int, data: memoryview, offset: int) -> int:
        if not self.parts:
            raise OSError(self.number, os.strerror(self.number))
        return self._pwrite(fd, data[: self.parts.pop(0)], offset)


def test_a_full_disk(cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", Disk())
    with pytest.raises(OSError) as caught:
        asyncio.run(soon(file.write(pages(1), 0)))
    assert caught.value.errno == errno.ENOSPC
    assert not file.present
    assert cache.inflight.slots_free == SLOTS_PER_LANE


@pytest.mark.parametrize(
    ("parts", "written"),
    [
        ((PAGE,), PAGE),
        ((PAGE, PAGE + 100), 2 * PAGE),
        ((100, 50), 0),
        ((100, PAGE - 100, 2 * PAGE), 3 * PAGE),
    ],
)
def test_a_write_cut_short_leaves_whole_pages(
    cache: Cache,
    file: BackingFile,
    monkeypatch: pytest.MonkeyPatch,
    parts: tuple[int, ...],
    written: int,
) -> None:
    monkeypatch.setattr(os, "pwrite", Disk(*parts))
    assert asyncio.run(soon(file.write(pages(1, 2, 3, 4), 0))) == written
    monkeypatch.undo()
    assert file.present == at_rest(cache) == RangeSet([(0, written)] if written else [])
    assert cache.inflight.slots_free == SLOTS_PER_LANE


def test_a_page_half_written_over_is_not_present_any_more(
    cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(soon(file.write(pages(1, 2, 3), 0)))
    monkeypatch.setattr(os, "pwrite", Disk(PAGE + 10))
    assert asyncio.run(soon(file.write(pages(4, 5, 6), 0))) == PAGE
    monkeypatch.undo()
    assert file.present == at_rest(cache) == RangeSet([(0, PAGE), (2 * PAGE, 3 * PAGE)])


def test_half_a_page_that_cannot_be_given_back_stays_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    cache = Cache(os.fsencode(tmp_path))
    file = cache.look_up(PATH, SIZE)
    monkeypatch.setattr(os, "pwrite", Disk(10))
    monkeypatch.setattr(backing, "punch", broken)
    with pytest.raises(OSError) as caught:
        asyncio.run(soon(file.write(pages(1), 0)))
    assert caught.value.errno == errno.EIO
    assert not file.present
    assert not at_rest(cache)
    file.close()
    cache.inflight.strike(SLOTS_PER_LANE - 1)  # give the lane back after all
    cache.close()


# ---- threads at work ----------------------------------------------------------------------------


class Gate:
    """Stands in for pwrite or preadv: waits inside until it is let through."""

    def __init__(self, real: Callable[..., int]) -> None:
        self.real = real
        self.entered = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self, *arguments: Any) -> int:
        self.entered.release()
        assert self.let.acquire(timeout=30)
        return self.real(*arguments)

    async def inside(self, count: int = 1) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.entered.acquire, timeout=30)


def gated(
    monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[Gate], Coroutine[Any, Any, None]]
) -> None:
    gate = Gate(getattr(os, name))
    monkeypatch.setattr(os, name, gate)

    async def main() -> None:
        async with asyncio.timeout(60):
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
    assert at_rest(again) == RangeSet([(0, PAGE)])
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


# ---- a file that is mounted directly ------------------------------------------------------------


def test_a_complete_file_in_use_takes_no_writes(cache: Cache, file: BackingFile) -> None:
    asyncio.run(soon(file.write(pages(*range(8)), 0)))
    second = cache.look_up(PATH, SIZE)  # `file` plays the mount
    try:
        assert second.read_only
        with pytest.raises(OSError) as caught:
            asyncio.run(soon(second.write(pages(1), 0)))
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(OSError) as caught:
            os.pwrite(second.fd, b"x", 0)
        assert caught.value.errno == errno.EBADF
        assert content(second, PAGE, PAGE) == b"\1" * PAGE
    finally:
        second.close()


def test_a_file_with_holes_in_use_is_filled(cache: Cache, file: BackingFile) -> None:
    second = cache.look_up(PATH, SIZE)
    try:
        assert not second.read_only
        asyncio.run(soon(second.write(pages(1), 0)))
    finally:
        second.close()


# ---- range locks --------------------------------------------------------------------------------

HOLDER = """
import asyncio, os, sys
from pagein.cachefiles.cache import Cache
PATH, PAGE = b"cache/Iv/@00/Dblob", 4096
async def main():
    cache = Cache(os.fsencode(sys.argv[1]), shared=True)
    file = cache.look_up(PATH, 8 * PAGE)
    async with file.claim(0, 2 * PAGE, timeout=30) as missing:
        print(missing, flush=True)
        sys.stdin.readline()
        if sys.argv[2] == "entered":
            cache.inflight.enter(PATH, 0, 2 * PAGE)
        await file.write(memoryview(b"h" * PAGE), 0)
        if sys.argv[2] != "well":
            os.kill(os.getpid(), 9)
        await file.write(memoryview(b"h" * PAGE), PAGE)
    file.close()
    cache.close()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("ending", "missing"),
    [("well", []), ("killed", [(PAGE, 2 * PAGE)]), ("entered", [(0, 2 * PAGE)])],
)
def test_who_waits_for_a_range_fetches_what_the_holder_did_not(
    tmp_path: Path, ending: str, missing: list[tuple[int, int]]
) -> None:
    cache = Cache(os.fsencode(tmp_path), shared=True)
    file = cache.look_up(PATH, SIZE)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with file.claim(0, PAGE, timeout=0.01):
                pass
        async with file.claim(4 * PAGE, SIZE, timeout=30) as free:  # another range: no wait
            assert free == [(4 * PAGE, SIZE)]
        waiting = asyncio.create_task(claim_and_fill())
        await asyncio.sleep(0.01)
        assert holder.stdin is not None
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        assert await waiting == missing
        assert not cache.inflight.of_path(PATH)

    async def claim_and_fill() -> list[tuple[int, int]]:
        async with file.claim(0, 2 * PAGE, timeout=30) as gaps:
            for start, end in gaps:
                await file.write(memoryview(b"w" * (end - start)), start)
            return gaps

    command = [sys.executable, "-c", HOLDER, str(tmp_path), ending]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"[(0, 8192)]\n"
            asyncio.run(soon(main()))
        finally:
            holder.kill()
    assert b"\0" not in content(file, 0, 2 * PAGE)
    file.close()
    cache.close()


def test_a_range_that_is_not_filled_keeps_its_entry(tmp_path: Path) -> None:
    cache = Cache(os.fsencode(tmp_path), shared=True)
    file = cache.look_up(PATH, SIZE)

    async def main() -> None:
        slot = cache.inflight.enter(PATH, 0, PAGE)
        async with file.claim(0, PAGE, timeout=30) as missing:
            assert missing == [(0, PAGE)]
        assert cache.inflight.of_path(PATH)
        cache.inflight.strike(slot)

    asyncio.run(main())
    file.close()
    cache.close()


def test_closed_while_it_was_claimed(tmp_path: Path) -> None:
    cache = Cache(os.fsencode(tmp_path), shared=True)
    file = cache.look_up(PATH, SIZE)

    async def main() -> None:
        async with file.claim(0, PAGE, timeout=30):
            file.close()
        with pytest.raises(OSError) as caught:
            async with file.claim(0, PAGE, timeout=30):
                pass
        assert caught.value.errno == errno.ENOBUFS

    asyncio.run(main())
    cache.close()
