"""The device and its anonymous files without a file system: facts cachefiles-kernel 1 to 3, 8.1."""

import asyncio
import errno
import os
import select
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.cachefiles.rig import PAGE, Rig, fails, pages, refused, settle, soon, until

from pagein.cachefiles.anonymous import AnonymousFile
from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.device import CachefilesDevice
from pagein.protocol.messages import Open, Read

SIZE = 4 * PAGE


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
            await fails(rig.device.write(b"copen 0,1"), errno.EOPNOTSUPP)
            await fails(rig.device.write(b"restore"), errno.EOPNOTSUPP)
            with pytest.raises(OSError) as caught:
                await rig.acquiring()
            assert caught.value.errno == errno.ENOBUFS

    asyncio.run(main())


def test_dir_and_tag_are_set_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path, bind=False) as rig:
            for verb in (b"dir", b"tag"):
                await fails(rig.device.write(verb), errno.EINVAL)
                await fails(rig.device.write(verb + b" "), errno.EINVAL)
                assert await rig.write(verb + b" x\nignored") == len(verb) + 10
                await fails(rig.device.write(verb + b" x"), errno.EEXIST)
            assert (rig.session.dir, rig.session.tag) == (b"x", b"x")

    asyncio.run(main())


def test_bind_checks_in_this_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path, bind=False) as rig:
            await fails(rig.device.write(b"bind ondemand"), errno.EINVAL)  # no dir
            await rig.write(b"dir " + os.fsencode(tmp_path))
            await fails(rig.device.write(b"bind bogus"), errno.EINVAL)
            await fails(rig.device.write(b"bind ondemand x"), errno.EINVAL)
            await fails(rig.device.write(b"copen 0,1"), errno.EOPNOTSUPP)  # no mode is left
            await rig.write(b"bind  ondemand")
            assert rig.session.tag == b"CacheFiles"
            assert rig.device.bound.is_set()
            await fails(rig.device.write(b"bind ondemand"), errno.EBUSY)
            await fails(rig.device.write(b"bind bogus"), errno.EBUSY)

    asyncio.run(main())


def test_a_failed_bind_leaves_what_was_set(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path / "cache", bind=False) as rig:
            await rig.write(b"dir " + os.fsencode(tmp_path / "cache"))
            await fails(rig.device.write(b"bind ondemand"), errno.ENOENT)
            assert rig.device.bound.is_set()
            assert rig.session.problem == f"cache {tmp_path / 'cache'}: No such file or directory"
            await fails(rig.device.write(b"tag x"), errno.EEXIST)
            # The mode stays as well: copen is EINVAL now, not EOPNOTSUPP.
            await fails(rig.device.write(b"copen 0,1"), errno.EINVAL)
            (tmp_path / "cache").mkdir()
            await rig.write(b"bind")
            assert rig.session.cache is not None

    asyncio.run(main())


def test_closed_while_it_binds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate = threading.Event(), threading.Event()

    def slow(directory: bytes, **options: Any) -> Cache:
        begun.set()
        assert gate.wait(100)
        return Cache(directory, **options)

    async def main() -> None:
        rig = Rig(tmp_path, bind=False)
        monkeypatch.setattr(rig.device, "_make_cache", slow)
        async with rig:
            await rig.write(b"dir " + os.fsencode(tmp_path))
            binding = rig.start(rig.device.write(b"bind ondemand"))
            await until(begun.is_set)
            rig.device.release()
            gate.set()
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
                await fails(rig.device.write(command), errno.EIO)
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
            for command in (b"", b" bind", b"BIND", b"brunn 7%", b"x" * 4096):
                await fails(rig.device.write(command), errno.EOPNOTSUPP)
            for command in (b"\n", b"tag a\0"):
                await fails(rig.device.write(command), errno.EINVAL)

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

    def look_up(cache: Cache, *arguments: Any) -> BackingFile:
        assert gate.wait(100)
        return real(cache, *arguments)

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
