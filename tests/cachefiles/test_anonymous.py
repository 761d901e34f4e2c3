"""Anonymous files without a file system: facts cachefiles-kernel 8."""

import asyncio
import errno
import os
from functools import partial
from pathlib import Path

import pytest
from tests.cachefiles.rig import COOKIE, PAGE, VOLUME, Rig, pages, refused, soon

from pagein.cachefiles import anonymous as anonymous_module
from pagein.protocol.messages import Close, Open, Read
from pagein.rangeset import RangeSet

SIZE = 4 * PAGE


def test_writes_before_copen(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            rig.acquiring()
            message = await rig.take(Open)
            file = rig.open(message.object_id)
            for offset, length in ((0, PAGE), (1, 1), (0, 0)):
                with pytest.raises(OSError) as caught:
                    await file.pwrite(memoryview(bytes(length)), offset)
                assert caught.value.errno == errno.ENOBUFS
            refused(errno.ENOBUFS, partial(file.lseek, 0, os.SEEK_DATA))
            await rig.write(b"copen %d,-2" % message.msg_id)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("size", "offset", "length", "number"),
    [
        (SIZE, 0, PAGE, 0),
        (SIZE, 0, 0, 0),
        (SIZE, 1, PAGE, errno.ENOBUFS),
        (SIZE, 512, 512, errno.ENOBUFS),
        (SIZE, 512, 1, errno.ENOBUFS),  # the offset is looked at first
        (SIZE, 0, 1, errno.EINVAL),
        (SIZE, 0, PAGE + 511, errno.EINVAL),
        (SIZE, 0, 512, errno.EINVAL),  # the rest of the page would be zeros
        (SIZE, PAGE, PAGE + 512, errno.EINVAL),
        (SIZE, -PAGE, PAGE, errno.EINVAL),
        (SIZE - 1000, 3 * PAGE, 3 * 1024, errno.EINVAL),
        (SIZE - 1000, 3 * PAGE, 3 * 1024 + 512, 0),  # up to the end, no page multiple
        (SIZE - 1000, 3 * PAGE, PAGE, 0),
        (SIZE, SIZE, PAGE, 0),  # beyond the end: it is extended
        (SIZE, SIZE, 512, 0),
    ],
)
def test_writes(tmp_path: Path, size: int, offset: int, length: int, number: int) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(size)
            data = pages(1, 2)[:length]
            if not number:
                assert await soon(file.pwrite(data, offset)) == length
                end = (offset + length + PAGE - 1) & -PAGE
                written = RangeSet([(offset, end)] if length else [])
                assert cookie.file.present == written
                return
            with pytest.raises(OSError) as caught:
                await file.pwrite(data, offset)
            assert caught.value.errno == number
            assert not cookie.file.present

    asyncio.run(main())


def test_any_range_at_any_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            second = rig.open(file.object_id)
            await soon(
                asyncio.gather(
                    file.pwrite(pages(1, 2), 0),
                    second.pwrite(pages(2, 3), PAGE),
                    file.pwrite(pages(4), 3 * PAGE),
                )
            )
            assert cookie.file.complete
            assert await soon(rig.read_bytes(cookie, 0, SIZE)) == bytes(pages(1, 2, 3, 4))
            assert rig.read() is None  # nothing was asked for

    asyncio.run(main())


def test_after_withdrawal(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            leaving = rig.start(rig.fscache.relinquish(cookie))
            await rig.take(Close)
            await soon(leaving)
            with pytest.raises(OSError) as caught:
                await file.pwrite(pages(1), 0)
            assert caught.value.errno == errno.ENOBUFS
            refused(errno.ENOBUFS, partial(file.lseek, 0, os.SEEK_SET))
            refused(errno.EINVAL, partial(file.cread, 1))
            refused(errno.ENOENT, partial(rig.open, file.object_id))

    asyncio.run(main())


def test_lseek(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            _, file = await rig.acquire(SIZE - 10)
            await file.pwrite(pages(1), PAGE)
            for offset, whence, result in (
                (5, os.SEEK_SET, 5),
                (0, os.SEEK_END, SIZE),
                (-SIZE, os.SEEK_END, 0),
                (0, os.SEEK_DATA, PAGE),
                (PAGE, os.SEEK_HOLE, 2 * PAGE),
            ):
                assert file.lseek(offset, whence) == result
            refused(errno.ENXIO, partial(file.lseek, 2 * PAGE, os.SEEK_DATA))
            for offset, whence in ((-1, os.SEEK_SET), (-SIZE - 1, os.SEEK_END), (0, 77)):
                refused(errno.EINVAL, partial(file.lseek, offset, whence))

    asyncio.run(main())


def test_the_object_of_an_open_is_the_one_it_was_opened_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            first, file = await rig.acquire(SIZE)
            await rig.acquire(SIZE, b"other")
            second = rig.open(file.object_id)
            rig.close(file)
            reading = rig.reading(first, 0, PAGE)
            message = await rig.take(Read)
            await second.pwrite(pages(5), 0)
            # Not the fd counts but its object: a dup after the original was closed will do.
            refused(errno.EINVAL, partial(rig.open(2).cread, message.msg_id))
            second.cread(message.msg_id)
            assert await soon(reading) == bytes(pages(5))

    asyncio.run(main())


def test_the_cache_ends_with_the_last_of_all_fds(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            _, file = await rig.acquire(SIZE)
            _, other = await rig.acquire(SIZE, b"other")
            rig.device.release()
            rig.close(file)
            refused(errno.EBUSY, rig.device.open)
            rig.close(other)
            rig.device.open()
            await rig.bind()

    asyncio.run(main())


def test_keys_arrive_as_they_are(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            rig.acquiring(b"\0\1/", b"v")
            message = await rig.take(Open)
            assert (message.volume_key, message.cookie_key) == (b"v", b"\0\1/")
            assert (VOLUME, COOKIE) not in rig.fscache.cookies

    asyncio.run(main())


def test_the_block_size_is_that_of_the_kernel() -> None:
    assert anonymous_module._LOGICAL_BLOCK == 512
