"""The device and its anonymous files without a file system: facts cachefiles-kernel 1 to 3, 8.1."""

import asyncio
import errno
import os
import select
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.cachefiles.rig import COOKIE, PAGE, VOLUME, Rig, pages, settle, soon, until

from pagein.cachefiles import device as device_module
from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.device import AnonymousFile, CachefilesDevice
from pagein.protocol.messages import Close, Open, Read
from pagein.rangeset import RangeSet

SIZE = 4 * PAGE


def refused(number: int, work: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        work()
    assert caught.value.errno == number


async def fails(rig: Rig, command: bytes, number: int) -> None:
    with pytest.raises(OSError) as caught:
        await rig.write(command)
    assert caught.value.errno == number, command


# ---- open, commands -----------------------------------------------------------------------------


def test_before_anything(tmp_path: Path) -> None:
    async def main() -> None:
        device = CachefilesDevice()
        assert device.poll() == 0
        refused(errno.EBADF, partial(device.read, 1024))
        refused(errno.EBADF, device.release)
        refused(errno.ENOENT, lambda: AnonymousFile(device, 1, 1))
        with pytest.raises(OSError) as caught:
            await device.write(b"bind")
        assert caught.value.errno == errno.EBADF

    asyncio.run(main())


def test_one_open_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            refused(errno.EBUSY, rig.device.open)
            rig.device.release()
            rig.device.open()
            assert not rig.device.bound.is_set()

    asyncio.run(main())


def test_not_bound(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path, bind=False) as rig:
            assert rig.device.read(0) == b""
            assert rig.device.poll() == 0
            await fails(rig, b"copen 0,1", errno.EOPNOTSUPP)
            await fails(rig, b"restore", errno.EOPNOTSUPP)
            with pytest.raises(OSError) as caught:
                await rig.acquiring()
            assert caught.value.errno == errno.ENOBUFS

    asyncio.run(main())


def test_dir_and_tag_are_set_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path, bind=False) as rig:
            for verb in (b"dir", b"tag"):
                await fails(rig, verb, errno.EINVAL)
                await fails(rig, verb + b" ", errno.EINVAL)
                assert await rig.write(verb + b" x\nignored") == len(verb) + 10
                await fails(rig, verb + b" x", errno.EEXIST)
            assert (rig.session.dir, rig.session.tag) == (b"x", b"x")

    asyncio.run(main())


def test_bind_checks_in_this_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path, bind=False) as rig:
            await fails(rig, b"bind ondemand", errno.EINVAL)  # no dir
            await rig.write(b"dir " + os.fsencode(tmp_path))
            await fails(rig, b"bind bogus", errno.EINVAL)
            await fails(rig, b"bind ondemand x", errno.EINVAL)
            await fails(rig, b"bind", errno.EOPNOTSUPP)  # the original mode
            await fails(rig, b"copen 0,1", errno.EOPNOTSUPP)  # nor did they leave a mode
            await rig.write(b"bind  ondemand")
            assert rig.session.tag == b"CacheFiles"
            assert rig.device.bound.is_set()
            await fails(rig, b"bind ondemand", errno.EBUSY)
            await fails(rig, b"bind bogus", errno.EBUSY)

    asyncio.run(main())


def test_a_failed_bind_leaves_what_was_set(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path / "cache", bind=False) as rig:
            await rig.write(b"dir " + os.fsencode(tmp_path / "cache"))
            await fails(rig, b"bind ondemand", errno.ENOENT)
            assert rig.device.bound.is_set()
            assert rig.session.problem == f"cache {tmp_path / 'cache'}: No such file or directory"
            await fails(rig, b"tag x", errno.EEXIST)
            # The mode stays as well: copen is EINVAL now, not EOPNOTSUPP.
            await fails(rig, b"copen 0,1", errno.EINVAL)
            (tmp_path / "cache").mkdir()
            await rig.write(b"bind")
            assert rig.session.cache is not None

    asyncio.run(main())


def test_closed_while_it_binds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        rig = Rig(tmp_path, bind=False)
        async with rig:
            await rig.write(b"dir " + os.fsencode(tmp_path))
            binding = rig.start(rig.device.write(b"bind ondemand"))
            await settle()
            rig.device.release()
            with pytest.raises(OSError) as caught:
                await soon(binding)
            assert caught.value.errno == errno.EIO
        Cache(os.fsencode(tmp_path)).close()  # it was given back

    asyncio.run(main())


def test_commands_of_a_dead_cache(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            cookie, file = await rig.acquire(SIZE)
            reading = rig.reading(cookie, 0, PAGE)
            await rig.take(Read)
            waiting = rig.start(rig.device.write(b"tag x"))  # takes the mutex after this
            rig.device.release()
            for command in (b"restore", b"no such", b""):
                await fails(rig, command, errno.EIO)
            with pytest.raises(OSError) as caught:
                await soon(waiting)
            assert caught.value.errno == errno.EIO
            with pytest.raises(OSError) as caught:
                await soon(reading)
            assert caught.value.errno == errno.EIO
            assert rig.device.read(1024) == b""
            assert rig.device.poll() == 0
            # Until the anonymous fd goes, the device is busy and its writes are taken (7.5).
            refused(errno.EBUSY, rig.device.open)
            assert await file.pwrite(pages(1), 0) == PAGE
            refused(errno.EINVAL, partial(file.cread, 1))
            rig.close(file)
            refused(errno.EBADF, rig.device.release)
            await rig.fscache.relinquish(cookie)

    asyncio.run(main())


def test_dead_before_the_mutex_was_had(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            _, file = await rig.acquire(SIZE)
            async with rig.device._mutex:
                waiting = rig.start(rig.device.write(b"restore"))
                await settle()
                rig.device.release()
            with pytest.raises(OSError) as caught:
                await soon(waiting)
            assert caught.value.errno == errno.EIO
            rig.close(file)

    asyncio.run(main())


def test_unknown_commands(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            for command in (b"", b" bind", b"BIND", b"brun 7%", b"x" * 4096):
                await fails(rig, command, errno.EOPNOTSUPP)
            for command in (b"\n", b"tag a\0"):
                await fails(rig, command, errno.EINVAL)

    asyncio.run(main())


def test_restore_ignores_what_follows(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            assert await rig.write(b"restore junk") == 12

    asyncio.run(main())


def test_poll_and_changes(tmp_path: Path) -> None:
    async def main() -> None:
        changes: list[None] = []
        async with Rig(tmp_path) as rig:
            assert rig.device.poll() == 0
            rig.device._changed = lambda: changes.append(None)
            rig.acquiring()
            await until(rig.device.poll)
            assert rig.device.poll() == select.POLLIN
            assert not changes
            message = await rig.take(Open)
            assert changes  # an object id was given out: a successor has to know
            assert rig.device.poll() == 0
            count = len(changes)
            rig.open(message.object_id)
            assert len(changes) > count

    asyncio.run(main())


def test_a_lookup_that_never_ends_does_not_hold_commands_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, gate = Cache.look_up, threading.Event()

    def look_up(cache: Cache, relative: bytes, size: int) -> BackingFile:
        assert gate.wait(30)
        return real(cache, relative, size)

    monkeypatch.setattr(Cache, "look_up", look_up)

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            rig.device._copen_timeout = 0.01
            asking = rig.acquiring()
            message = await rig.take(Open)
            rig.open(message.object_id)
            with pytest.raises(TimeoutError):
                await rig.device.write(b"copen %d,%d" % (message.msg_id, SIZE))
            await rig.write(b"restore")
            gate.set()
            await soon(asking)

    asyncio.run(main())


# ---- the anonymous file -------------------------------------------------------------------------


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
    assert device_module._LOGICAL_BLOCK == 512
