"""Both sides of the kernel half in one process: a netfs, a device, and a daemon that one scripts.

`Rig` is the device with a bound cache, `FsCache` above it and the reading side of a daemon that
does only what the test says.
"""

from __future__ import annotations

import asyncio
import itertools
import mmap
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest

from pagein.cachefiles.anonymous import AnonymousFile
from pagein.cachefiles.device import CachefilesDevice, Session
from pagein.fscache import Advice, Cookie, FsCache
from pagein.protocol.messages import MSG_MAX_SIZE, Close, Message, Open, Read, decode

T = TypeVar("T")
M = TypeVar("M", Open, Read, Close)

DEADLINE = 30.0
"""Seconds within which anything that a test waits for must have happened."""
PAGE = 4096
VOLUME, COOKIE = b"erofs,test", b"blob"


def pages(*numbers: int) -> memoryview:
    """Page-aligned memory whose pages hold nothing but their number."""
    memory = mmap.mmap(-1, PAGE * len(numbers))
    memory.write(b"".join(bytes([number]) * PAGE for number in numbers))
    return memoryview(memory)


async def settle() -> None:
    """Let everything happen that needs no time and no thread."""
    for _ in range(20):
        await asyncio.sleep(0)


async def soon(work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """What `work` returns, within the deadline."""
    async with asyncio.timeout(DEADLINE):
        return await work


async def until(condition: Callable[[], object]) -> None:
    """Wait for what only a thread or another task can bring about."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0.001)


def refused(number: int, work: Callable[[], object]) -> None:
    """Check that `work` fails with that errno."""
    with pytest.raises(OSError) as caught:
        work()
    assert caught.value.errno == number


async def fails(work: Coroutine[Any, Any, Any] | asyncio.Future[Any], number: int) -> OSError:
    """The error that `work` ends with, which must have that errno."""
    with pytest.raises(OSError) as caught:
        await soon(work)
    assert caught.value.errno == number
    return caught.value


class Rig:
    """A device that is open and bound, and what a daemon does with it by hand."""

    def __init__(
        self,
        directory: Path,
        *,
        bind: bool = True,
        shared: bool = False,
        timeout: float = DEADLINE,
        read_timeout: float = DEADLINE,
    ) -> None:
        self.directory = directory
        self.device = CachefilesDevice(shared=shared, copen_timeout=timeout)
        self.fscache = FsCache(self.device, timeout=timeout, read_timeout=read_timeout)
        self.anonymous: list[AnonymousFile] = []
        self._bind = bind
        self._handles = itertools.count(1)
        self._woken = asyncio.Event()
        self.device.pollers.append(self._woken.set)
        self.tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Self:
        self.device.open()
        if self._bind:
            await self.bind()
        return self

    async def bind(self) -> None:
        await self.write(b"dir " + os.fsencode(self.directory))
        await self.write(b"bind ondemand")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device.session is not None and not self.session.dead:
            self.device.release()
        for file in list(self.anonymous):
            self.close(file)
        await soon(asyncio.gather(*self.tasks, return_exceptions=True))
        assert self.device.session is None  # nothing of it keeps the device busy

    @property
    def session(self) -> Session:
        assert self.device.session is not None
        return self.device.session

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a reader or a mount in a task that ends with the rig at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.append(task)
        return task

    # ---- the daemon --------------------------------------------------------------------------

    async def write(self, command: bytes) -> int:
        return await soon(self.device.write(command))

    def read(self, size: int = MSG_MAX_SIZE) -> Message | None:
        raw = self.device.read(size)
        return decode(raw) if raw else None

    async def take(self, kind: type[M]) -> M:
        """The next message, which must be one of that kind."""
        async with asyncio.timeout(DEADLINE):
            while True:
                self._woken.clear()
                message = self.read()
                if message is not None:
                    assert isinstance(message, kind), message
                    return message
                await self._woken.wait()

    def open(self, object_id: int) -> AnonymousFile:
        """A new open file description of anon/<object_id>."""
        file = AnonymousFile(self.device, object_id, next(self._handles))
        self.anonymous.append(file)
        return file

    def close(self, file: AnonymousFile) -> None:
        self.anonymous.remove(file)
        file.release()

    async def serve_open(self, size: int) -> AnonymousFile:
        """Take an OPEN and answer it; returns its anonymous file."""
        message = await self.take(Open)
        file = self.open(message.object_id)
        await self.write(b"copen %d,%d" % (message.msg_id, size))
        return file

    # ---- the netfs ---------------------------------------------------------------------------

    def acquiring(self, cookie: bytes = COOKIE, volume: bytes = VOLUME) -> asyncio.Task[Cookie]:
        return self.start(self.fscache.acquire(volume, cookie, Advice.WANT_CACHE_SIZE))

    async def acquire(self, size: int, cookie: bytes = COOKIE) -> tuple[Cookie, AnonymousFile]:
        """A cookie in use, whose OPEN was answered with `size` bytes."""
        asking = self.acquiring(cookie)
        file = await self.serve_open(size)
        return await soon(asking), file

    def reading(self, cookie: Cookie, offset: int, length: int) -> asyncio.Task[bytes]:
        return self.start(self.read_bytes(cookie, offset, length))

    async def read_bytes(self, cookie: Cookie, offset: int, length: int) -> bytes:
        """What a netfs does: have the range made present, then read it."""
        await self.fscache.make_present(cookie, offset, length)
        assert cookie.present(offset, length)
        data = bytearray(length)
        assert cookie.file.read([memoryview(data)], offset) == length
        return bytes(data)

    async def give_back(self, cookie: Cookie) -> None:
        """Relinquish a cookie whose CLOSE the daemon reads, and whose fds it closes."""
        leaving = self.start(self.fscache.relinquish(cookie))
        close = await self.take(Close)
        for file in [f for f in self.anonymous if f.object_id == close.object_id]:
            self.close(file)
        await soon(leaving)
