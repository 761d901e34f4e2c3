"""An event loop on a clock that one holds: nothing happens until it is told to.

It has no files and no threads: what is given to an executor runs as a step of its own. So the same
steps happen in the same order every time, a timeout of a minute costs nothing, and a run can stop
between any two steps.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

T = TypeVar("T")
_MANY_TIMERS = 512


class Stuck(RuntimeError):
    """A call waits for something that nobody is about to do."""


class _Handle:
    """What asyncio.Handle is to the loops of asyncio; `when` is None of what runs at once."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_when")

    def __init__(
        self,
        when: float | None,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._context = context if context is not None else contextvars.copy_context()
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self._when or 0.0

    def run(self) -> None:
        self._context.run(self._callback, *self._args)


class SteppedLoop(asyncio.BaseEventLoop):
    """The loop. `step`, `run_until_idle`, `advance` and `complete` are what makes it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        """The clock, in seconds."""
        self.steps = 0
        """How many callbacks have run."""
        self._queue: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._timer_count = 0

    # ---- what asyncio asks of a loop ---------------------------------------------------------

    def time(self) -> float:
        return self.now

    def call_soon(  # type: ignore[override]  # a handle of our own, with all that one needs
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = _Handle(None, callback, args, context)
        self._queue.append(handle)
        return cast(asyncio.Handle, handle)

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there are no threads

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = _Handle(when, callback, args, context)
        if len(self._timers) > _MANY_TIMERS and self._timer_count % _MANY_TIMERS == 0:
            self._timers = [timer for timer in self._timers if not timer[2].cancelled()]
            heapq.heapify(self._timers)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return cast(asyncio.TimerHandle, handle)

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            if future.done():
                return
            try:
                result = func(*args)
            except BaseException as problem:
                future.set_exception(problem)
            else:
                future.set_result(result)

        self.call_soon(work)
        return future

    def run_forever(self) -> None:
        raise Stuck("a stepped loop does not run by itself: step(), advance(), complete()")

    # ---- going on ----------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """Code inside may use asyncio as if it were called by this loop.

        Also inside a task of this loop, which then stands still meanwhile, as in a system call.
        """
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        task = asyncio.current_task(self)
        if task is not None:
            asyncio.tasks._leave_task(self, task)
        try:
            yield
        finally:
            if task is not None:
                asyncio.tasks._enter_task(self, task)
            asyncio._set_running_loop(outer)

    def step(self) -> bool:
        """Run the one callback that is next; False when there is none before the clock moves."""
        with self.running():
            return self._step()

    def _step(self) -> bool:
        while self._queue:
            handle = self._queue.popleft()
            if not handle.cancelled():
                self.steps += 1
                handle.run()
                return True
        return False

    def run_until_idle(self) -> None:
        """Run everything that needs no time."""
        with self.running():
            while self._step():
                pass

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that is due until then, in order."""
        end = self.now + seconds
        self.run_until_idle()
        while self._timers and self._timers[0][0] <= end:
            when, _, handle = heapq.heappop(self._timers)
            if not handle.cancelled():
                self.now = max(self.now, when)
                self._queue.append(handle)
                self.run_until_idle()
        self.now = end

    def complete(self, work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
        """What `work` returns. Raises Stuck when it would have to wait for time or for others."""
        with self.running():
            task = asyncio.ensure_future(work, loop=self)
            while not task.done():
                if not self._step():
                    task.cancel()
                    while self._step():
                        pass
                    raise Stuck(f"{work!r} waits for something that nobody is about to do")
            return task.result()
