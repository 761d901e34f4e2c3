"""The part of a small FUSE file system that is the same for each: dispatch, tasks, errors.

A handler takes a request and returns the reply's body (bytes, or a sequence of buffers), or a
coroutine that will, or the future of work whose end is the reply, sent by whoever does it. OSError
becomes its errno. A waiting READ is cancelled when its caller is
interrupted; nothing else is, because a write that has begun is finished.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

from pagein.fuse import abi
from pagein.fuse.connection import Connection

log = logging.getLogger("pagein.fuse")

Body = bytes | Sequence[abi.Buffer]
Answer = Body | Coroutine[Any, Any, Body] | asyncio.Future[Any]
Handler = Callable[[abi.Request], Answer]


class FuseServer:
    """Serves a connection whose INIT is done, from a table of handlers by opcode."""

    ANSWERED: Final[Body] = ()
    """What a handler, or its coroutine, returns that has replied to its request itself."""

    def __init__(
        self,
        fd: int,
        handlers: dict[abi.Opcode, Handler],
        on_close: Callable[[], None] | None = None,
        *,
        paused: bool = False,
    ) -> None:
        """Take over `fd` (made non-blocking), on the running loop. Unknown opcodes: ENOSYS.

        When `paused`, requests wait in the kernel until `connection.start`.
        """
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[int, Handler] = {int(op): fn for op, fn in handlers.items()}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._works: set[asyncio.Future[Any]] = set()
        self.requests = 0
        """Requests handled so far, for status and tests."""
        self.connection = Connection(
            fd, self._handle, loop=self._loop, on_close=on_close, paused=paused
        )

    async def close(self) -> None:
        """Stop serving; requests without an answer stay with the connection."""
        self.connection.close()
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._works, return_exceptions=True)

    def _handle(self, request: abi.Request) -> None:
        self.requests += 1
        if request.opcode in abi.UNANSWERED:
            if request.opcode == abi.Opcode.INTERRUPT:
                self._interrupt(abi.InterruptIn.parse(request.body).unique)
            return
        handler = self._handlers.get(request.opcode)
        if handler is None:
            self._fail(request, errno.ENOSYS)
            return
        try:
            answer = handler(request)
        except OSError as problem:
            self._fail(request, problem.errno or errno.EIO)
            return
        if isinstance(answer, Coroutine):
            # Requests are read into borrowed memory: a coroutine has taken what it needs of it.
            task = self._loop.create_task(self._finish(request, answer))
            self._tasks[request.unique] = task
            task.add_done_callback(lambda _: self._tasks.pop(request.unique, None))
        elif isinstance(answer, asyncio.Future):
            self._works.add(answer)
            answer.add_done_callback(partial(self._ended, request))
        elif answer is not self.ANSWERED:
            self._reply(request, answer)

    def _ended(self, request: abi.Request, work: asyncio.Future[Any]) -> None:
        self._works.discard(work)
        if work.cancelled():
            self._fail(request, errno.EINTR)
        elif (problem := work.exception()) is None:
            self.connection.release(request)
        else:
            self._fail(request, self._errno_of(problem, request))

    def _errno_of(self, problem: BaseException, request: abi.Request) -> int:
        if isinstance(problem, OSError):
            return problem.errno or errno.EIO
        log.error("FUSE request (opcode %d) failed", request.opcode, exc_info=problem)
        return errno.EIO

    async def _finish(self, request: abi.Request, answer: Coroutine[Any, Any, Body]) -> None:
        try:
            body = await answer
        except asyncio.CancelledError:
            self._fail(request, errno.EINTR)
        except Exception as problem:
            self._fail(request, self._errno_of(problem, request))
        else:
            if body is self.ANSWERED:
                self.connection.release(request)
            else:
                self._reply(request, body)

    def _reply(self, request: abi.Request, body: Body) -> None:
        if isinstance(body, bytes):
            self.connection.reply(request.unique, body)
        else:
            self.connection.reply(request.unique, *body)
        self.connection.release(request)

    def _fail(self, request: abi.Request, number: int) -> None:
        self.connection.error(request.unique, number)
        self.connection.release(request)

    def _interrupt(self, unique: int) -> None:
        task = self._tasks.get(unique) or self._tasks.get(unique | abi.UNIQUE_RESEND)
        if task is None:
            return
        if task.get_name() == INTERRUPTIBLE:
            task.cancel()
        else:
            task.set_name(INTERRUPTED)  # the kernel tells it once: it may begin to wait later


INTERRUPTIBLE = "interruptible"
"""Name that a task of `FuseServer` takes for as long as it may be cancelled."""
INTERRUPTED = "interrupted"
"""Name of one whose caller was interrupted when it was not waiting."""


async def interruptible(waiting: Coroutine[Any, Any, None]) -> None:
    """Await something that a signal to the caller may end, inside a handler's coroutine."""
    task = asyncio.current_task()
    assert task is not None
    before = task.get_name()
    if before == INTERRUPTED:
        waiting.close()
        raise asyncio.CancelledError
    task.set_name(INTERRUPTIBLE)
    try:
        await waiting
    finally:
        task.set_name(before)
