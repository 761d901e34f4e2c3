"""Reading through a cache in the original mode: what is fetched, when, and what never is."""

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.cachefiles.rig import PAGE, fails, soon

from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.device import CachefilesDevice
from pagein.fscache import FsCache, Known
from pagein.netfs import NetfsFile

SIZE = 20 * PAGE + 321
CONTENT = random.Random(3).randbytes(SIZE)
KEYS = (b"nfs,server,export", b"\x01\x02\x00\xff")
KNOWN = Known(SIZE, aux=b"v1", coherency=b"export")


class Remote:
    """The server: what it was asked for, and whether it answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.gate: asyncio.Event | None = None
        self.problem: OSError | None = None

    async def fetch(self, offset: int, length: int) -> bytes:
        self.asked.append((offset, length))
        if self.gate is not None:
            await self.gate.wait()
        if self.problem is not None:
            raise self.problem
        assert 0 < length <= SIZE - offset
        return CONTENT[offset : offset + length]


@asynccontextmanager
async def bound(directory: Path) -> AsyncIterator[tuple[CachefilesDevice, FsCache]]:
    device = CachefilesDevice()
    device.open()
    await device.write(b"dir " + os.fsencode(directory))
    await device.write(b"bind")
    yield device, FsCache(device)
    if device.session is not None:
        device.release()
    assert device.session is None


async def opened(fscache: FsCache, remote: Remote, known: Known = KNOWN) -> NetfsFile:
    return await soon(NetfsFile.open(fscache, *KEYS, known, remote.fetch))


def test_what_was_read_is_not_fetched_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with bound(tmp_path) as (_, fscache):
            remote = Remote()
            for expected in ([(0, 2 * PAGE), (7 * PAGE, PAGE), (20 * PAGE, 321)], []):
                file = await opened(fscache, remote)
                for offset, length in ((10, PAGE), (7 * PAGE, 5), (20 * PAGE + 1, 9999)):
                    data = await soon(file.read(offset, length))
                    assert data == CONTENT[offset : offset + length]
                assert remote.asked == expected
                remote.asked.clear()
                await file.close(fscache)

    asyncio.run(main())


def test_holes_between_are_fetched_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        async with bound(tmp_path) as (_, fscache):
            remote = Remote()
            file = await opened(fscache, remote)
            await file.read(3 * PAGE, PAGE)
            await file.read(9 * PAGE, PAGE)
            remote.asked.clear()
            assert await soon(file.read(0, SIZE + 100)) == CONTENT
            rest = (10 * PAGE, SIZE - 10 * PAGE)
            assert remote.asked == [(0, 3 * PAGE), (4 * PAGE, 5 * PAGE), rest]
            assert await file.read(SIZE, 10) == b""
            await file.close(fscache)

    asyncio.run(main())


def test_who_waits_for_the_same_range_fetches_it_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with bound(tmp_path) as (_, fscache):
            remote = Remote()
            remote.gate = asyncio.Event()
            file = await opened(fscache, remote)
            readers = [asyncio.ensure_future(file.read(n * 100, 3 * PAGE)) for n in range(5)]
            await asyncio.sleep(0)
            remote.gate.set()
            for number, reader in enumerate(readers):
                data = await soon(reader)
                assert data == CONTENT[number * 100 :][: 3 * PAGE]
            assert remote.asked == [(0, 3 * PAGE), (3 * PAGE, PAGE)]
            await file.close(fscache)

    asyncio.run(main())


def test_a_server_that_fails_is_an_error_and_the_next_reader_asks_anew(tmp_path: Path) -> None:
    async def main() -> None:
        async with bound(tmp_path) as (_, fscache):
            remote = Remote()
            remote.problem = OSError(errno.ETIMEDOUT, "no answer")
            file = await opened(fscache, remote)
            await fails(asyncio.ensure_future(file.read(0, 10)), errno.ETIMEDOUT)
            remote.problem = None
            assert await soon(file.read(0, 10)) == CONTENT[:10]
            assert remote.asked == [(0, PAGE), (0, PAGE)]
            await file.close(fscache)

    asyncio.run(main())


@pytest.mark.parametrize(
    "other",
    [
        Known(SIZE, b"v2", b"export"),
        Known(SIZE + 1, b"v1", b"export"),
        Known(SIZE, b"v1", b"xport"),
    ],
)
def test_another_file_behind_the_same_key_is_not_believed(tmp_path: Path, other: Known) -> None:
    async def main() -> None:
        async with bound(tmp_path) as (_, fscache):
            remote = Remote()
            for known in (KNOWN, other):
                file = await opened(fscache, remote, known)
                await soon(file.read(0, PAGE))
                await file.close(fscache)
            assert remote.asked == [(0, PAGE), (0, PAGE)]

    asyncio.run(main())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOBUFS, errno.EIO])
def test_what_cannot_be_cached_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    async def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    async def main() -> None:
        async with bound(tmp_path) as (_, fscache):
            remote = Remote()
            file = await opened(fscache, remote)
            with monkeypatch.context() as patch:
                patch.setattr(BackingFile, "write", full)
                assert await soon(file.read(0, SIZE)) == CONTENT
            assert await soon(file.read(0, SIZE)) == CONTENT
            assert remote.asked == [(0, SIZE), (0, SIZE)]
            await file.close(fscache)

    asyncio.run(main())


def test_a_cache_that_cannot_be_read_is_no_condition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        async with bound(tmp_path) as (_, fscache):
            remote = Remote()
            file = await opened(fscache, remote)
            await file.read(0, PAGE)
            for answer in (broken, lambda *_: 7):
                with monkeypatch.context() as patch:
                    patch.setattr(BackingFile, "read", answer)
                    assert await soon(file.read(5, 100)) == CONTENT[5:105]
            assert remote.asked == [(0, PAGE), (5, 100), (5, 100)]
            await file.close(fscache)

    asyncio.run(main())


def test_without_a_cache_everything_is_fetched(tmp_path: Path) -> None:
    async def main() -> None:
        remote = Remote()
        file = await opened(FsCache(CachefilesDevice()), remote)
        assert file.cookie is None
        assert await soon(file.read(5, 100)) == CONTENT[5:105]
        assert await soon(file.read(5, 100)) == CONTENT[5:105]
        assert remote.asked == [(5, 100)] * 2
        await file.close(FsCache(CachefilesDevice()))

    asyncio.run(main())


def test_a_cache_that_ends_meanwhile(tmp_path: Path) -> None:
    async def main() -> None:
        async with bound(tmp_path) as (device, fscache):
            remote = Remote()
            file = await opened(fscache, remote)
            await file.read(0, PAGE)
            device.release()
            assert await soon(file.read(0, 2 * PAGE)) == CONTENT[: 2 * PAGE]
            assert remote.asked == [(0, PAGE), (0, 2 * PAGE)]
            await file.close(fscache)

    asyncio.run(main())


def test_a_key_that_is_none_is_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with bound(tmp_path) as (_, fscache):
            asking = NetfsFile.open(fscache, b"v", b"", KNOWN, Remote().fetch)
            await fails(asking, errno.EINVAL)
            unusable = await NetfsFile.open(fscache, b"a/b", b"c", KNOWN, Remote().fetch)
            assert unusable.cookie is None

    asyncio.run(main())
