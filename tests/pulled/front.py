"""A server before a real registry: passes on what is asked of it, and lies where it is told to.

Also what registries have beside them: a token server, and storage behind links that expire. It runs
in threads of this process, so that a test may wait for a command meanwhile.
"""

from __future__ import annotations

import http.client
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

_UPSTREAM = 30.0
"""Seconds that the registry behind has for an answer."""
_HOP_BY_HOP = {"connection", "content-length", "transfer-encoding", "keep-alive"}
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request; names of headers are in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")

    def value(self, name: str) -> str:
        """A value of the query, or ""."""
        return dict(parse_qsl(self.query)).get(name, "")

    @property
    def is_layer(self) -> bool:
        """A GET of part of a blob: only layers are taken so."""
        return "/blobs/" in self.path and "range" in self.headers


@dataclass(slots=True)
class Reply:
    """An answer; `length` is what Content-Length says if that is not true."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None
    stop_after: int | None = None
    """Bytes of the body after which `ending` comes; 0: the head only, -1: not even that."""
    ending: Literal["close", "reset", "hang"] = "close"


Lie = Callable[[Asked, Reply], Reply | None]
"""Changes an honest answer, which may not be sent at all; None is the honest one."""
Route = Callable[[Asked], Reply]


class Front:
    """Listens on loopback, and asks `upstream` (HOST:PORT) whatever is asked of it."""

    def __init__(self, upstream: str = "") -> None:
        self.upstream = upstream
        self.lie: Lie | None = None
        self.asked: list[Asked] = []
        self.routes: dict[str, Route] = {}
        """Paths that are answered here."""
        self.revoked: set[str] = set()
        """Authorization headers that the registry behind does not get to see."""
        self.let_go = threading.Event()
        """Ends what hangs."""
        self._server = _Server(self)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def layers(self) -> list[Asked]:
        """The requests of layers so far."""
        return [each for each in self.asked if each.is_layer]

    def authorizations(self) -> set[str]:
        """The Authorization headers that were sent so far."""
        return {each.authorization for each in self.asked if each.authorization}

    def drop(self) -> None:
        """Break off all connections there are."""
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Serve until the end of the block."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self.let_go.set()
            self.drop()
            thread.join()
            self._server.server_close()

    def keep(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)

    def answer(self, asked: Asked, body: bytes) -> Reply:
        """What is sent for a request."""
        self.asked.append(asked)
        if (route := self.routes.get(asked.path)) is not None:
            return route(asked)
        reply = self._pass_on(asked, body)
        lie = self.lie(asked, reply) if self.lie is not None else None
        return reply if lie is None else lie

    def _pass_on(self, asked: Asked, body: bytes) -> Reply:
        headers = {key: value for key, value in asked.headers.items() if key not in _HOP_BY_HOP}
        if asked.authorization in self.revoked:
            del headers["authorization"]
        connection = http.client.HTTPConnection(self.upstream, timeout=_UPSTREAM)
        target = f"{asked.path}?{asked.query}" if asked.query else asked.path
        try:
            connection.request(asked.method, target, body or None, headers)
            answer = connection.getresponse()
            told = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            length = answer.length if asked.method == "HEAD" else None
            return Reply(answer.status, told, answer.read(), length)
        except OSError:
            return Reply(502)
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, front: Front) -> None:
        self.front = front
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go when they like."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 60.0

    def setup(self) -> None:
        super().setup()
        self.server.front.keep(self.connection)

    def finish(self) -> None:
        self.server.front.forget(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        asked = Asked(self.command, parts.path, parts.query, headers)
        body = self.rfile.read(int(headers.get("content-length", "0")))
        self._send(asked, self.server.front.answer(asked, body))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _handle

    def _send(self, asked: Asked, reply: Reply) -> None:
        if reply.stop_after != -1:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            length = len(reply.body) if reply.length is None else reply.length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if asked.method != "HEAD":
                self.wfile.write(reply.body[: reply.stop_after])
        if reply.stop_after is not None:
            self._end(reply.ending)

    def _end(self, ending: str) -> None:
        self.close_connection = True
        if ending == "hang":
            self._wait_for_the_client()
        elif ending == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self.connection.close()

    def _wait_for_the_client(self) -> None:
        """Until it gives up, or this server ends."""
        give_up = time.monotonic() + 120
        while not self.server.front.let_go.is_set() and time.monotonic() < give_up:
            if select.select([self.connection], [], [], 0.1)[0]:
                return  # it closed; of whoever waits for an answer nothing else comes


# ---- lies ---------------------------------------------------------------------------------------


def of_layers(change: Lie) -> Lie:
    """Tell it of layers only."""

    def lie(asked: Asked, reply: Reply) -> Reply | None:
        return change(asked, reply) if asked.is_layer and reply.status == 206 else None

    return lie


def once(change: Lie) -> Lie:
    """Tell it once."""
    left = threading.Semaphore(1)

    def lie(asked: Asked, reply: Reply) -> Reply | None:
        if (found := change(asked, reply)) is None or not left.acquire(blocking=False):
            return None
        return found

    return lie


def _says(reply: Reply, **headers: str) -> Reply:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(reply.status, {**reply.headers, **told}, _wrong(reply.body))


def _wrong(data: bytes) -> bytes:
    """Other bytes: who believes a lie is caught."""
    return bytes(data[:-1]) + bytes([data[-1] ^ 0xFF])


def _range_of(reply: Reply) -> tuple[int, int, int]:
    """First and last byte, and total, as an honest Content-Range has it."""
    span, _, total = reply.headers["Content-Range"].removeprefix("bytes ").partition("/")
    first, _, last = span.partition("-")
    return int(first), int(last), int(total)


def _wrong_range(asked: Asked, reply: Reply) -> Reply:
    first, last, total = _range_of(reply)
    return _says(reply, Content_Range=f"bytes {first + 1}-{last + 1}/{total}")


def _wrong_total(asked: Asked, reply: Reply) -> Reply:
    first, last, total = _range_of(reply)
    return _says(reply, Content_Range=f"bytes {first}-{last}/{total + 1}")


def _all_of_it(asked: Asked, reply: Reply) -> Reply:
    headers = {name: value for name, value in reply.headers.items() if name != "Content-Range"}
    return Reply(200, headers, _wrong(reply.body))


def _says_more(asked: Asked, reply: Reply) -> Reply:
    """More is announced than there is, and the connection ends with what there is."""
    return Reply(
        reply.status, reply.headers, reply.body, len(reply.body) + 4096, stop_after=len(reply.body)
    )


def _says_less(asked: Asked, reply: Reply) -> Reply:
    """Less is announced than is sent."""
    return Reply(
        reply.status, reply.headers, reply.body, len(reply.body) // 2, stop_after=len(reply.body)
    )


def _breaks_off(asked: Asked, reply: Reply) -> Reply:
    """Before there is enough for a chunk that could be verified."""
    return Reply(reply.status, reply.headers, reply.body, stop_after=1000, ending="reset")


def _other_bytes(asked: Asked, reply: Reply) -> Reply:
    return Reply(reply.status, reply.headers, bytes(255 - byte for byte in reply.body))


def _page_for_people(asked: Asked, reply: Reply) -> Reply:
    return Reply(206, {"Content-Type": "text/html"}, b"<html>log in first</html>")


def status(number: int, **headers: str) -> Lie:
    """Another status, without a body."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda asked, reply: Reply(number, told)


LIES: dict[str, Lie] = {
    "length too large": _says_more,
    "length too small": _says_less,
    "another range": _wrong_range,
    "another total": _wrong_total,
    "200 for a range": _all_of_it,
    "no range": _page_for_people,
    "breaks off": _breaks_off,
    "other bytes": _other_bytes,
    "404": status(404),
    "500": status(500),
}
"""What a registry may say of part of a layer."""


# ---- a token server, and storage ----------------------------------------------------------------


@dataclass
class TokenRoute:
    """Gives tokens to who sends `authorization`; `make` makes one for a scope."""

    authorization: str
    make: Callable[[str], str]
    asked: list[str] = field(default_factory=list)
    """The scopes, one a token."""
    status: int = 200

    def __call__(self, asked: Asked) -> Reply:
        self.asked.append(asked.value("scope"))
        if self.status != 200:
            return Reply(self.status)
        if asked.authorization != self.authorization:
            return Reply(401)
        token = self.make(asked.value("scope"))
        return Reply(200, {"Content-Type": "application/json"}, b'{"token":"%s"}' % token.encode())


class Storage(Front):
    """Where blobs are: signed links lead here, which are refused when they have expired."""

    def __init__(self, upstream: str, authorization: str) -> None:
        super().__init__(upstream)
        self.signed: set[str] = set()
        self.links = 0
        self._authorization = authorization

    def link(self, asked: Asked) -> str:
        """A new link for a blob."""
        self.links += 1
        signature = f"s{self.links}"
        self.signed.add(signature)
        return f"http://{self.host}{asked.path}?X-Signature={signature}"

    def expire(self) -> None:
        """No link that was given so far holds any more."""
        self.signed.clear()

    def answer(self, asked: Asked, body: bytes) -> Reply:
        self.asked.append(asked)
        if asked.value("X-Signature") not in self.signed:
            return Reply(403, {"Content-Type": "application/xml"}, b"<Error>expired</Error>")
        assert not asked.authorization, "a link carries its own"
        headers = {**asked.headers, "authorization": self._authorization}
        reply = self._pass_on(Asked(asked.method, asked.path, "", headers), body)
        lie = self.lie(asked, reply) if self.lie is not None else None
        return reply if lie is None else lie


def redirect_layers(storage: Storage) -> Lie:
    """Send whoever asks for a layer, and may have it, to the storage."""

    def lie(asked: Asked, reply: Reply) -> Reply | None:
        if not asked.is_layer or reply.status != 206:
            return None
        return Reply(307, {"Location": storage.link(asked)})

    return lie
