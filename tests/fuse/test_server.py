"""`FuseServer` without a kernel: dispatch, errors, interruptions, and its end."""

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from tests.fuse.test_connection import DEADLINE, message, pair, write_body

from pagein.fuse import abi
from pagein.fuse.server import Body, FuseServer, Handler, interruptible

READ, WRITE = abi.Opcode.READ, abi.Opcode.WRITE


def interrupt(unique: int) -> bytes:
    return message(abi.Opcode.INTERRUPT, unique | 1, struct.pack("=Q", unique))


class Kernel:
    """The other end of the connection."""

    def __init__(self, end: socket.socket, server: FuseServer) -> None:
        self.end = end
        end.setblocking(False)
        self.server = server

    async def send(self, *messages: bytes) -> None:
        """Send, and let the server take them all in one go."""
        for each in messages:
            self.end.send(each)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def answer(self) -> tuple[int, int, bytes]:
        """The next reply: unique, errno, body."""
        loop = asyncio.get_running_loop()
        raw = await asyncio.wait_for(loop.sock_recv(self.end, 1 << 17), DEADLINE)
        size, error, unique = struct.unpack_from("=IiQ", raw)
        assert size == len(raw)
        return unique, -error, raw[16:]

    def silent(self) -> bool:
        try:
            self.end.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False


def serve(handler: Handler, test: Callable[[Kernel], Coroutine[Any, Any, None]]) -> None:
    """Run a test against a server that has this handler for READ and WRITE."""

    async def main() -> None:
        ours, kernel = pair()
        with kernel:
            server = FuseServer(ours.detach(), {READ: handler, WRITE: handler})
            try:
                async with asyncio.timeout(DEADLINE):
                    await test(Kernel(kernel, server))
            finally:
                await server.close()

    asyncio.run(main())


def fail(problem: BaseException) -> Handler:
    def handler(_: abi.Request) -> bytes:
        raise problem

    return handler


def fail_later(problem: BaseException) -> Handler:
    async def later() -> bytes:
        raise problem

    return lambda _: later()


def test_a_body_and_buffers() -> None:
    def handler(request: abi.Request) -> Body:
        return b"one" if request.unique == 2 else [b"t", memoryview(b"wo")]

    async def test(kernel: Kernel) -> None:
        await kernel.send(message(READ, 2), message(READ, 4))
        assert [await kernel.answer() for _ in range(2)] == [(2, 0, b"one"), (4, 0, b"two")]
        assert kernel.server.requests == 2

    serve(handler, test)


def test_later() -> None:
    async def later(request: abi.Request) -> Body:
        unique = request.unique
        await asyncio.sleep(0)
        return [b"%d" % unique]

    async def test(kernel: Kernel) -> None:
        await kernel.send(message(READ, 2))
        assert await kernel.answer() == (2, 0, b"2")

    serve(later, test)


@pytest.mark.parametrize("make", [fail, fail_later])
@pytest.mark.parametrize(
    ("problem", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (TimeoutError(), errno.EIO),  # without an errno
        (ValueError("a bug"), errno.EIO),
    ],
)
def test_errors(
    make: Callable[[BaseException], Handler],
    problem: BaseException,
    number: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(kernel: Kernel) -> None:
        await kernel.send(message(READ, 2), message(WRITE, 4, write_body(b"x")))
        answers = [await kernel.answer() for _ in range(2)]
        assert answers == [(2, number, b""), (4, number, b"")]
        assert not kernel.server.connection._lent  # the memory of the WRITE was given back

    with caplog.at_level(logging.CRITICAL if isinstance(problem, OSError) else logging.ERROR):
        serve(make(problem), test)
    assert ("a bug" in caplog.text) == isinstance(problem, ValueError)


def test_what_has_no_handler_and_what_wants_no_answer() -> None:
    async def test(kernel: Kernel) -> None:
        forget = message(abi.Opcode.FORGET, 6, bytes(8))
        await kernel.send(message(abi.Opcode.MKDIR, 2, b"x\0"), forget, interrupt(8))
        assert await kernel.answer() == (2, errno.ENOSYS, b"")
        assert kernel.silent()

    serve(fail(AssertionError()), test)


def test_who_has_answered_already() -> None:
    async def test(kernel: Kernel) -> None:
        def now(request: abi.Request) -> Body:
            kernel.server.connection.reply(request.unique, b"now")
            return kernel.server.ANSWERED

        async def later(unique: int) -> Body:
            await asyncio.sleep(0)
            kernel.server.connection.reply(unique, b"later")
            return kernel.server.ANSWERED

        kernel.server._handlers[READ] = now
        kernel.server._handlers[WRITE] = lambda request: later(request.unique)
        await kernel.send(message(READ, 2), message(WRITE, 4, write_body(b"")))
        answers = [await kernel.answer() for _ in range(2)]
        assert answers == [(2, 0, b"now"), (4, 0, b"later")]
        assert kernel.silent()

    serve(fail(AssertionError()), test)


# ---- interruptions ------------------------------------------------------------------------------


def waiting(before: Callable[[], Awaitable[Any]], after: Callable[[], Awaitable[Any]]) -> Handler:
    """Does something that nobody may cut off, waits for ever, and does something else."""

    async def handle() -> bytes:
        await before()
        await interruptible(asyncio.sleep(1e6))
        await after()
        return b"read"

    return lambda _: handle()


async def nothing() -> None:
    pass


@pytest.mark.parametrize("bit", [0, abi.UNIQUE_RESEND])
def test_a_waiting_caller_may_be_interrupted(bit: int) -> None:
    async def test(kernel: Kernel) -> None:
        await kernel.send(message(READ, 2 | bit))
        assert kernel.silent()
        await kernel.send(interrupt(2))
        assert await kernel.answer() == (2 | bit, errno.EINTR, b"")
        assert not kernel.server._tasks

    serve(waiting(nothing, nothing), test)


def test_interrupted_before_it_waits() -> None:
    # The kernel tells it once; both may be read in one go, before the task has begun.
    async def test(kernel: Kernel) -> None:
        await kernel.send(message(READ, 2), interrupt(2))
        assert await kernel.answer() == (2, errno.EINTR, b"")

    serve(waiting(nothing, nothing), test)


def test_what_has_begun_is_finished() -> None:
    gate = asyncio.Event()

    async def work() -> bytes:
        await gate.wait()
        return b"whole"

    async def test(kernel: Kernel) -> None:
        await kernel.send(message(WRITE, 2, write_body(b"x")))
        await kernel.send(interrupt(2))
        assert kernel.silent()
        gate.set()
        assert await kernel.answer() == (2, 0, b"whole")

    serve(lambda _: work(), test)


def test_not_interruptible_any_more() -> None:
    gate = asyncio.Event()

    async def handle() -> bytes:
        await interruptible(nothing())
        await gate.wait()
        return b"read"

    async def test(kernel: Kernel) -> None:
        await kernel.send(message(READ, 2))
        await kernel.send(interrupt(2))
        gate.set()
        assert await kernel.answer() == (2, 0, b"read")

    serve(lambda _: handle(), test)


def test_close_leaves_no_task_and_no_answer() -> None:
    async def test(kernel: Kernel) -> None:
        await kernel.send(message(READ, 2))
        assert kernel.server._tasks
        await kernel.server.close()
        assert not kernel.server._tasks
        # Another server can answer it: the other end saw no reply, just the end of this one.
        assert kernel.end.recv(1) == b""

    serve(waiting(nothing, nothing), test)
