"""System calls that may block, away from the event loop, each with a deadline.

Not `run_in_executor`: its threads are joined when the interpreter ends, and one that hangs in a
system call of a file system that stopped answering would keep the process for ever. These are
daemon threads, and what a late call returns to nobody can be given back (`discard`).
"""

from __future__ import annotations

import asyncio
import errno
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Job:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    call: Callable[[], Any]
    discard: Callable[[Any], object] | None


class Workers:
    """At most `count` threads, one more with each of the first calls; for one event loop."""

    def __init__(self, count: int, name: str) -> None:
        self._name = name
        self._most = count
        self._count = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False

    async def run(
        self,
        call: Callable[[], T],
        timeout: float,
        *,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """What `call` returns in a thread, within `timeout` seconds.

        `discard` gets the result if nobody is left to take it: a file descriptor must be closed.

        Raises:
            OSError: ETIMEDOUT at the deadline. The call may still be running then, and so after
                a cancellation: what it uses must stay valid without the caller.
        """
        if self._closed:
            raise OSError(errno.EBADF, f"{self._name}: closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(loop, future, call, discard))
        self._start()
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError as exc:
            if not future.cancelled():
                raise  # the call's own
            raise OSError(errno.ETIMEDOUT, f"{self._name}: no answer in {timeout:g} s") from exc
        except asyncio.CancelledError:
            # Cancelled between the arrival of the result and its use.
            if future.done() and not future.cancelled() and future.exception() is None and discard:
                discard(future.result())
            raise

    def close(self) -> None:
        """Let the threads end after the calls that are waiting; does not wait for them."""
        self._closed = True
        for _ in range(self._count):
            self._jobs.put(None)

    def _start(self) -> None:
        if self._count < self._most:
            self._count += 1
            name = f"{self._name}-{self._count}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            _run(job)
            del job  # it may hold a buffer


def _run(job: _Job) -> None:
    result, error = None, None
    try:
        result = job.call()
    except BaseException as exc:
        error = exc
    try:
        job.loop.call_soon_threadsafe(_settle, job.future, result, error, job.discard)
    except RuntimeError:  # the loop is closed
        if error is None and job.discard is not None:
            job.discard(result)


def _settle(
    future: asyncio.Future[Any],
    result: object,
    error: BaseException | None,
    discard: Callable[[Any], object] | None,
) -> None:
    if not future.done():
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
    elif error is None and discard is not None:
        discard(result)
