"""The answering side of a control socket, on an event loop: see `control`."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pagein.control import Answer, message_of

log = logging.getLogger("pagein.control")

Handler = Callable[[dict[str, Any]], Awaitable[Answer]]
MAX_LINE = 1 << 20
"""Bytes of a question."""


class ControlServer:
    """Answers on a listening Unix socket until closed. The socket is the caller's."""

    def __init__(self, sock: socket.socket, handlers: Mapping[str, Handler]) -> None:
        self._sock = sock
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many are connected. A command holds its connection for as long as it runs."""
        return len(self._tasks)

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
