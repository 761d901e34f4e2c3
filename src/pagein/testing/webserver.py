"""A small web server for tests and demonstrations: ranges, a shared rate limit, and faults.

It serves what a caching client has to cope with: single ranges (RFC 9110 14), ETag and
Last-Modified, HEAD, redirects, Basic auth, use as a plain proxy. Files go out with sendfile(2).
What it serves may be changed while it runs. A `faults` callable makes it lie, and where a lie
would be noticed only from headers it sends wrong bytes as well: who trusts it gets caught.

    async with WebServer({"/blob": b"..." * 1000}, rate=25_000_000) as server:
        identity = await resolve(server.url("/blob"), timeout=5)

    python -m pagein.testing.webserver DIR [--port N] [--rate BYTES_PER_SECOND]

It is no server for the open network: it does not defend itself.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.client import responses
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import unquote, urlsplit

from pagein.testing.answers import (
    Answer,
    Fault,
    FaultKind,
    authorized,
    narrow,
    parse_range,
    refusal,
    spoil,
    whole,
)

__all__ = ["Fault", "FaultKind", "Faults", "TokenBucket", "WebServer", "serve_in_thread"]

_MAX_HEAD = 65536
_IDLE = 60.0  # seconds a connection may be silent between requests
_STALL = 600.0  # seconds a client may take for one piece of a body
_START = 60.0  # seconds that its thread may take to begin or to end
_FREE_PIECE = 16 << 20  # bytes of one sendfile or send when there is no limit
_PACED_PIECE = 64 << 10  # the same under a limit, or 10 ms of it: half a ms at 1 Gbit/s
_BURST = 0.02  # seconds of rate that a late timer may make up for


Faults = Callable[[int, str, int, int], Fault | None]
"""(number of the request from 0, path, start, end) -> the fault of its answer; end is exclusive."""


class TokenBucket:
    """Paces all senders of a server together; `rate` in bytes per second, None is no limit."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._free_at = 0.0

    async def take(self, count: int) -> None:
        """Wait until `count` bytes may be sent. First come, first served."""
        if self.rate is None:
            return
        now = asyncio.get_running_loop().time()
        start = max(self._free_at, now - _BURST)
        self._free_at = start + count / self.rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


class WebServer:
    """Serves `files` on 127.0.0.1 while it is entered with `async with`.

    `files` maps paths ("/blob") to bytes or to a `Path`, and is looked up at each request; or it
    is the `Path` of a directory. `rate`: bytes per second of body over all connections together.
    `latency`: seconds before each answer. `credentials`: (user, password) that every request must
    bring. `redirects` maps paths to a Location. `validators` tells which of ETag and Last-Modified
    are sent. All of them may be set while it runs.
    """

    def __init__(
        self,
        files: Mapping[str, bytes | Path] | Path,
        *,
        rate: float | None = None,
        latency: float = 0.0,
        faults: Faults | None = None,
        redirects: Mapping[str, str] | None = None,
        credentials: tuple[str, str] | None = None,
        validators: tuple[str, ...] = ("ETag", "Last-Modified"),
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.files = files
        self.latency = latency
        self.faults = faults
        self.redirects = redirects or {}
        self.credentials = credentials
        self.validators = validators
        self.requests: list[tuple[str, int, int]] = []
        """(path, start, end) of every GET of a file that exists; end is exclusive."""
        self.bytes_sent = 0
        """Bytes of bodies handed to the kernel."""
        self._address = (host, port)
        self._bucket = TokenBucket(rate)
        self._started = formatdate(usegmt=True)
        self._etags: dict[str, tuple[bytes, str]] = {}
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    @property
    def rate(self) -> float | None:
        """Bytes per second, or None."""
        return self._bucket.rate

    @rate.setter
    def rate(self, value: float | None) -> None:
        self._bucket.rate = value

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._listener is None:
            raise RuntimeError("the server is not running")
        return int(self._listener.getsockname()[1])

    def url(self, path: str, *, userinfo: str = "") -> str:
        """The URL of `path`, with "user:password" before the host if given."""
        at = f"{userinfo}@" if userinfo else ""
        return f"http://{at}{self._address[0]}:{self.port}{path}"

    async def __aenter__(self) -> Self:
        self._listener = socket.create_server(self._address, backlog=128)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        """Serve who has come; nothing is awaited, or a client would be lost at the end."""
        with suppress(OSError):  # it has gone again
            peer, _ = listener.accept()
            task = asyncio.get_running_loop().create_task(_Connection(self, peer).run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: peer.close())  # also of one that never began

    def find(self, path: str) -> bytes | Path | None:
        """What is served at `path`."""
        if not isinstance(self.files, Path):
            return self.files.get(path)
        root = self.files.resolve()
        found = (root / path.lstrip("/")).resolve()
        return found if found.is_file() and found.is_relative_to(root) else None

    def describe(self, path: str, content: bytes | Path) -> tuple[int, dict[str, str]]:
        """Size and validators of a file."""
        if isinstance(content, Path):
            found = content.stat()
            size, modified = found.st_size, formatdate(found.st_mtime, usegmt=True)
            etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
        else:
            size, modified, etag = len(content), self._started, self._etag(path, content)
        known = {"ETag": etag, "Last-Modified": modified}
        return size, {name: known[name] for name in self.validators}

    def _etag(self, path: str, content: bytes) -> str:
        hashed, etag = self._etags.get(path, (None, ""))
        if hashed is not content:
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            self._etags[path] = (content, etag)
        return etag

    def next_fault(self, path: str, start: int, end: int) -> Fault | None:
        """Record a GET; the fault its answer shall have."""
        number, self._number = self._number, self._number + 1
        self.requests.append((path, start, end))
        return self.faults(number, path, start, end) if self.faults else None

    async def take(self, count: int) -> None:
        """Wait for the right to send `count` bytes, and count them."""
        await self._bucket.take(count)
        self.bytes_sent += count

    @property
    def piece(self) -> int:
        """How many bytes to send at once."""
        rate = self._bucket.rate
        return _FREE_PIECE if rate is None else max(1, min(_PACED_PIECE, int(rate / 100)))


class _Hangup(Exception):
    """This connection is over."""


class _Connection:
    """One client: requests in, answers out, one after the other."""

    def __init__(self, server: WebServer, peer: socket.socket) -> None:
        self._server = server
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._pending = b""

    async def run(self) -> None:
        self._peer.setblocking(False)
        self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._peer, suppress(_Hangup, OSError):
            while True:
                method, target, headers = await self._request()
                if self._server.latency:
                    await asyncio.sleep(self._server.latency)
                await self._send(self._answer(method, target, headers))

    async def _request(self) -> tuple[str, str, dict[str, str]]:
        while b"\r\n\r\n" not in self._pending:
            async with asyncio.timeout(_IDLE):
                data = await self._loop.sock_recv(self._peer, _MAX_HEAD)
            self._pending += data
            # A TLS hello, for one, is no method and would never have an end.
            if not data or not self._pending[:1].isalpha() or len(self._pending) > _MAX_HEAD:
                raise _Hangup
        head, self._pending = self._pending.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3:
            raise _Hangup
        fields = (line.partition(":") for line in lines)
        return words[0], words[1], {name.lower(): value.strip() for name, _, value in fields}

    def _answer(self, method: str, target: str, headers: dict[str, str]) -> Answer:
        server = self._server
        # A proxy gets the whole URL (RFC 9112 3.2.2); its path is all that counts here.
        path = unquote(urlsplit(target).path)
        if server.credentials is not None and not authorized(headers, server.credentials):
            return refusal(401, {"WWW-Authenticate": 'Basic realm="pagein"'})
        if method not in ("GET", "HEAD"):
            return refusal(405, {"Allow": "GET, HEAD"})
        if path in server.redirects:
            return refusal(302, {"Location": server.redirects[path]})
        content = server.find(path)
        if content is None:
            return refusal(404)
        size, validators = server.describe(path, content)
        answer = whole(content, size, validators)
        if method == "HEAD":
            answer.head_only = True
            return answer
        span = parse_range(headers, size, validators)
        if span is not None:
            narrow(answer, *span, size)
        fault = server.next_fault(path, *(span or (0, size)))
        if fault is not None and (answer.end > answer.start or fault.kind == "status"):
            spoil(answer, fault, size)
        return answer

    async def _send(self, answer: Answer) -> None:
        ending = answer.ending
        if ending is not None and answer.stop_after is None:
            await self._end(ending)
        lines = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, '')}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        await self._send_bytes("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if answer.head_only:
            return
        end = answer.end
        if answer.stop_after is not None:
            end = min(end, answer.start + answer.stop_after)
        await self._send_body(answer.content, answer.start, end)
        if ending is not None:
            await self._end(ending)

    async def _end(self, ending: FaultKind) -> None:
        if ending == "hang":
            async with asyncio.timeout(_STALL):
                while await self._loop.sock_recv(self._peer, _MAX_HEAD):
                    pass  # until the client gives up
        if ending == "reset":
            # Lingering for 0 s is RST instead of FIN.
            self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Hangup

    async def _send_body(self, content: bytes | Path, start: int, end: int) -> None:
        if isinstance(content, bytes):
            view = memoryview(content)
            while start < end:
                count = min(self._server.piece, end - start)
                await self._server.take(count)
                await self._send_bytes(view[start : start + count])
                start += count
            return
        with content.open("rb") as file:
            while start < end:
                count = min(self._server.piece, end - start)
                await self._server.take(count)
                await self._send_file(file, start, count)
                start += count

    async def _send_bytes(self, data: bytes | memoryview) -> None:
        async with asyncio.timeout(_STALL):
            await self._loop.sock_sendall(self._peer, data)

    async def _send_file(self, file: BinaryIO, start: int, count: int) -> None:
        async with asyncio.timeout(_STALL):
            sent = await self._loop.sock_sendfile(self._peer, file, start, count)
        if sent != count:  # the file got shorter: the client must not take what follows for it
            raise _Hangup


@contextmanager
def serve_in_thread(server: WebServer) -> Iterator[WebServer]:
    """Run `server` in a thread of its own, for tests that are not asynchronous."""
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        stop = asyncio.Event()
        try:
            async with server:
                ready.set_result((asyncio.get_running_loop(), stop))
                await stop.wait()
        except OSError as exc:
            if ready.done():
                raise
            ready.set_exception(exc)

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="webserver", daemon=True)
    thread.start()
    loop, stop = ready.result(timeout=_START)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=_START)
        if thread.is_alive():
            raise RuntimeError("the web server's thread does not end")


async def _serve(directory: Path, port: int, rate: float | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with WebServer(directory, port=port, rate=rate) as server:
        print(server.url("/"), flush=True)
        await stop.wait()


def main() -> None:
    """Serve a directory until a signal; the URL on standard output says that it is ready."""
    parser = argparse.ArgumentParser(
        prog="python -m pagein.testing.webserver",
        description="Serve a directory on loopback, with ranges and a rate limit.",
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument(
        "--rate", type=float, help="bytes per second, all connections together; default: no limit"
    )
    options = parser.parse_args()
    if not options.directory.is_dir():
        parser.error(f"{options.directory} is not a directory")
    if options.rate is not None and options.rate <= 0:
        parser.error("the rate must be above 0")
    try:
        asyncio.run(_serve(options.directory, options.port, options.rate))
    except OSError as exc:
        parser.error(f"port {options.port}: {exc.strerror}")


if __name__ == "__main__":
    main()
