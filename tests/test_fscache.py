"""Volumes and cookies: what a netfs gets for what a daemon does, without a file system."""

import asyncio
import errno
import logging
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.cachefiles.rig import COOKIE, PAGE, VOLUME, Rig, pages, settle, soon, until

from pagein.cachefiles import namei, xattr
from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.device import AnonymousFile
from pagein.fscache import Advice, Cookie
from pagein.protocol.messages import Close, Open, Read
from pagein.protocol.states import ObjectState
from pagein.rangeset import RangeSet

SIZE = 8 * PAGE
PATH = namei.object_path(VOLUME, COOKIE)


async def fails(work: Coroutine[Any, Any, Any] | asyncio.Future[Any], number: int) -> OSError:
    with pytest.raises(OSError) as caught:
        await soon(work)
    assert caught.value.errno == number
    return caught.value


async def answer(rig: Rig, file: AnonymousFile, *numbers: int, at: int | None = None) -> Read:
    """Take a READ, write pages with these numbers where it begins, and CREAD."""
    message = await rig.take(Read)
    if numbers:
        await soon(file.pwrite(pages(*numbers), message.off if at is None else at))
    file.cread(message.msg_id)
    return message


# ---- acquire ------------------------------------------------------------------------------------


def test_the_size_must_be_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            await fails(rig.fscache.acquire(VOLUME, COOKIE, Advice.NONE), errno.EINVAL)
            assert rig.read() is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("volume", "cookie"), [(b"a/b", b"c"), (b"", b"c"), (b"v", b""), (b"v", b"c" * 253)]
)
def test_impossible_keys(tmp_path: Path, volume: bytes, cookie: bytes) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            await fails(rig.acquiring(cookie, volume), errno.EINVAL)
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

            def look_up(cache: Cache, relative: bytes, size: int) -> BackingFile:
                file = real(cache, relative, size)
                asyncio.run_coroutine_threadsafe(release(), loop).result(30)
                return file

            monkeypatch.setattr(Cache, "look_up", look_up)
            asking = rig.acquiring()
            message = await rig.take(Open)
            rig.start(rig.device.write(b"copen %d,%d" % (message.msg_id, SIZE)))
            await fails(asking, errno.EIO)
            assert rig.device.session is None

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_dead_cache_stays_dead_for_its_cookies(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            await soon(file.pwrite(pages(1), 0))
            rig.device.release()
            assert not cookie.present(0, PAGE)
            # Also data that is complete in the file (7.5), and bytes beyond it.
            await fails(rig.fscache.make_present(cookie, 0, PAGE), errno.EIO)
            await fails(rig.fscache.make_present(cookie, PAGE, PAGE), errno.EIO)
            await fails(rig.acquiring(), errno.ENOBUFS)
            await fails(rig.acquiring(b"new"), errno.ENOBUFS)
            rig.close(file)
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


# ---- make_present: facts 9.2, 9.4 ---------------------------------------------------------------


def test_a_read_covers_the_leading_hole(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            await soon(file.pwrite(pages(2, 3), 2 * PAGE))
            reading = rig.reading(cookie, 100, 6 * PAGE)
            message = await answer(rig, file, 0, 1)
            assert (message.off, message.len) == (0, 2 * PAGE)
            message = await answer(rig, file, 4, 5, 6)
            assert (message.off, message.len) == (4 * PAGE, 3 * PAGE)
            wanted = bytes(pages(*range(7)))[100 : 100 + 6 * PAGE]
            assert await soon(reading) == wanted
            assert cookie.object.requests == 2

    asyncio.run(main())


def test_what_is_present_is_not_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            await soon(file.pwrite(pages(0), PAGE))  # zeros that were written are data
            assert await soon(rig.read_bytes(cookie, PAGE, PAGE)) == bytes(PAGE)
            assert rig.read() is None

    asyncio.run(main())


def test_still_a_hole_after_cread_is_eio(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            reading = rig.reading(cookie, 0, 2 * PAGE)
            await answer(rig, file)
            await fails(reading, errno.EIO)
            # Not its first page: of no use.
            reading = rig.reading(cookie, 0, 2 * PAGE)
            await answer(rig, file, 1, at=PAGE)
            await fails(reading, errno.EIO)
            # Errors are not remembered: the next read asks again.
            reading = rig.reading(cookie, 0, 2 * PAGE)
            assert (await answer(rig, file, 7)).len == PAGE
            assert await soon(reading) == bytes(pages(7, 1))

    asyncio.run(main())


def test_a_prefix_is_accepted_and_the_rest_asked_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            reading = rig.reading(cookie, 0, 4 * PAGE)
            asked = [await answer(rig, file, 1), await answer(rig, file, 2, 3)]
            asked.append(await answer(rig, file, 4))
            assert [(m.off // PAGE, m.len // PAGE) for m in asked] == [(0, 4), (1, 3), (3, 1)]
            assert await soon(reading) == bytes(pages(1, 2, 3, 4))

    asyncio.run(main())


def test_the_range_is_not_deduplicated(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            readings = [rig.reading(cookie, 0, 2 * PAGE), rig.reading(cookie, PAGE, 2 * PAGE)]
            first, second = await rig.take(Read), await rig.take(Read)
            assert (second.off, second.len) == (PAGE, 2 * PAGE)
            await soon(file.pwrite(pages(1, 2, 3), 0))
            file.cread(second.msg_id)
            file.cread(first.msg_id)
            done = await soon(asyncio.gather(*readings))
            assert done == [bytes(pages(1, 2)), bytes(pages(2, 3))]

    asyncio.run(main())


def test_reads_at_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(PAGE + 10)
            presenting = rig.start(rig.fscache.make_present(cookie, PAGE, 3 * PAGE))
            message = await answer(rig, file, 1)
            assert (message.off, message.len) == (PAGE, PAGE)
            await soon(presenting)
            await soon(rig.fscache.make_present(cookie, 9 * PAGE, PAGE))  # nothing can be there
            assert not cookie.present(9 * PAGE, PAGE)

    asyncio.run(main())


def test_a_daemon_that_says_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path, read_timeout=0.05) as rig:
            cookie, file = await rig.acquire(SIZE)
            reading = rig.reading(cookie, 0, PAGE)
            message = await rig.take(Read)
            await fails(reading, errno.EIO)
            with pytest.raises(OSError) as caught:
                file.cread(message.msg_id)
            assert caught.value.errno == errno.EINVAL
            assert not rig.session.requests.pending

    asyncio.run(main())


def test_a_reader_that_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, _ = await rig.acquire(SIZE)
            reading = rig.reading(cookie, 0, PAGE)
            await rig.take(Read)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert not rig.session.requests.pending

    asyncio.run(main())


def test_withdrawn_under_a_reader(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            reading = rig.reading(cookie, 0, 2 * PAGE)
            message = await rig.take(Read)
            leaving = rig.start(rig.fscache.relinquish(cookie))
            await rig.take(Close)
            await soon(leaving)
            await fails(reading, errno.EIO)
            with pytest.raises(OSError):
                file.cread(message.msg_id)
            await fails(rig.fscache.make_present(cookie, 0, PAGE), errno.EIO)

    asyncio.run(main())


def test_a_prefix_then_withdrawn(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            reading = rig.reading(cookie, 0, 2 * PAGE)
            message = await rig.take(Read)
            await soon(file.pwrite(pages(1), 0))
            file.cread(message.msg_id)
            rig.session.requests.drop(cookie.object)  # between the CREAD and the next look
            await fails(reading, errno.EIO)

    asyncio.run(main())


# ---- failover: facts 10 -------------------------------------------------------------------------


def test_reopening(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            rig.close(file)
            assert cookie.object.state is ObjectState.CLOSE
            reading = rig.reading(cookie, 0, PAGE)
            await settle()
            assert rig.device.poll() and rig.read() is None  # it kicks
            second = await rig.serve_open(SIZE)
            assert second.object_id != file.object_id
            message = await answer(rig, second, 3)
            assert message.object_id == second.object_id
            assert await soon(reading) == bytes(pages(3))

    asyncio.run(main())


def test_a_daemon_dies_and_another_restores(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            reading = rig.reading(cookie, 0, 2 * PAGE)
            asking = rig.acquiring(b"other")
            lost_read, lost_open = await rig.take(Read), await rig.take(Open)
            await soon(file.pwrite(pages(1), 0))
            rig.close(file)  # it dies after its first page, with an OPEN in its hands
            await rig.write(b"restore")
            other = await rig.take(Open)
            assert (other.msg_id, other.cookie_key) == (lost_open.msg_id, b"other")
            assert other.object_id != lost_open.object_id
            await rig.write(b"copen %d,%d" % (other.msg_id, SIZE))
            await soon(asking)
            again = await rig.serve_open(SIZE)
            message = await rig.take(Read)
            assert (message.msg_id, message.off, message.len) == (lost_read.msg_id, 0, 2 * PAGE)
            again.cread(message.msg_id)  # the first page is there already
            assert (await answer(rig, again, 2)).off == PAGE
            assert await soon(reading) == bytes(pages(1, 2))

    asyncio.run(main())


def test_what_is_present_needs_no_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            await soon(file.pwrite(pages(1), 0))
            rig.close(file)
            assert await soon(rig.read_bytes(cookie, 0, PAGE)) == bytes(pages(1))
            await soon(rig.fscache.relinquish(cookie))  # nor does its end: it is not OPEN

    asyncio.run(main())


def test_changes_are_told(tmp_path: Path) -> None:
    async def main() -> None:
        changes: list[int] = []
        async with Rig(tmp_path) as rig:
            rig.fscache._changed = lambda: changes.append(len(rig.fscache.cookies))
            cookie, _ = await rig.acquire(SIZE)
            await rig.give_back(cookie)
        # A successor must know of the cookie as soon as it is there, and when it is gone.
        assert changes[0] == 1 and changes[-1] == 0

    asyncio.run(main())


def test_a_cookie_is_what_the_object_says(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, _ = await rig.acquire(SIZE)
            cookie.object.size = None
            assert isinstance(cookie, Cookie) and cookie.size == 0

    asyncio.run(main())
