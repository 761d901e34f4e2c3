"""Reads of a cookie: what a netfs gets for what a daemon answers, and after a daemon's death."""

import asyncio
import errno
from pathlib import Path

import pytest
from tests.cachefiles.rig import PAGE, Rig, fails, pages, settle, soon

from pagein.cachefiles.anonymous import AnonymousFile
from pagein.fscache import Cookie
from pagein.protocol.messages import Close, Open, Read
from pagein.protocol.states import ObjectState

SIZE = 8 * PAGE


async def answer(rig: Rig, file: AnonymousFile, *numbers: int, at: int | None = None) -> Read:
    """Take a READ, write pages with these numbers where it begins, and CREAD."""
    message = await rig.take(Read)
    if numbers:
        await soon(file.pwrite(pages(*numbers), message.off if at is None else at))
    file.cread(message.msg_id)
    return message


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
