"""The threads that write to the files of a cache.

Not a `ThreadPoolExecutor`: its idle threads wait for one queue, and each job wakes two of them, of
which one finds nothing and has kept the other waiting meanwhile. Here each thread has a lock of its
own to sleep on, and who slept last is woken first: with one write at a time it is always the same.
They are daemon threads: a disk that hangs must not keep the process.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Job:
    call: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class _Sleeper:
    """A thread that waits for a job."""

    __slots__ = ("awake", "job")

    def __init__(self) -> None:
        self.job: _Job | None = None
        self.awake = threading.Lock()
        self.awake.acquire()


class Writers:
    """At most `most` threads, each started when all others are at work."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._lock = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._idle: list[_Sleeper] = []
        self._closed = False

    def start(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """What `call` will have returned in a thread. Raises ENOBUFS after `close`."""
        loop = asyncio.get_running_loop()
        job = _Job(call, loop, loop.create_future())
        with self._lock:
            if self._closed:
                raise OSError(errno.ENOBUFS, "the cache directory was given back")
            if self._idle:
                sleeper = self._idle.pop()
                sleeper.job = job
                sleeper.awake.release()
                return job.future
            self._jobs.append(job)
            more = self._count < self._most
            self._count += more
        if more:
            threading.Thread(target=self._work, name="pagein-write", daemon=True).start()
        return job.future

    def close(self) -> None:
        """No further jobs: what was started is done. Does not wait for it."""
        with self._lock:
            self._closed = True
            for sleeper in self._idle:
                sleeper.awake.release()
            self._idle.clear()

    def _work(self) -> None:
        me = _Sleeper()
        while (job := self._next(me)) is not None:
            _run(job)
            del job  # it holds a buffer

    def _next(self, me: _Sleeper) -> _Job | None:
        with self._lock:
            if self._jobs:
                return self._jobs.popleft()
            if self._closed:
                return None
            me.job = None
            self._idle.append(me)
        me.awake.acquire()
        return me.job


def _run(job: _Job) -> None:
    result, problem = None, None
    try:
        result = job.call()
    except BaseException as failure:
        problem = failure
    with suppress(RuntimeError):  # the loop is gone, and with it everybody who could ask
        job.loop.call_soon_threadsafe(_settle, job.future, result, problem)


def _settle(future: asyncio.Future[Any], result: object, problem: BaseException | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(result)
    else:
        future.set_exception(problem)


async def to_its_end(writing: asyncio.Future[T]) -> T:
    """Await a thread's work; who is cancelled meanwhile still waits until it has returned.

    It goes on reading its caller's memory, and has its slot in the table: neither may be used for
    something else before.
    """
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        while not writing.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([writing])
        if not writing.cancelled():
            writing.exception()  # nobody is left whom it concerns
        raise
