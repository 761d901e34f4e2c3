"""An http origin: right bytes from honest servers, one clear line where there are none."""

import asyncio
import errno
import logging
import os
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pagein.origins import Identity, OriginError, open_origin, resolve
from pagein.origins.http import HttpOrigin
from pagein.origins.session import Session
from pagein.testing.webserver import Fault, WebServer

DATA = os.urandom(3_000_000)
PATIENT = 60.0
HASTY = 0.1  # only where the server hangs, so that nothing depends on how fast this machine is


@asynccontextmanager
async def opened(
    server: WebServer, path: str = "/x", timeout: float = PATIENT
) -> AsyncIterator[HttpOrigin]:
    async with server, Session() as session:
        identity = await resolve(server.url(path), timeout=PATIENT, session=session)
        server.requests.clear()
        origin = open_origin(identity, timeout=timeout, session=session)
        assert isinstance(origin, HttpOrigin)
        yield origin


async def failure(call: Coroutine[Any, Any, object]) -> OriginError:
    with pytest.raises(OriginError) as caught:
        await call
    text = str(caught.value)
    assert "\n" not in text
    assert ": " in text
    return caught.value


# ---- honest servers -----------------------------------------------------------------------------


@pytest.mark.parametrize("from_disk", [False, True])
def test_ranges_and_streams_give_the_bytes(tmp_path: Path, from_disk: bool) -> None:
    path = tmp_path / "x"
    path.write_bytes(DATA)

    async def main() -> None:
        server = WebServer({"/x": path if from_disk else DATA})
        async with opened(server) as origin:
            assert await origin.size() == len(DATA)
            for offset, length in [(0, 1), (0, len(DATA)), (len(DATA), 0), (4095, 8193)]:
                assert await origin.read(offset, length) == DATA[offset : offset + length]
                pieces = [piece async for piece in origin.stream(offset, length)]
                assert b"".join(pieces) == DATA[offset : offset + length]
            asked = [(0, 1), (0, len(DATA)), (4095, 4095 + 8193)]  # and nothing for nothing
            assert server.requests == [("/x", *span) for span in asked for _ in "rs"]

    asyncio.run(main())


def test_identity_of_a_url() -> None:
    async def main() -> None:
        server = WebServer({"/x": DATA})
        async with server:
            size, sent = server.describe("/x", DATA)
            for validators in [("ETag", "Last-Modified"), ("ETag",), ()]:
                server.validators = validators
                assert await resolve(server.url("/x"), timeout=PATIENT) == Identity(
                    source=server.url("/x"),
                    size=size,
                    etag=sent["ETag"] if "ETag" in validators else None,
                    last_modified=sent["Last-Modified"] if len(validators) == 2 else None,
                )
        assert server.bytes_sent == 3

    asyncio.run(main())


def test_no_validators_leaves_the_size() -> None:
    async def main() -> None:
        files: dict[str, bytes | Path] = {"/x": DATA}
        async with opened(WebServer(files, validators=())) as origin:
            assert await origin.read(7, 7) == DATA[7:14]
            files["/x"] = DATA + b"more"
            assert "content changed" in str(await failure(origin.read(7, 7)))

    asyncio.run(main())


def test_ranges_outside_are_refused_here() -> None:
    async def main() -> None:
        server = WebServer({"/x": DATA})
        async with opened(server) as origin:
            for offset, length in [(-1, 1), (0, -1), (len(DATA), 1), (0, len(DATA) + 1)]:
                assert (await failure(origin.read(offset, length))).errno == errno.EINVAL
            assert server.requests == []

    asyncio.run(main())


def test_a_stream_that_is_left_early_disturbs_nothing() -> None:
    async def main() -> None:
        async with opened(WebServer({"/x": DATA})) as origin:
            for _ in range(3):
                async with aclosing(origin.stream(0, len(DATA))) as pieces:
                    assert DATA.startswith(await anext(pieces))
                assert await origin.read(100, 100) == DATA[100:200]

    asyncio.run(main())


def test_an_origin_without_a_session_makes_and_closes_its_own() -> None:
    async def main() -> None:
        async with WebServer({"/x": DATA}) as server:
            origin = open_origin(await resolve(server.url("/x"), timeout=PATIENT), timeout=PATIENT)
            assert await origin.read(1, 2) == DATA[1:3]
            await origin.close()
            await origin.close()
            assert "closed" in str(await failure(origin.read(1, 2)))

    asyncio.run(main())  # a session left open is a ResourceWarning, which is an error


def test_a_given_session_stays_open() -> None:
    async def main() -> None:
        async with WebServer({"/x": DATA}) as server, Session() as session:
            identity = await resolve(server.url("/x"), timeout=PATIENT, session=session)
            first = open_origin(identity, timeout=PATIENT, session=session)
            second = open_origin(identity, timeout=PATIENT, session=session)
            await first.close()
            assert await second.read(1, 2) == DATA[1:3]

    asyncio.run(main())


# ---- redirects, credentials, proxies ------------------------------------------------------------


class KeptConnections:
    """A server of single bytes that keeps its connections, but gives some up without a word."""

    def __init__(self) -> None:
        self.connections = self.requests = 0
        self.drop = False  # the connection of the next request that is not its first

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        fresh = True
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                if self.drop and not fresh:
                    break
                fresh = False
                head = "206 Partial Content\r\nContent-Range: bytes 0-0/9\r\nContent-Length: 1"
                writer.write(f"HTTP/1.1 {head}\r\n\r\nx".encode())
        writer.close()


def with_kept_connections(
    use: Callable[[KeptConnections, HttpOrigin], Coroutine[Any, Any, None]],
) -> None:
    async def main() -> None:
        kept = KeptConnections()
        async with await asyncio.start_server(
            kept.serve, "127.0.0.1", 0, family=socket.AF_INET
        ) as it:
            url = f"http://127.0.0.1:{it.sockets[0].getsockname()[1]}/x"
            async with Session() as session:
                identity = await resolve(url, timeout=PATIENT, session=session)
                origin = open_origin(identity, timeout=PATIENT, session=session)
                assert isinstance(origin, HttpOrigin)
                await use(kept, origin)

    asyncio.run(main())


def test_a_connection_that_was_idle_for_half_a_minute_is_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def use(kept: KeptConnections, origin: HttpOrigin) -> None:
        for later, connections in [(0.0, 1), (30.0, 1), (30.0 + 90.0, 2)]:
            monkeypatch.setattr(
                aiohttp.connector, "monotonic", lambda later=later: time.monotonic() + later
            )
            assert await origin.read(0, 1) == b"x"
            assert kept.connections == connections

    with_kept_connections(use)


def test_a_kept_connection_that_the_server_gave_up_costs_no_error() -> None:
    async def use(kept: KeptConnections, origin: HttpOrigin) -> None:
        assert await origin.read(0, 1) == b"x"
        kept.drop = True
        asked = kept.requests
        assert await origin.read(0, 1) == b"x"
        assert (kept.requests - asked, kept.connections) == (2, 2)

    with_kept_connections(use)


def test_redirects_are_followed_and_lose_credentials_at_another_server() -> None:
    async def main() -> None:
        async with WebServer({"/blob": DATA}) as store, Session() as session:
            front = WebServer({}, redirects={"/x": store.url("/blob?sig=%2Fa%2B")})
            front.credentials = ("ann", "hush")
            store.credentials = ("ann", "hush")
            async with front:
                source = front.url("/x", userinfo="ann:hush")
                refused = await failure(resolve(source, timeout=PATIENT, session=session))
                assert refused.errno == errno.EACCES  # what store says to an unknown client
                store.credentials = None
                identity = await resolve(source, timeout=PATIENT, session=session)
                assert identity.source == source
                origin = open_origin(identity, timeout=PATIENT, session=session)
                assert await origin.read(9, 9) == DATA[9:18]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("target", "number"),
    [("/x", errno.ELOOP), ("file:///etc/passwd", errno.EINVAL), ("http://[", errno.EINVAL)],
)
def test_bad_redirects(target: str, number: int) -> None:
    async def main() -> None:
        async with WebServer({}, redirects={"/x": target}) as server:
            error = await failure(resolve(server.url("/x"), timeout=PATIENT))
            assert (error.errno, error.retry) == (number, False)

    asyncio.run(main())


def test_credentials_are_used_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[OriginError] = []

    async def main() -> None:
        faults: dict[int, Fault] = {2: Fault("reset"), 3: Fault("reset"), 4: Fault("status", 500)}
        server = WebServer({"/x": DATA}, credentials=("a-b", "hu/s@h:"))
        server.faults = lambda number, *_: faults.get(number)
        async with server, Session() as session:
            source = server.url("/x", userinfo="a-b:hu%2Fs%40h%3A")
            identity = await resolve(source, timeout=PATIENT, session=session)
            origin = open_origin(identity, timeout=PATIENT, session=session)
            assert await origin.read(3, 3) == DATA[3:6]
            errors.append(await failure(origin.read(3, 3)))
            errors.append(await failure(origin.read(3, 3)))
            server.credentials = ("other", "one")
            errors.append(await failure(origin.read(3, 3)))
            server.redirects = {"/x": "http://a-b:hu%2Fs%40h%3A@["}
            server.credentials = None
            errors.append(await failure(origin.read(3, 3)))
        errors.append(await failure(resolve(source, timeout=PATIENT)))
        errors.append(await failure(resolve("http://a-b:hu%2Fs@[/", timeout=PATIENT)))

    asyncio.run(main())
    assert len(errors) == 6
    shown = caplog.text + repr(errors) + "".join(map(str, errors))
    for error in errors:
        shown += "".join(traceback.format_exception(error))
    # Lines of source code in the tracebacks are this test's own.
    shown = "\n".join(line for line in shown.splitlines() if "userinfo" not in line)
    assert "hu%2Fs%40" not in shown
    assert "hu/s@" not in shown


def test_a_proxy_is_used_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with WebServer({"/x": DATA}) as proxy, WebServer({"/x": DATA}) as server:
            monkeypatch.setenv("http_proxy", proxy.url("/"))
            monkeypatch.setenv("no_proxy", "direct.invalid")
            identity = await resolve("http://far.invalid/x", timeout=PATIENT)
            assert identity.size == len(DATA)
            assert len(proxy.requests) == 1
            await resolve(server.url("/x"), timeout=PATIENT)
            assert len(proxy.requests) == 1
            assert len(server.requests) == 1

    asyncio.run(main())


# ---- what cannot be resolved --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "number", "retry", "text"),
    [
        (Fault("status", 401), errno.EACCES, False, "user:password"),
        (Fault("status", 403), errno.EACCES, False, "403 forbidden"),
        (Fault("status", 404), errno.ENOENT, False, "404 not found"),
        (Fault("status", 410), errno.ENOENT, False, "410 gone"),
        (Fault("status", 503), errno.EIO, True, "503"),
        (Fault("ignore_range"), errno.EOPNOTSUPP, False, "does not answer ranged requests"),
        (Fault("short_body"), errno.EIO, True, "lost before the end"),
        (Fault("wrong_content_range"), errno.EIO, False, "not 0-0"),
        (Fault("extra_encoding"), errno.EIO, False, "gzip"),
        (Fault("reset"), errno.ECONNRESET, True, "connection was lost"),
    ],
)
def test_resolve_says_what_is_wrong(fault: Fault, number: int, retry: bool, text: str) -> None:
    async def main() -> None:
        async with WebServer({"/x": DATA}, faults=lambda *_: fault) as server:
            error = await failure(resolve(server.url("/x"), timeout=PATIENT))
            assert str(error).startswith(server.url("/x") + ": ")
            assert text in str(error)
            assert (error.errno, error.retry) == (number, retry)

    asyncio.run(main())


def test_resolve_ends_at_its_deadline() -> None:
    async def main() -> None:
        async with WebServer({"/x": DATA}, faults=lambda *_: Fault("hang")) as server:
            error = await failure(resolve(server.url("/x"), timeout=HASTY))
            assert (error.errno, error.retry) == (errno.ETIMEDOUT, True)
            assert "no answer within 0.1 s" in str(error)

    asyncio.run(main())


def test_resolve_of_nothing() -> None:
    async def main() -> None:
        async with WebServer({"/0": b""}) as server:
            assert (await failure(resolve(server.url("/none"), timeout=PATIENT))).errno == 2
            assert "is empty" in str(await failure(resolve(server.url("/0"), timeout=PATIENT)))
        error = await failure(resolve("http://127.0.0.1:1/x", timeout=PATIENT))
        assert (error.errno, error.retry) == (errno.ECONNREFUSED, True)
        assert "connection refused: is the server running?" in str(error)

    asyncio.run(main())


@pytest.mark.parametrize(
    "source", ["http://", "http:///x", "http://[x/", "http://h:x/", "http://h:99999/"]
)
def test_resolve_of_what_is_no_url(source: str) -> None:
    error = asyncio.run(failure(resolve(source, timeout=PATIENT)))
    assert (error.errno, error.retry) == (errno.EINVAL, False)
    assert "not a valid URL" in str(error)


async def resolved(source: str) -> object:
    return await resolve(source, timeout=PATIENT)


def answer_with(
    raw: bytes,
    ask: Callable[[str], Coroutine[Any, Any, object]] = resolved,
    wait_for: bytes = b"\r\n\r\n",
) -> Callable[[], Coroutine[Any, Any, OriginError]]:
    """What `ask` says to a server that answers exactly `raw`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (reader.readuntil(wait_for) if wait_for else reader.read(1024))
        writer.write(raw)
        writer.close()

    async def main() -> OriginError:
        async with await asyncio.start_server(serve, "127.0.0.1", 0, family=socket.AF_INET) as it:
            port = it.sockets[0].getsockname()[1]
            return await failure(ask(f"http://127.0.0.1:{port}/x"))

    return main


@pytest.mark.parametrize(
    ("raw", "retry", "text"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", True, "not proper HTTP"),
        (b"HTTP/1.1 206 OK\r\nContent-Length: 1\r\n\r\nx", False, "Content-Range ''"),
        (
            b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-0/*\r\nContent-Length: 1\r\n\r\nx",
            False,
            "does not tell the size",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", False, "is empty"),
        (
            b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-0/9\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\n",
            True,
            "before the end",
        ),
        (b"", True, "lost"),
    ],
)
def test_resolve_of_odd_answers(raw: bytes, retry: bool, text: str) -> None:
    error = asyncio.run(answer_with(raw)())
    assert text in str(error)
    assert error.retry is retry


def test_a_name_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    error = asyncio.run(failure(resolve("http://name.invalid/x", timeout=PATIENT)))
    assert (error.errno, error.retry) == (errno.EHOSTUNREACH, True)
    assert "host name is not known" in str(error)


@pytest.mark.parametrize(
    ("answer", "text"),
    [(b"HTTP/1.1 400 no\r\n\r\n", "TLS could not be set up"), (b"", "connection reset by peer")],
)
def test_https_to_a_server_without_tls(answer: bytes, text: str) -> None:
    main = answer_with(answer, lambda url: resolved(url.replace("http:", "https:")), wait_for=b"")
    error = asyncio.run(main())
    assert text in str(error)
    assert error.retry


@pytest.mark.parametrize(
    ("body", "retry", "text"),
    [
        (b"3\r\nabc\r\n0\r\n\r\n", True, "before the end of the body"),
        (b"5\r\nabcde\r\n5\r\nfghij\r\n0\r\n\r\n", False, "sent more than the 5 bytes"),
    ],
)
def test_a_body_without_announced_length_is_counted(body: bytes, retry: bool, text: str) -> None:
    head = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/9\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def read(source: str) -> object:
        origin = open_origin(Identity(source=source, size=9), timeout=PATIENT)
        try:
            return await origin.read(0, 5)
        finally:
            await origin.close()

    error = asyncio.run(answer_with(head + body, read)())
    assert text in str(error)
    assert error.retry is retry
