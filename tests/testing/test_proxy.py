"""The link proxy: what arrives is what was sent, and what it counts is exact."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.testing.proxy import LinkProxy
from pagein.testing.requestlines import RequestLines

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
DEADLINE = 100.0


@contextlib.asynccontextmanager
async def link(handler: Handler, **options: float) -> AsyncIterator[LinkProxy]:
    """A proxy in front of a server."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.timeout(DEADLINE), server, LinkProxy("127.0.0.1", port, **options) as proxy:  # type: ignore[arg-type]
        yield proxy


async def connect(proxy: LinkProxy) -> Streams:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def answer_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that answers every request at once."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)


async def get(streams: Streams) -> None:
    reader, writer = streams
    writer.write(GET)
    assert await reader.readexactly(len(ANSWER)) == ANSWER


def close(*streams: Streams) -> None:
    for _, writer in streams:
        writer.close()


# ---- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"rtt": 0.01}, {"rate": 50e6}, {"rtt": 0.02, "rate": 200e6}]
)
def test_both_ways_exactly_what_was_sent(options: dict[str, float]) -> None:
    up, down = os.urandom(3_000_001), os.urandom(2_000_003)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read(-1) == up
        writer.write(down)
        writer.write_eof()
        await writer.drain()

    async def main() -> None:
        async with link(handler, **options) as proxy:
            reader, writer = await connect(proxy)
            writer.write(up)
            writer.write_eof()
            assert await reader.read(-1) == down
            writer.close()
            found = proxy.counters
        assert (found.bytes_up, found.bytes_down) == (len(up), len(down))
        assert (found.connections, found.refused) == (1, 0)

    asyncio.run(main())


def test_many_connections_share_it() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def one(proxy: LinkProxy, data: bytes) -> None:
        reader, writer = await connect(proxy)
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data
        writer.close()

    async def main() -> None:
        sent = [os.urandom(100_000 + n) for n in range(20)]
        async with link(handler, rtt=0.005, rate=100e6) as proxy:
            await asyncio.gather(*(one(proxy, data) for data in sent))
            total = sum(map(len, sent))
            assert (proxy.counters.bytes_up, proxy.counters.bytes_down) == (total, total)
            assert proxy.counters.connections == 20

    asyncio.run(main())


def test_a_server_that_is_not_there() -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE), LinkProxy("127.0.0.1", 1) as proxy:
            reader, writer = await connect(proxy)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read(-1) == b""
            writer.close()
            assert (proxy.counters.connections, proxy.counters.refused) == (1, 1)

    asyncio.run(main())


def test_a_client_that_goes_away() -> None:
    """The server sees it, and the proxy has nothing left of it."""
    seen = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                await asyncio.sleep(0)
        seen.set()

    async def main() -> None:
        async with link(handler, rtt=0.01) as proxy:
            reader, writer = await connect(proxy)
            await reader.readexactly(1000)
            writer.transport.abort()
            await seen.wait()

    asyncio.run(main())


# ---- requests -----------------------------------------------------------------------------------


def test_requests_on_one_connection_follow_each_other() -> None:
    async def main() -> None:
        async with link(answer_each) as proxy:
            streams = await connect(proxy)
            for _ in range(3):
                await get(streams)
            assert (proxy.counters.requests, proxy.counters.sequence) == (3, 3)
            assert proxy.counters.bytes_up == 3 * len(GET)
            assert proxy.counters.bytes_down == 3 * len(ANSWER)
            close(streams)

    asyncio.run(main())


def test_requests_side_by_side_do_not() -> None:
    everybody = asyncio.Barrier(5)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await everybody.wait()
        writer.write(ANSWER)
        await answer_each(reader, writer)

    async def main() -> None:
        async with link(handler, rtt=0.004) as proxy:
            streams = [await connect(proxy) for _ in range(5)]
            await asyncio.gather(*map(get, streams))
            assert (proxy.counters.requests, proxy.counters.sequence) == (5, 1)
            await get(streams[3])
            assert (proxy.counters.requests, proxy.counters.sequence) == (6, 2)
            close(*streams)

    asyncio.run(main())


def test_a_request_after_one_on_another_connection() -> None:
    async def main() -> None:
        async with link(answer_each) as proxy:
            for _ in range(4):
                streams = await connect(proxy)
                await get(streams)
                close(streams)
            assert (proxy.counters.connections, proxy.counters.sequence) == (4, 4)

    asyncio.run(main())


def test_a_request_while_another_is_being_answered_follows_it() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER[:10])
        await reader.read(-1)

    async def main() -> None:
        async with link(handler) as proxy:
            first, second = await connect(proxy), await connect(proxy)
            first[1].write(GET)
            await first[0].readexactly(10)
            second[1].write(GET)
            await second[0].readexactly(10)
            assert proxy.counters.sequence == 2
            close(first, second)

    asyncio.run(main())


def test_counting_from_zero() -> None:
    async def main() -> None:
        async with link(answer_each) as proxy:
            streams = await connect(proxy)
            await get(streams)
            await get(streams)
            proxy.reset()
            assert proxy.counters.requests == 0
            await get(streams)
            assert (proxy.counters.requests, proxy.counters.sequence) == (1, 1)
            close(streams)

    asyncio.run(main())


# ---- request lines ------------------------------------------------------------------------------

POST = b"POST /a HTTP/1.1\r\nContent-Length: 31\r\n\r\nGET /no HTTP/1.1\r\nHost: b\r\n\r\n!!"
CHUNKED = (
    b"PATCH /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1f;x=y\r\nGET /no HTTP/1.1\r\nHost: b\r\n\r\n!!\r\n0\r\nT: railer\r\n\r\n"
)


@given(
    st.lists(st.sampled_from([GET, POST, CHUNKED, b"\r\n"]), max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
)
def test_requests_in_any_pieces(parts: list[bytes], sizes: list[int]) -> None:
    stream, lines, began, at = b"".join(parts), RequestLines(), 0, 0
    while at < len(stream):
        size = sizes[at % len(sizes)]
        began += lines.feed(stream[at : at + size])
        at += size
    assert began == sum(part != b"\r\n" for part in parts)
    assert not lines.opaque


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\n" * 3,
        b"x" * 70_000,
        b"SSH-2.0-x\r\n",
        CHUNKED[: CHUNKED.index(b"1f;")] + b"z\n",
    ],
)
def test_what_is_not_http(data: bytes) -> None:
    lines = RequestLines()
    lines.feed(data)
    assert lines.opaque
    assert lines.feed(GET) == 0


# ---- the command --------------------------------------------------------------------------------


def test_the_command() -> None:
    command = [sys.executable, "-m", "pagein.testing.proxy", "--to", "127.0.0.1:1", "--commands"]
    with subprocess.Popen(
        [*command, "--rtt-ms", "5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["port"] > 0
        process.stdin.write("link 20 200\ncounters\n")
        process.stdin.flush()
        for _ in range(2):
            assert json.loads(process.stdout.readline())["requests"] == 0
        process.stdin.close()
        assert json.loads(process.stdout.readline())["connections"] == 0
    assert process.returncode == 0


def test_the_command_ends_when_told() -> None:
    command = [sys.executable, "-m", "pagein.testing.proxy", "--to", "127.0.0.1:1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert json.loads(process.stdout.readline())["connections"] == 0
    assert process.returncode == 0
