"""The control sockets of both halves: one JSON object a line, a question and its answer.

Only the command line talks here, on Unix sockets in the runtime directory (0700); between the
halves there is the device and nothing else. Questions are `{"op": ..., ...}`, answers
`{"ok": true, ...}` or `{"ok": false, "errno": N, "error": "one line"}`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

log = logging.getLogger("pagein.control")

Answer = dict[str, Any]
Handler = Callable[[dict[str, Any]], Awaitable[Answer]]
MAX_LINE = 1 << 20


class ControlError(OSError):
    """A half answered with an error, or did not answer; `strerror` is one line for the user."""


def message_of(problem: BaseException) -> str:
    """What went wrong, in one line, with the file name that an OSError carries."""
    if isinstance(problem, OSError) and problem.strerror:
        name = os.fsdecode(problem.filename) if problem.filename is not None else ""
        return f"{name}: {problem.strerror}" if name else problem.strerror
    return str(problem) or type(problem).__name__


class ControlServer:
    """Answers on a listening Unix socket until closed. The socket is the caller's."""

    def __init__(self, sock: socket.socket, handlers: Mapping[str, Handler]) -> None:
        self._sock = sock
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether anybody is connected."""
        return bool(self._tasks)

    async def start(self) -> None:
        """Begin to answer."""
        self._server = await asyncio.start_unix_server(
            self._serve, sock=self._sock.dup(), limit=MAX_LINE
        )

    async def close(self) -> None:
        """Stop answering; whoever is connected is cut off."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while line := await reader.readline():
                answer = await self._answer(line)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError):
            pass  # gone, talking nonsense, or told to stop
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            question = json.loads(line)
            handler = self._handlers[question["op"]]
        except (ValueError, KeyError, TypeError):
            return {"ok": False, "errno": errno.EINVAL, "error": "unknown request"}
        try:
            return {"ok": True, **await handler(question)}
        except OSError as problem:
            number = problem.errno or errno.EIO
            return {"ok": False, "errno": number, "error": message_of(problem)}
        except Exception as problem:
            log.exception("control request failed")
            return {"ok": False, "errno": errno.EIO, "error": message_of(problem)}


def listen(path: str) -> socket.socket:
    """A listening Unix socket at `path`, in place of what a dead one left there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if os.path.exists(path):
            os.unlink(path)
        sock.bind(path)
        sock.listen(64)
    except BaseException:
        sock.close()
        raise
    return sock


def ask(path: str, question: dict[str, Any], *, timeout: float) -> Answer:
    """Ask one question and return the answer; for programs without a loop.

    Raises ControlError: what the half answered, ETIMEDOUT after `timeout` seconds, ECONNRESET
    when it went away before it answered, ENOENT or ECONNREFUSED when nobody listens.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(path)
            sock.sendall(json.dumps(question).encode() + b"\n")
            with sock.makefile("rb") as stream:
                line = stream.readline()
        except TimeoutError:
            raise ControlError(errno.ETIMEDOUT, f"no answer within {timeout:g} s") from None
        except OSError as problem:
            number = problem.errno or errno.EIO
            raise ControlError(number, problem.strerror or str(problem), path) from None
    if not line:
        raise ControlError(errno.ECONNRESET, "it was restarted before it answered")
    answer: Answer = json.loads(line)
    if not answer.get("ok"):
        raise ControlError(answer.get("errno", errno.EIO), answer.get("error", "failed"))
    return answer
