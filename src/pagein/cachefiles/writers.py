"""The threads that write to the files of a cache.

Not a `ThreadPoolExecutor`: its idle threads wait for one queue, and each job wakes two of them, of
which one finds nothing and has kept the other waiting meanwhile. Here each thread has a lock of its
own to sleep on, and who slept last is woken first: with one write at a time it is always the same.
They are daemon threads: a disk that hangs must not keep the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class _Sleeper:
    """A thread that waits for a job."""

    __slots__ = ("awake", "job")

    def __init__(self) -> None:
        self.job: Callable[[], None] | None = None
        self.awake = threading.Lock()
        self.awake.acquire()


class Writers(Executor):
    """At most `most` threads, each started when all others are at work."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._lock = threading.Lock()
        self._jobs: deque[Callable[[], None]] = deque()
        self._idle: list[_Sleeper] = []
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have `fn` called in a thread. Raises RuntimeError after `shutdown`."""
        future: Future[T] = Future()
        job = partial(_run, future, partial(fn, *args, **kwargs))
        with self._lock:
            if self._closed:
                raise RuntimeError("the cache directory was given back")
            if self._idle:
                sleeper = self._idle.pop()
                sleeper.job = job
                sleeper.awake.release()
                return future
            self._jobs.append(job)
            more = self._count < self._most
            self._count += more
        if more:
            threading.Thread(target=self._work, name="pagein-write", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No further jobs: what was submitted is done. Never waits for it."""
        with self._lock:
            self._closed = True
            for sleeper in self._idle:
                sleeper.awake.release()
            self._idle.clear()

    def _work(self) -> None:
        me = _Sleeper()
        while (job := self._next(me)) is not None:
            job()
            del job  # it holds a buffer

    def _next(self, me: _Sleeper) -> Callable[[], None] | None:
        with self._lock:
            if self._jobs:
                return self._jobs.popleft()
            if self._closed:
                return None
            me.job = None
            self._idle.append(me)
        me.awake.acquire()
        return me.job


def _run(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as problem:
        future.set_exception(problem)
    else:
        future.set_result(result)


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
