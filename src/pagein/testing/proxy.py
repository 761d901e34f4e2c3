"""A TCP proxy that is a link: round-trip time, bandwidth, and exact counts of what went through.

    python -m pagein.testing.proxy --listen 0 --to 127.0.0.1:5000 --rtt-ms 20 --mbit 200

What the link is:

* Each direction has the bandwidth to itself, and all connections share it, in the order in which
  their bytes come: a piece of `n` bytes takes n / rate, then half a round trip to arrive.
* A connection costs a round trip before its first byte, as TCP's handshake does: what a client
  sends before that is held back.
* Nothing is lost, and nothing is slow to start: TCP's windows are those of the loopback.

What is counted:

* bytes each way, when they have passed the link; connections; HTTP/1 requests, by their request
  lines.
* requests *in sequence*: a request follows another if it came to the proxy from its client after
  the first byte of the other's answer had gone to its client, on whatever connection. The count is
  the length of the longest such chain: no client with the same dependencies can do with fewer
  round trips. It is an upper bound of the dependencies there are. Requests sent without waiting for
  an answer in between (pipelined) count as answered together.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from pagein.testing.requestlines import RequestLines

_PIECE = 64 << 10
"""Bytes that pass the link at once, at most; at low rates as many as pass in a millisecond."""
_AHEAD = 0.004
"""Seconds that the link may be booked ahead: more than the loop's clock is coarse."""
_STALL = 0.25
"""Seconds of a link that is busy, at most, that are made up for when this process comes late."""
_IN_FLIGHT = 64 << 20
"""Bytes of one connection on their way, at most, when the receiver does not take them."""
_CONNECT = 10.0


@dataclass
class Counters:
    """What has gone through since the last `reset`."""

    bytes_up: int = 0
    """From clients to the server."""
    bytes_down: int = 0
    connections: int = 0
    requests: int = 0
    sequence: int = 0
    """Requests in the longest chain of which each one followed the one before."""
    refused: int = 0
    """Connections that the server did not take, or that broke off."""


class Direction:
    """One direction of the link, which all connections share."""

    def __init__(self) -> None:
        self._free_at = 0.0
        self._turn = asyncio.Lock()  # first come, first served

    async def pass_through(self, length: int, rate: float | None, *, waited: bool) -> float:
        """Wait for the link and pass it; the time at which the last byte leaves it.

        `waited`: these bytes were there before the link was free, so that it is busy without a gap,
        even if this process was not given the processor in time to see it.
        """
        loop = asyncio.get_running_loop()
        if rate is None:
            return loop.time()
        waited |= self._turn.locked()
        async with self._turn:
            wait = self._free_at - _AHEAD - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            begin = loop.time() - (_STALL if waited else 0)
            self._free_at = max(self._free_at, begin) + length / rate
            return self._free_at


@dataclass
class _Exchange:
    """The requests of one connection, with how long the chain is that each one ends."""

    generation: int
    lines: RequestLines = field(default_factory=RequestLines)
    waiting: list[int] = field(default_factory=list)


class LinkProxy:
    """Listens on loopback, and connects each client to `host`:`port` through a link.

    `rtt` in seconds, `rate` in bytes per second or None for unlimited; both may be set while it
    runs. An asynchronous context manager.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        rtt: float = 0.0,
        rate: float | None = None,
        listen: int = 0,
    ) -> None:
        self.rtt = rtt
        self.rate = rate
        self.counters = Counters()
        self._to = (host, port)
        self._listen = listen
        self._up, self._down = Direction(), Direction()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._answered = 0
        """The length of the longest chain that has been answered."""
        self._generation = 0

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def reset(self) -> None:
        """Count from zero. What is on its way counts no more, but for its bytes."""
        self.counters = Counters()
        self._answered = 0
        self._generation += 1

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._listen, limit=4 * _PIECE
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server = None

    # ---- connections -------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server: asyncio.StreamWriter | None = None
        try:
            self.counters.connections += 1
            opened = asyncio.get_running_loop().time()
            async with asyncio.timeout(_CONNECT):
                answers, server = await asyncio.open_connection(*self._to, limit=4 * _PIECE)
            exchange = _Exchange(self._generation)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, server, exchange, opened + self.rtt))
                group.create_task(self._carry_back(answers, writer, exchange))
        except (OSError, TimeoutError, ExceptionGroup):
            self.counters.refused += 1
        except asyncio.CancelledError:
            pass  # told to stop
        finally:
            self._tasks.discard(task)
            for each in (writer, server):
                if each is not None:
                    each.transport.abort()

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        exchange: _Exchange,
        open_at: float,
    ) -> None:
        """From the client to the server; nothing leaves before `open_at`."""
        loop = asyncio.get_running_loop()
        async with _Pipe(writer) as pipe:
            waited = False
            while data := await reader.read(piece := self._piece()):
                self._note_requests(exchange, data)
                if (wait := open_at - loop.time()) > 0:
                    await asyncio.sleep(wait)
                left = await self._up.pass_through(len(data), self.rate, waited=waited)
                waited = len(data) == piece
                self.counters.bytes_up += len(data)
                await pipe.put(left + self.rtt / 2, data)

    async def _carry_back(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: _Exchange
    ) -> None:
        """From the server to the client."""
        async with _Pipe(writer, before=lambda: self._note_answer(exchange)) as pipe:
            waited = False
            while data := await reader.read(piece := self._piece()):
                left = await self._down.pass_through(len(data), self.rate, waited=waited)
                waited = len(data) == piece
                self.counters.bytes_down += len(data)
                await pipe.put(left + self.rtt / 2, data)

    def _piece(self) -> int:
        if self.rate is None:
            return _PIECE
        return max(1460, min(_PIECE, int(self.rate / 1000)))

    # ---- counting ----------------------------------------------------------------------------

    def _note_requests(self, exchange: _Exchange, data: bytes) -> None:
        began = exchange.lines.feed(data)
        if exchange.generation != self._generation:
            exchange.generation, exchange.waiting = self._generation, []
        for _ in range(began):
            self.counters.requests += 1
            length = self._answered + 1
            self.counters.sequence = max(self.counters.sequence, length)
            exchange.waiting.append(length)

    def _note_answer(self, exchange: _Exchange) -> None:
        if exchange.generation == self._generation and exchange.waiting:
            self._answered = max(self._answered, *exchange.waiting)
            exchange.waiting.clear()


class _Pipe:
    """Pieces on their way to one socket, each with the time at which it arrives."""

    def __init__(self, writer: asyncio.StreamWriter, before: Any = None) -> None:
        self._writer = writer
        self._before = before
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._deliver())
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Deliver what is on its way, then the end of the stream; nothing more after a failure."""
        assert self._task is not None
        self._ended = True
        self._news.set()
        if kind is not None:
            self._task.cancel()
        try:
            await self._task
        except asyncio.CancelledError:
            if kind is None:
                self._task.cancel()
                raise

    async def put(self, at: float, data: bytes) -> None:
        """Deliver `data` at the time `at`; waits while too much is on its way."""
        assert self._task is not None
        while self._held > _IN_FLIGHT and not self._task.done():
            self._room.clear()
            await self._room.wait()
        if self._task.done():
            raise ConnectionResetError
        self._pieces.append((at, data))
        self._held += len(data)
        self._news.set()

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                while not self._pieces:
                    if self._ended:
                        self._writer.write_eof()
                        return
                    self._news.clear()
                    await self._news.wait()
                at, data = self._pieces.popleft()
                if (wait := at - loop.time()) > 0:
                    await asyncio.sleep(wait)
                if self._before is not None:
                    self._before()
                self._writer.write(data)
                await self._writer.drain()
                self._held -= len(data)
                self._room.set()
        finally:
            self._room.set()


# ---- the command --------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pagein.testing.proxy")
    parser.add_argument("--listen", type=int, default=0, metavar="PORT", help="0: any")
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument("--mbit", type=float, default=0.0, help="0: unlimited")
    parser.add_argument(
        "--commands",
        action="store_true",
        help='read commands on standard input ("counters", "reset", "link RTT_MS MBIT"), answer'
        " each with the counters as one line of JSON, and end with the input",
    )
    return parser.parse_args()


def _set_link(proxy: LinkProxy, rtt_ms: float, mbit: float) -> None:
    proxy.rtt = rtt_ms / 1000
    proxy.rate = mbit * 125_000 or None


async def _obey(proxy: LinkProxy) -> None:
    """Do what standard input says, to its end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        match line.decode().split():
            case ["reset"]:
                proxy.reset()
            case ["link", rtt_ms, mbit]:
                _set_link(proxy, float(rtt_ms), float(mbit))
            case ["counters"]:
                pass
            case words:
                print(f"unknown command: {words}", file=sys.stderr)
        print(json.dumps(asdict(proxy.counters)), flush=True)


async def _main(options: argparse.Namespace) -> None:
    host, _, port = options.to.rpartition(":")
    async with LinkProxy(host, int(port), listen=options.listen) as proxy:
        _set_link(proxy, options.rtt_ms, options.mbit)
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        print(json.dumps({"port": proxy.port, "pid": os.getpid()}), flush=True)
        waits: list[asyncio.Task[Any]] = [loop.create_task(stopped.wait())]
        if options.commands:
            waits.append(loop.create_task(_obey(proxy)))
        _, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        print(json.dumps(asdict(proxy.counters)), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        asyncio.run(_main(_arguments()))
