"""Our kernel half, and a netfs over it: `python -m tests.scenarios.netfs_ours FUSE-FD`.

Serves the device on a FUSE connection. The netfs models what EROFS asks of fscache, and no more:
which cookies, which ranges, and what it makes of errors (facts cachefiles-kernel 9 and 13).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from tests.scenarios import image
from tests.scenarios.files import DEADLINE, QUIET
from tests.scenarios.image import PAGE
from tests.scenarios.ninep import content
from tests.scenarios.reading import summary
from tests.scenarios.transcript import errno_name

from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.devfs import DeviceFs
from pagein.cachefiles.device import CachefilesDevice
from pagein.fscache import Advice, Cookie, FsCache, Known
from pagein.netfs import NetfsFile

P = ParamSpec("P")
T = TypeVar("T")


def error(number: int) -> OSError:
    """The OSError of an errno."""
    return OSError(number, os.strerror(number))


_EXISTS = Cache.exists


_WRITE_ALL = BackingFile._write_all


def _fail_to_write(*_: object) -> tuple[int, BaseException | None]:
    return 0, error(errno.EIO)


def _fail(*_: object) -> bool:
    raise error(errno.EIO)


@dataclass(eq=False)
class Superblock:
    """One mount."""

    volume: bytes
    fsid: bytes
    cookies: list[Cookie] = field(default_factory=list)
    pages: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """The page cache: (number of the blob, page) -> its bytes."""


class Erofs:
    """What EROFS does in its fscache mode."""

    def __init__(self, fscache: FsCache) -> None:
        self._fscache = fscache
        self._mounts: dict[str, Superblock] = {}
        self._9p: dict[str, NetfsFile] = {}
        self._served: list[str] = []
        self._leaving: set[asyncio.Task[None]] = set()

    async def mount(self, order: dict[str, Any]) -> str:
        """Look the blobs up, read page 0."""
        fsid = order["fsid"].encode()
        volume = b"erofs," + (fsid if order["domain"] is None else order["domain"].encode())
        for other in self._mounts.values():
            if (other.volume, other.fsid) == (volume, fsid):
                raise error(errno.EBUSY if order["domain"] is None else errno.EEXIST)
        if len(volume) > 255:  # no key for fscache
            raise error(errno.ENOMEM)
        made = Superblock(volume, fsid)
        try:
            await self._acquire(made, fsid)
            await self._fill(made, [device.encode() for device in order["devices"]])
        except BaseException:
            self._leave(made)
            raise
        self._mounts[order["name"]] = made
        return "ok"

    async def _acquire(self, made: Superblock, key: bytes) -> None:
        # A mount that is killed goes on to the end of its lookup (facts 7.2).
        work = asyncio.ensure_future(
            self._fscache.acquire(made.volume, key, Advice.WANT_CACHE_SIZE)
        )
        try:
            made.cookies.append(await asyncio.shield(work))
        except asyncio.CancelledError as killed:
            with contextlib.suppress(OSError):
                made.cookies.append(await work)
            raise killed from None

    async def _fill(self, made: Superblock, devices: list[bytes]) -> None:
        await self._read_pages(made, 0, 0, 1)
        try:
            wanted = image.devices_of(made.pages[0, 0])
        except ValueError:
            raise error(errno.EINVAL) from None
        if devices and len(devices) != wanted:
            raise error(errno.EINVAL)
        for key in devices:
            await self._acquire(made, key)

    def _leave(self, made: Superblock) -> None:
        """Give the cookies back; unmounting does not wait for that."""
        for cookie in made.cookies:
            task = asyncio.get_running_loop().create_task(self._fscache.relinquish(cookie))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        made.cookies = []

    async def mount_9p(self, order: dict[str, Any]) -> str:
        """A file of a netfs that fetches by itself, with the keys that 9p gives it."""
        known = Known(order["size"], aux=struct.pack("<I", order["version"]))

        async def fetch(offset: int, length: int) -> bytes:
            self._served.append(f"{offset}+{length}")
            return content(offset, length, known.size)

        key = (b"9p,server,tag", struct.pack("<Q", 2))
        self._9p[order["name"]] = await NetfsFile.open(self._fscache, *key, known, fetch)
        return "ok"

    async def served(self, _: dict[str, Any]) -> str:
        """What was fetched since the last time."""
        said, self._served = ", ".join(self._served), []
        return said or "nothing"

    async def umount(self, order: dict[str, Any]) -> str:
        """Forget everything."""
        if (file := self._9p.pop(order["name"], None)) is not None:
            await file.close(self._fscache)
            return "ok"
        if order["name"] not in self._mounts:
            raise error(errno.EINVAL)
        self._leave(self._mounts.pop(order["name"]))
        return "ok"

    async def read(self, order: dict[str, Any]) -> str:
        """pread(2): of what is not in the page cache, all at once, then each page alone."""
        if order["name"] in self._9p:
            return summary(await self._9p[order["name"]].read(order["offset"], order["length"]))
        mounted = self._mounts[order["name"]]
        if (0, 0) not in mounted.pages:
            await self._read_pages(mounted, 0, 0, 1)
        blob, first, count = image.FILES[order["file"]]
        end = min(order["offset"] + order["length"], count * PAGE)
        data = bytearray()
        at = order["offset"]
        while at < end:
            number = first + at // PAGE
            try:
                if (blob, number) not in mounted.pages:
                    await self._miss(mounted, blob, number, first + (end + PAGE - 1) // PAGE)
            except OSError:
                if data:
                    break
                raise
            last = min(end, (at // PAGE + 1) * PAGE)
            page = mounted.pages[blob, number]
            data += page[at % PAGE : at % PAGE + last - at]
            at = last
        return summary(data)

    async def _miss(self, mounted: Superblock, blob: int, number: int, end: int) -> None:
        last = number + 1
        while last < end and (blob, last) not in mounted.pages:
            last += 1
        try:
            await self._read_pages(mounted, blob, number, last)
        except OSError:
            await self._read_pages(mounted, blob, number, number + 1)

    async def _read_pages(self, mounted: Superblock, blob: int, first: int, last: int) -> None:
        cookie, length = mounted.cookies[blob], (last - first) * PAGE
        await self._fscache.make_present(cookie, first * PAGE, length)
        data = bytearray(length)
        if cookie.file.read([memoryview(data)], first * PAGE) != length:
            raise error(errno.EIO)
        for number in range(first, last):
            start = (number - first) * PAGE
            mounted.pages[blob, number] = bytes(data[start : start + PAGE])

    async def drop_caches(self, _: dict[str, Any]) -> str:
        """Empty the page cache."""
        for mounted in self._mounts.values():
            mounted.pages.clear()
        return "ok"

    async def inject(self, order: dict[str, Any]) -> str:
        """Have the backing file system fail, or work again, as the cache sees it."""
        setattr(Cache, "exists", _fail if order["errors"] else _EXISTS)  # noqa: B010
        setattr(BackingFile, "_write_all", _fail_to_write if order["errors"] else _WRITE_ALL)  # noqa: B010
        return "ok"

    async def reset(self, _: dict[str, Any]) -> str:
        """Unmount everything, and wait until all is given back."""
        for file in self._9p.values():
            await file.close(self._fscache)
        self._9p.clear()
        for mounted in self._mounts.values():
            self._leave(mounted)
        self._mounts.clear()
        if self._leaving:
            await asyncio.wait(self._leaving)
        return "ok"


class Threads(ThreadPoolExecutor):
    """The threads of a loop, which say whether any of them is at work for it."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = self.begun = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Called on the loop, as what is done there."""
        loop = asyncio.get_running_loop()
        self.busy, self.begun = self.busy + 1, self.begun + 1
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        return future

    def _done(self) -> None:
        self.busy -= 1


class Half:
    """The process: the device, the netfs, the orders."""

    def __init__(self, fuse: int) -> None:
        self._poller = select.poll()
        self._poller.register(fuse, select.POLLIN)
        self.device = CachefilesDevice()
        self.devfs = DeviceFs(fuse, self.device)
        self.erofs = Erofs(FsCache(self.device))
        self._work: dict[int, asyncio.Task[None]] = {}
        self._threads = Threads()
        asyncio.get_running_loop().set_default_executor(self._threads)

    async def run(self) -> None:
        """Take orders until there are no more."""
        orders = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
        )
        while line := await orders.readline():
            await self._settled()
            order = json.loads(line)
            if order["op"] == "signal":
                self._signal(order)
                tell(order["id"], "ok")
            elif order["op"] == "asleep":
                await self._asleep()
                tell(order["id"], "ok")
            else:
                self._start(order)
        transport.close()
        await self.devfs.server.close()

    async def _asleep(self) -> None:
        """Wait until nobody is about anything but waiting, and go on doing so for a while."""
        give_up = time.monotonic() + DEADLINE
        while time.monotonic() < give_up:
            before = self._threads.begun
            await asyncio.sleep(QUIET)
            if not self._threads.busy and self._threads.begun == before:
                return

    async def _settled(self) -> None:
        """Wait until all is served that was asked on the device before an order came.

        Closing a file over FUSE returns before its server knows of it.
        """
        while self._poller.poll(0):  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    def _start(self, order: dict[str, Any]) -> None:
        work = getattr(self.erofs, order["op"].replace("-", "_"))(order)
        self._work[order["id"]] = asyncio.get_running_loop().create_task(
            self._do(order["id"], work)
        )

    async def _do(self, number: int, work: Coroutine[Any, Any, str]) -> None:
        try:
            said = await work
        except asyncio.CancelledError:
            said = "killed"
        except OSError as problem:
            said = errno_name(problem.errno)
        finally:
            del self._work[number]
        tell(number, said)

    def _signal(self, order: dict[str, Any]) -> None:
        # A signal that its process handles does not end a wait (facts 9.5).
        if order["signal"] == signal.SIGKILL and order["to"] in self._work:
            self._work[order["to"]].cancel()


def tell(number: int, said: str) -> None:
    """Answer an order."""
    print(json.dumps({"id": number, "said": said}), flush=True)


async def main() -> None:
    """Serve until there are no more orders."""
    half = Half(int(sys.argv[1]))
    tell(0, "ready")
    await half.run()


if __name__ == "__main__":
    asyncio.run(main())
