"""One cache file: what is present, writes cut short, threads that outlive it, range locks."""

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cachefiles.files import PATH, Disk, content, found
from tests.cachefiles.rig import PAGE, pages, soon

from pagein.cachefiles import backing
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


def test_a_page_is_present_when_its_write_has_returned(cache: Cache, file: BackingFile) -> None:
    async def main() -> None:
        assert list(file.present) == []
        assert await file.write(pages(1, 2), 2 * PAGE) == 2 * PAGE
        assert file.present == found(cache, SIZE) == RangeSet([(2 * PAGE, 4 * PAGE)])
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
    assert found(cache, SIZE) == RangeSet([(PAGE, 2 * PAGE)])


def test_a_tail_makes_its_page_present(cache: Cache) -> None:
    file = cache.look_up(PATH, PAGE + 700)
    asyncio.run(soon(file.write(pages(1)[:1024], PAGE)))
    assert file.present == found(cache, PAGE + 700) == RangeSet([(PAGE, 2 * PAGE)])
    file.close()


def test_a_tail_goes_by_itself(cache: Cache) -> None:
    file = cache.look_up(PATH, PAGE + 700)
    asyncio.run(soon(file.write(pages(1)[:1024], PAGE)))
    assert content(file, PAGE, 2 * PAGE) == b"\1" * 1024 + bytes(PAGE - 1024)
    file.close()


def test_what_stands_in_the_table_is_not_present(cache: Cache, file: BackingFile) -> None:
    asyncio.run(soon(file.write(pages(1, 2, 3), 0)))
    slot = cache.inflight.enter(PATH, PAGE, 100)
    assert found(cache, SIZE) == RangeSet([(0, PAGE), (2 * PAGE, 3 * PAGE)])
    cache.inflight.strike(slot)
    assert found(cache, SIZE) == RangeSet([(0, 3 * PAGE)])


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


def test_a_full_disk(cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", Disk())
    with pytest.raises(OSError) as caught:
        asyncio.run(soon(file.write(pages(1), 0)))
    assert caught.value.errno == errno.ENOSPC
    assert not file.present
    assert cache.inflight.slots_free == SLOTS_PER_LANE


def test_not_even_a_page(cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", Disk(100, 50))
    with pytest.raises(OSError) as caught:  # whoever heard "0 bytes" would try for ever
        asyncio.run(soon(file.write(pages(1, 2), 0)))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert not file.present
    assert not found(cache, SIZE)


@pytest.mark.parametrize(
    ("parts", "written"),
    [
        ((PAGE,), PAGE),
        ((PAGE, PAGE + 100), 2 * PAGE),
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
    assert file.present == found(cache, SIZE) == RangeSet([(0, written)])
    assert cache.inflight.slots_free == SLOTS_PER_LANE


def test_a_page_half_written_over_is_whole_still(
    cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob never changes, so half of it are the same bytes. A reader must not meet a hole."""
    asyncio.run(soon(file.write(pages(1, 2, 3), 0)))
    monkeypatch.setattr(os, "pwrite", Disk(PAGE + 10))
    assert asyncio.run(soon(file.write(pages(1, 2, 3), 0))) == PAGE
    monkeypatch.undo()
    assert file.present == found(cache, SIZE) == RangeSet([(0, 3 * PAGE)])
    assert content(file, 0, 3 * PAGE) == bytes(pages(1, 2, 3))


class Ext4(Disk):
    """Says that it wrote nothing, and leaves a page of zeros."""

    def __call__(self, fd: int, data: memoryview | bytes, offset: int) -> int:
        try:
            return super().__call__(fd, data, offset)
        except OSError:
            real_pwrite(fd, bytes(PAGE), offset)
            raise


real_pwrite = os.pwrite


@pytest.mark.parametrize("parts", [(), (PAGE,), (2 * PAGE, 2 * PAGE)])
def test_what_a_failed_write_leaves_is_taken_back(
    cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch, parts: tuple[int, ...]
) -> None:
    asyncio.run(soon(file.write(pages(7), 6 * PAGE)))
    monkeypatch.setattr(os, "pwrite", Ext4(*parts))
    with contextlib.suppress(OSError):
        asyncio.run(soon(file.write(pages(1, 2, 3, 4, 5, 6, 7), 0)))
    monkeypatch.undo()
    wanted = RangeSet([(0, sum(parts)), (6 * PAGE, 7 * PAGE)])
    assert file.present == found(cache, SIZE) == wanted
    assert content(file, 6 * PAGE, PAGE) == bytes(pages(7))
    assert cache.inflight.slots_free == SLOTS_PER_LANE


def test_what_cannot_be_taken_back_is_before_the_next_write(
    cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", Ext4())
        patched.setattr(backing, "punch", broken)
        for _ in range(2 * SLOTS_PER_LANE):
            with pytest.raises(OSError) as caught:
                asyncio.run(soon(file.write(pages(1), 0)))
            assert caught.value.errno == errno.EIO
        assert not found(cache, SIZE)
        assert cache.inflight.slots_free == SLOTS_PER_LANE - 1
    asyncio.run(soon(file.write(pages(2), PAGE)))
    assert file.present == found(cache, SIZE) == RangeSet([(PAGE, 2 * PAGE)])
    assert cache.inflight.slots_free == SLOTS_PER_LANE


def test_writes_of_the_same_bytes_go_one_after_the_other(
    cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that fails would take back what another has just written."""
    running: list[int] = []
    most: list[int] = []

    def slow(fd: int, data: memoryview | bytes, offset: int) -> int:
        if isinstance(data, bytes):
            return real_pwrite(fd, data, offset)
        running.append(offset)
        most.append(len(running))
        time.sleep(0.02)
        running.remove(offset)
        return real_pwrite(fd, data, offset)

    async def main() -> None:
        await asyncio.gather(
            *(file.write(pages(n, n + 1), n * PAGE) for n in range(5)), return_exceptions=True
        )

    monkeypatch.setattr(os, "pwrite", slow)
    asyncio.run(soon(main()))
    assert max(most) <= 3  # 0, 2 and 4
    assert not file._writing


def test_a_page_that_is_taken_back_while_a_file_is_opened(
    cache: Cache, file: BackingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's write may fail between two looks at the table: so look twice."""
    looks: list[RangeSet] = [RangeSet([(0, 2 * PAGE)]), RangeSet([(PAGE, 3 * PAGE)])]
    monkeypatch.setattr(backing, "whole_pages", lambda *_: looks.pop(0))
    cache.shared = True
    opened = cache.look_up(PATH, SIZE)
    assert opened.present == RangeSet([(PAGE, 2 * PAGE)])
    opened.close()
    cache.shared = False


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
    assert not found(cache, SIZE)
    file.close()
    cache.inflight.strike(SLOTS_PER_LANE - 1)  # give the lane back after all
    cache.close()


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
