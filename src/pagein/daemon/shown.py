"""The metrics of this process, for who asked for them: sockets that the keeper listens on."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable, Sequence

from pagein.daemon.tally import Now, Tally
from pagein.protocol.numbers import SIZE, Numbers


class Shown:
    """Serves metrics on `fds`, none of which is usual; made before the privileges go."""

    def __init__(self, fds: Sequence[int] = (), numbers_fd: int = -1) -> None:
        """Take the fds over: listening sockets, and the kernel half's page (-1: there is none).

        Loads what it needs, as later its files may be out of reach. Raises ImportError.
        """
        self._numbers: Numbers | None = None
        self._server = None
        self._socks = [socket.socket(fileno=fd) for fd in fds]
        if self._socks:
            from pagein.daemon.metrics.server import MetricsServer

            self._server = MetricsServer()
        if numbers_fd >= 0:
            page = mmap.mmap(numbers_fd, SIZE, prot=mmap.PROT_READ)  # until the process ends
            os.close(numbers_fd)
            self._numbers = Numbers(memoryview(page))

    @property
    def addresses(self) -> list[str]:
        """Where they are served: `unix`, or ADDRESS:PORT."""
        return [address_of(sock) for sock in self._socks]

    async def start(self, tally: Tally, now: Callable[[], Now]) -> None:
        """Begin to answer."""
        if self._server is not None:
            await self._server.start(self._socks, tally, now, self._numbers)

    async def close(self) -> None:
        """Stop."""
        if self._server is not None:
            await self._server.close()
        for sock in self._socks:
            sock.close()


def address_of(sock: socket.socket) -> str:
    """Of a listening socket."""
    if sock.family == socket.AF_UNIX:
        return "unix"
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"
