"""A kernel half to test a daemon against: in this process, without root, on a clock one holds.

    with Kernel(directory) as kernel:
        device = kernel.bind()
        mounting = kernel.mount(b"erofs,image", b"image")     # what a mount of EROFS does
        message = decode(device.read())                       # the daemon's side: an OPEN
        fd = device.open_fd(message.object_id)
        device.write(b"copen %d,%d" % (message.msg_id, size))
        cookie = mounting.result()
        reading = kernel.read(cookie, 0, 4096)                # what a reader's page fault does
        ...

It is the kernel half of pagein itself, with every rule and errno of docs/conformance.md; `faults`
makes its steps and the daemon's go wrong, `recorder` writes down what was said. Nothing goes on
between two calls: a call does what it can without time passing, `advance` lets time pass, and with
`eager=False` one can look between any two steps.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pagein.cachefiles.device import CachefilesDevice, Session
from pagein.cachefiles.requests import describe
from pagein.fscache import Advice, Cookie, FsCache
from pagein.protocol.messages import PAGE_SIZE
from pagein.testing.device import Device
from pagein.testing.faults import Faults, FaultyCache
from pagein.testing.loop import SteppedLoop, Stuck
from pagein.testing.recorder import Recorder, outcome

T = TypeVar("T")


class Waiting(Generic[T]):
    """Something that a netfs asked for, and that the daemon has to answer."""

    def __init__(self, kernel: Kernel, what: str, work: Coroutine[Any, Any, T]) -> None:
        self.what = what
        self._kernel = kernel
        kernel.recorder.say("netfs", what)
        self._task = kernel.start(work)
        self._task.add_done_callback(self._ended)

    @property
    def done(self) -> bool:
        """Whether it has been answered, has failed, or was killed."""
        return self._task.done()

    @property
    def killed(self) -> bool:
        """Whether it ended by `kill`."""
        return self._task.cancelled()

    def result(self) -> T:
        """What came of it. Raises the OSError that it failed with; Stuck when it still waits."""
        if not self.done:
            raise Stuck(f"{self.what} still waits: {self._kernel.pending or 'for nobody'}")
        return self._task.result()

    def kill(self) -> None:
        """Kill who waits. A lookup goes on to its end all the same (facts 7.2)."""
        self._task.cancel()
        self._kernel.settle()

    def _ended(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            came = "killed"
        elif (problem := task.exception()) is not None:
            came = outcome(problem)
        else:
            came = _shown(task.result())
        self._kernel.recorder.say("netfs", f"{self.what} = {came}")


class Kernel:
    """One kernel: its device, its netfs, and the clock of both."""

    def __init__(
        self,
        directory: str | Path,
        *,
        timeout: float = 30.0,
        read_timeout: float = 120.0,
        eager: bool = True,
    ) -> None:
        """`directory` is where `bind` has the cache. The timeouts are those of `FsCache`.

        Without `eager` nothing runs behind a call's back: `step` and `run` do.
        """
        self.directory = Path(directory)
        self.loop = SteppedLoop()
        self.faults = Faults()
        self.recorder = Recorder(self.loop.time)
        with self.loop.running():
            self.cachefiles = CachefilesDevice(
                copen_timeout=timeout, make_cache=partial(FaultyCache, faults=self.faults)
            )
            self.fscache = FsCache(self.cachefiles, timeout=timeout, read_timeout=read_timeout)
        self._eager = eager
        self._tasks: set[asyncio.Task[Any]] = set()
        self._device: Device | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """The end: the device is closed, everything that waits fails, all files are closed."""
        if self._device is not None:
            self._device.close()
        self.loop.run_until_idle()
        for task in list(self._tasks):
            task.cancel()
        self.loop.run_until_idle()
        self.loop.close()

    # ---- the daemon's side -------------------------------------------------------------------

    def open(self) -> Device:
        """Open the device. Raises EBUSY while it or one of its fds is open (facts 1)."""
        with self.loop.running():
            session = self.cachefiles.open()
        self._device = Device(self, session)
        return self._device

    def bind(self) -> Device:
        """Open the device and bind the cache directory in on-demand mode."""
        device = self.open()
        device.write(b"dir " + os.fsencode(self.directory))
        device.write(b"bind ondemand")
        return device

    # ---- the netfs' side ---------------------------------------------------------------------

    def mount(self, volume_key: bytes, cookie_key: bytes) -> Waiting[Cookie]:
        """Look a blob up, as a mount does: an OPEN, unless it is in use already."""
        what = f"mount {_text(volume_key)} {_text(cookie_key)}"
        work = self.fscache.acquire(volume_key, cookie_key, Advice.WANT_CACHE_SIZE)
        return Waiting(self, what, work)

    def umount(self, cookie: Cookie) -> Waiting[None]:
        """Give a blob back: with the last user goes a CLOSE."""
        what = f"umount {_text(cookie.key[0])} {_text(cookie.key[1])}"
        return Waiting(self, what, self.fscache.relinquish(cookie))

    def read(self, cookie: Cookie, offset: int, length: int) -> Waiting[bytes]:
        """Read, as a reader's cache miss does: a READ for each hole, up to the end of the blob."""
        what = f"read {_text(cookie.key[1])} [{offset}, +{length}]"
        return Waiting(self, what, self._read(cookie, offset, length))

    async def _read(self, cookie: Cookie, offset: int, length: int) -> bytes:
        length = max(0, min(length, cookie.length - offset))
        await self.fscache.fetch(cookie, offset, length, os.getpid())
        data = bytearray(length)
        read = self.loop.run_in_executor(None, cookie.file.read, [memoryview(data)], offset)
        return bytes(data[: await read])

    # ---- time --------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return self.loop.now

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine of one's own on the kernel's clock, an asyncio daemon for instance."""
        with self.loop.running():
            task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.settle()
        return task

    def step(self) -> bool:
        """Do one step; False when nothing is left to be done before the clock moves."""
        return self.loop.step()

    def run(self) -> None:
        """Do everything that needs no time."""
        self.loop.run_until_idle()

    def settle(self) -> None:
        """`run`, if the kernel is eager."""
        if self._eager:
            self.loop.run_until_idle()

    def advance(self, seconds: float) -> None:
        """Let time pass: deadlines run out, in their order."""
        self.loop.advance(seconds)

    # ---- what there is -----------------------------------------------------------------------

    @property
    def device(self) -> Device:
        """The device that was opened last. Raises ValueError if none was."""
        if self._device is None:
            raise ValueError("the device was never opened: bind() or open()")
        return self._device

    @property
    def session(self) -> Session | None:
        """The open device, as the kernel half sees it."""
        return self.cachefiles.session

    @property
    def pending(self) -> list[str]:
        """The requests that wait, each in words."""
        session = self.session
        return [describe(request) for request in session.requests.requests] if session else []

    def present(self, cookie: Cookie) -> list[tuple[int, int]]:
        """The byte ranges of a blob that are in the cache, in order."""
        return list(cookie.file.present)


def _shown(result: object) -> str:
    if isinstance(result, Cookie):
        return f"{result.size} bytes"
    if isinstance(result, bytes):
        return f"{len(result)} bytes {_summary(result)}".rstrip()
    return "ok" if result is None else str(result)


def _summary(data: bytes) -> str:
    """The pages of `data`, those of one byte as that byte: 41*4096 42*4096."""
    pages = [data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE)]
    plain = all(page == page[:1] * len(page) for page in pages)
    return " ".join(f"{page[0]:02x}*{len(page)}" for page in pages) if plain else ""


def _text(key: bytes) -> str:
    return key.decode("ascii", errors="backslashreplace")
