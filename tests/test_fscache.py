"""Volumes and cookies: what a netfs gets for what a daemon does, without a file system."""

import asyncio
import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from tests.cachefiles.rig import COOKIE, PAGE, VOLUME, Rig, fails, pages, settle, soon, until
from tests.fds import open_fds

from pagein.cachefiles import namei, xattr
from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.fscache import Advice
from pagein.protocol.messages import Close, Open
from pagein.rangeset import RangeSet

SIZE = 8 * PAGE
PATH = namei.object_path(VOLUME, COOKIE)


# ---- acquire ------------------------------------------------------------------------------------


def test_the_size_must_be_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            await fails(rig.fscache.acquire(VOLUME, COOKIE, Advice.NONE), errno.EINVAL)
            assert rig.read() is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("volume", "cookie", "number"),
    [
        (b"a/b", b"c", errno.ENOBUFS),
        (b"", b"c", errno.ENOBUFS),
        (b"v" * 255, b"c", errno.ENOBUFS),
        (b"v", b"", errno.EINVAL),
        (b"v", b"c" * 253, errno.EINVAL),
    ],
)
def test_impossible_keys(tmp_path: Path, volume: bytes, cookie: bytes, number: int) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            await fails(rig.acquiring(cookie, volume), number)
            assert rig.read() is None

    asyncio.run(main())


def test_two_users_one_open_size_from_copen_close_with_the_last(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            both = [rig.acquiring(), rig.acquiring()]
            file = await rig.serve_open(SIZE - 5)
            first, second = await soon(asyncio.gather(*both))
            assert first is second
            assert (first.users, first.size, first.length) == (2, SIZE - 5, SIZE)
            assert first.key == (VOLUME, COOKIE)
            third = await soon(rig.acquiring())
            assert rig.read() is None
            assert rig.fscache.file_of(VOLUME, COOKIE) is first.file
            await soon(rig.fscache.relinquish(first))
            await soon(rig.fscache.relinquish(second))
            assert rig.read() is None
            leaving = rig.start(rig.fscache.relinquish(third))
            await rig.take(Close)
            await soon(leaving)
            assert rig.fscache.file_of(VOLUME, COOKIE) is None
            rig.close(file)
            assert not rig.session.requests.objects and not rig.session.files

    asyncio.run(main())


def test_again_after_the_last_is_a_new_open(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            await soon(file.pwrite(pages(1), 0))
            await rig.give_back(cookie)
            again, _ = await rig.acquire(SIZE)
            assert again is not cookie
            assert again.file.present == RangeSet([(0, PAGE)])
            assert await soon(rig.read_bytes(again, 10, 20)) == b"\1" * 20
            assert rig.read() is None

    asyncio.run(main())


def test_another_size_next_time_is_another_content(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            await soon(file.pwrite(pages(1), 0))
            await rig.give_back(cookie)
            again, _ = await rig.acquire(SIZE + 1)
            assert not again.file.present

    asyncio.run(main())


def test_size_0(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, _ = await rig.acquire(0)
            assert (cookie.size, cookie.length, cookie.file.complete) == (0, 0, True)
            await soon(rig.fscache.make_present(cookie, 0, PAGE))
            assert not cookie.present(0, PAGE)

    asyncio.run(main())


@pytest.mark.parametrize(("existing", "number"), [(False, errno.EIO), (True, errno.ENOBUFS)])
def test_a_refused_open(tmp_path: Path, existing: bool, number: int) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            if existing:
                cookie, _ = await rig.acquire(SIZE)
                await rig.give_back(cookie)
            asking = rig.acquiring()
            message = await rig.take(Open)
            file = rig.open(message.object_id)
            await rig.write(b"copen %d,-%d" % (message.msg_id, errno.EACCES))
            problem = await fails(asking, number)
            # The netfs is not told why (6); whoever asks for the mount is.
            assert isinstance(problem.__cause__, OSError)
            assert problem.__cause__.errno == errno.EACCES
            assert rig.read() is None  # no CLOSE
            rig.close(file)
            await rig.acquire(SIZE)  # the next try begins anew

    asyncio.run(main())


def test_an_open_without_an_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            rig.fscache._timeout = 0.05
            asking = rig.acquiring()
            message = await rig.take(Open)
            await fails(asking, errno.EIO)
            await fails(rig.device.write(b"copen %d,1" % message.msg_id), errno.EINVAL)

    asyncio.run(main())


def test_a_file_that_cannot_be_used_open_copen_close(tmp_path: Path) -> None:
    # Facts 7.3: without its attribute it fails every time, after OPEN and copen, with a CLOSE.
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, _ = await rig.acquire(SIZE)
            await rig.give_back(cookie)
            os.removexattr(tmp_path / os.fsdecode(PATH), xattr.NAME)
            asking = rig.acquiring()
            file = await rig.serve_open(SIZE)
            await rig.take(Close)
            problem = await fails(asking, errno.ENOBUFS)
            assert isinstance(problem.__cause__, OSError)
            assert problem.__cause__.errno == errno.ENODATA
            rig.close(file)
            assert not rig.session.requests.objects

    asyncio.run(main())


def test_a_volume_that_cannot_be_used_no_open_at_all(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            (tmp_path / "cache" / "Ierofs,test").write_bytes(b"")
            await fails(rig.acquiring(), errno.ENOBUFS)
            assert rig.read() is None

    asyncio.run(main())


def test_the_file_is_there_when_copen_returns(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            asking = rig.acquiring()
            file = await rig.serve_open(SIZE)
            assert await soon(file.pwrite(pages(1), 0)) == PAGE
            assert (await soon(asking)).present(0, PAGE)

    asyncio.run(main())


def test_who_gives_up_waiting_leaves_nothing(tmp_path: Path) -> None:
    # As the kernel's mount: the lookup ends first, and the daemon gets its CLOSE (7.2).
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            asking = rig.acquiring()
            message = await rig.take(Open)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            file = rig.open(message.object_id)
            await rig.write(b"copen %d,%d" % (message.msg_id, SIZE))
            await rig.take(Close)
            rig.close(file)
            await until(lambda: not rig.fscache.cookies)
            assert not rig.session.files and not rig.session.requests.objects
            asking = rig.acquiring()
            message = await rig.take(Open)
            asking.cancel()
            await rig.write(b"copen %d,-2" % message.msg_id)
            await settle()
            assert not rig.session.requests.objects

    asyncio.run(main())


def test_the_device_closed_in_the_middle_of_a_lookup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Cache.look_up

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            loop = asyncio.get_running_loop()
            released = asyncio.Event()

            async def release() -> None:
                rig.device.release()
                released.set()

            def look_up(cache: Cache, *arguments: Any) -> BackingFile:
                file = real(cache, *arguments)
                asyncio.run_coroutine_threadsafe(release(), loop).result(30)
                return file

            monkeypatch.setattr(Cache, "look_up", look_up)
            asking = rig.acquiring()
            message = await rig.take(Open)
            rig.start(rig.device.write(b"copen %d,%d" % (message.msg_id, SIZE)))
            await fails(asking, errno.EIO)
            assert rig.device.session is None

    before = open_fds()
    asyncio.run(main())
    assert open_fds() <= before


def test_a_dead_cache_stays_dead_for_its_cookies(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            await soon(file.pwrite(pages(1), 0))
            rig.device.release()
            assert cookie.present(0, PAGE)
            await rig.fscache.make_present(cookie, 0, PAGE)
            await fails(rig.fscache.make_present(cookie, PAGE, PAGE), errno.EIO)
            await fails(rig.acquiring(), errno.ENOBUFS)
            await fails(rig.acquiring(b"new"), errno.ENOBUFS)
            rig.close(file)
            # The last fd: the cache is withdrawn, and with it what is complete in the file (7.5).
            assert not cookie.present(0, PAGE)
            await fails(rig.fscache.make_present(cookie, 0, PAGE), errno.ENOBUFS)
            await fails(rig.fscache.make_present(cookie, PAGE, PAGE), errno.ENOBUFS)
            rig.device.open()
            await rig.bind()
            await fails(rig.acquiring(), errno.ENOBUFS)  # binding does not revive it
            await soon(rig.fscache.relinquish(cookie))
            await rig.acquire(SIZE)

    asyncio.run(main())


def test_relinquish_of_one_that_the_daemon_forgot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            rig.fscache._timeout = 0.01
            await soon(rig.fscache.relinquish(cookie))
            assert not rig.fscache.cookies and not rig.session.files
            rig.close(file)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert "did not take the CLOSE of b'blob'" in caplog.text
