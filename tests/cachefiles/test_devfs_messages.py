"""`DeviceFs` message by message: what a kernel sends only in rare moments, and a predecessor."""

import asyncio
import errno
import os
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.cachefiles.rig import PAGE, Rig
from tests.fuse.test_connection import DEADLINE, pair
from tests.fuse.test_server import Kernel

from pagein.cachefiles.devfs import DeviceFs
from pagein.cachefiles.device import CachefilesDevice
from pagein.fuse import abi
from pagein.protocol.messages import IOC_READ_COMPLETE

DEVICE, ANON, FIRST = 2, 3, 16
Op = abi.Opcode


def message(opcode: int, node: int, layout: str = "", *values: Any, data: bytes = b"") -> bytes:
    body = abi.LAYOUTS[layout].pack(*values) if layout else b""
    size = abi.IN_HEADER_SIZE + len(body) + len(data)
    head = abi.LAYOUTS["fuse_in_header"].pack(size, opcode, 2, node, 0, 0, 0, 0)
    return head + body + data


def serve(
    device: Callable[[], CachefilesDevice],
    test: Callable[[DeviceFs, Kernel], Coroutine[Any, Any, None]],
) -> None:
    async def main() -> None:
        ours, kernel = pair()
        with kernel:
            fs = DeviceFs(ours.detach(), device())
            try:
                async with asyncio.timeout(DEADLINE):
                    await test(fs, Kernel(kernel, fs.server))
            finally:
                await fs.server.close()

    asyncio.run(main())


READ = message(Op.READ, DEVICE, "fuse_read_in", 1, 0, 1024, 0, 0, 0)
REFUSED = [
    (message(Op.READ, FIRST + 1, "fuse_read_in", 1, 0, 1024, 0, 0, 0), errno.EBADF),
    (message(Op.LSEEK, DEVICE, "fuse_lseek_in", 1, 0, os.SEEK_DATA), errno.EINVAL),
    (message(Op.LSEEK, FIRST + 1, "fuse_lseek_in", 1, 0, os.SEEK_DATA), errno.ENOBUFS),
    (
        message(Op.WRITE, FIRST + 1, "fuse_write_in", 1, 0, PAGE, 0, 0, 0, data=bytes(PAGE)),
        errno.ENOBUFS,
    ),
    (
        message(
            Op.IOCTL, FIRST + 1, "fuse_ioctl_in", 1, 0, IOC_READ_COMPLETE, 0, 4, 0, data=bytes(4)
        ),
        errno.EINVAL,
    ),
    (message(Op.OPEN, FIRST + 1, "fuse_open_in", os.O_WRONLY, 0), errno.ENOENT),
    (message(Op.LOOKUP, ANON, data=b"1\0"), errno.ENOENT),
    (message(Op.LOOKUP, DEVICE, data=b"1\0"), errno.ENOENT),
    (message(Op.SETATTR, FIRST + 1, "fuse_setattr_in", 8, 0, 0, 0, 0, 0), errno.EINVAL),
    (READ, errno.EBADF),  # nobody has the device open
]


@pytest.mark.parametrize(("question", "number"), REFUSED)
def test_of_a_cache_that_is_gone(question: bytes, number: int) -> None:
    async def test(fs: DeviceFs, kernel: Kernel) -> None:
        await kernel.send(question)
        assert await kernel.answer() == (2, number, b"")

    serve(CachefilesDevice, test)


def test_releases_of_what_is_not_open() -> None:
    async def test(fs: DeviceFs, kernel: Kernel) -> None:
        fs.device.open()
        fs.adopt(7, {1})
        for node in (DEVICE, FIRST + 1):
            await kernel.send(message(Op.RELEASE, node, "fuse_release_in", 99, 0, 0, 0))
            assert await kernel.answer() == (2, 0, b"")
        assert fs.device_handle == 7

    serve(CachefilesDevice, test)


def test_the_open_device_of_a_predecessor(tmp_path: Path) -> None:
    async def test(fs: DeviceFs, kernel: Kernel) -> None:
        fs.device.open()
        fs.adopt(7, {70, 71})
        fs.wake()
        woken = []
        for _ in range(2):
            size, code, unique, kh = struct.unpack("=IiQQ", kernel.end.recv(100))
            assert (size, code, unique) == (24, abi.Notify.POLL, 0)
            woken.append(kh)
        assert sorted(woken) == [70, 71]
        await kernel.send(READ)
        assert await kernel.answer() == (2, 0, b"")
        await kernel.send(message(Op.OPEN, DEVICE, "fuse_open_in", os.O_RDWR, 0))
        assert await kernel.answer() == (2, errno.EBUSY, b"")
        await kernel.send(message(Op.RELEASE, DEVICE, "fuse_release_in", 7, 0, 0, 0))
        assert await kernel.answer() == (2, 0, b"")
        assert fs.device.session is None and not fs.poll_handles

    serve(CachefilesDevice, test)


def test_polling_of_an_object_that_is_gone() -> None:
    async def test(fs: DeviceFs, kernel: Kernel) -> None:
        await kernel.send(message(Op.POLL, FIRST + 1, "fuse_poll_in", 1, 1, 0, 0))
        unique, number, body = await kernel.answer()
        assert (unique, number) == (2, 0)
        assert struct.unpack_from("=I", body) == (0x145,)  # DEFAULT_POLLMASK of Linux

    serve(CachefilesDevice, test)


def test_a_poll_that_wants_no_wake_up() -> None:
    async def test(fs: DeviceFs, kernel: Kernel) -> None:
        for flags, handles in ((0, set()), (1, {5}), (1, {5})):
            await kernel.send(message(Op.POLL, DEVICE, "fuse_poll_in", 1, 5, flags, 0))
            await kernel.answer()
            assert fs.poll_handles == handles

    serve(CachefilesDevice, test)


def test_attributes_and_names_without_a_session() -> None:
    async def test(fs: DeviceFs, kernel: Kernel) -> None:
        await kernel.send(message(Op.GETATTR, FIRST + 1, "fuse_getattr_in", 0, 0))
        unique, number, body = await kernel.answer()
        assert (unique, number) == (2, 0) and body
        await kernel.send(message(Op.READDIR, ANON, "fuse_read_in", 0, 0, 4096, 0, 0, 0))
        assert await kernel.answer() == (2, 0, b"")

    serve(CachefilesDevice, test)


def test_a_dead_object_cannot_be_looked_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            _, file = await rig.acquire(PAGE)
            rig.close(file)
            ours, kernel = pair()
            with kernel:
                fs = DeviceFs(ours.detach(), rig.device)
                end = Kernel(kernel, fs.server)
                await end.send(message(Op.LOOKUP, ANON, data=b"%d\0" % file.object_id))
                assert await end.answer() == (2, errno.ENOENT, b"")
                await fs.server.close()
                rig.device.pollers.remove(fs.wake)

    asyncio.run(main())
