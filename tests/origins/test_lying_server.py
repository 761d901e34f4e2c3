"""Every lie of a server ends in OriginError with the right flag, and never in wrong bytes."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ports import quiet_port

from pagein.origins import OriginError, open_origin, resolve
from pagein.origins.http import HttpOrigin
from pagein.origins.session import Session
from pagein.testing.webserver import Fault, FaultKind, WebServer

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


# ---- one fault at a time -------------------------------------------------------------------------

FAULTS = [
    (Fault("status", 304), errno.EIO, False, "304"),
    (Fault("status", 401), errno.EACCES, False, "401"),
    (Fault("status", 403), errno.EACCES, False, "403"),
    (Fault("status", 404), errno.ENOENT, False, "404"),
    (Fault("status", 416), errno.EIO, False, "content changed"),
    (Fault("status", 429), errno.EIO, True, "too many requests"),
    (Fault("status", 500), errno.EIO, True, "500"),
    (Fault("status", 503), errno.EIO, True, "503"),
    (Fault("ignore_range"), errno.EOPNOTSUPP, False, "ranged requests"),
    (Fault("short_body"), errno.EIO, True, "before the end of the body"),
    (Fault("short_body", after=0), errno.EIO, True, "before the end of the body"),
    (Fault("short_length"), errno.EIO, True, "announced 2500 bytes of the 5000"),
    (Fault("long_body"), errno.EIO, False, "announced 5008 bytes, more than the 5000"),
    (Fault("wrong_content_range"), errno.EIO, False, "not 1000-5999"),
    (Fault("wrong_total"), errno.EIO, False, "content changed"),
    (Fault("change_etag"), errno.EIO, False, "content changed"),
    (Fault("extra_encoding"), errno.EIO, False, "gzip"),
    (Fault("reset"), errno.ECONNRESET, True, "lost"),
    (Fault("reset", after=100), None, True, "lost"),
    (Fault("hang"), errno.ETIMEDOUT, True, "no answer within"),
    (Fault("hang", after=100), errno.ETIMEDOUT, True, "no data for"),
]


@pytest.mark.parametrize(("fault", "number", "retry", "text"), FAULTS, ids=lambda value: "")
@pytest.mark.parametrize("streamed", [False, True])
def test_each_fault_is_an_error(
    fault: Fault, number: int | None, retry: bool, text: str, streamed: bool
) -> None:
    async def main() -> None:
        server = WebServer({"/x": DATA})
        async with opened(server, timeout=HASTY if fault.kind == "hang" else PATIENT) as origin:
            server.faults = lambda *_: fault
            got = bytearray()

            async def stream() -> None:
                async with aclosing(origin.stream(1000, 5000)) as pieces:
                    async for piece in pieces:
                        got.extend(piece)

            error = await failure(stream() if streamed else origin.read(1000, 5000))
            assert text in str(error)
            assert str(error).startswith(server.url("/x") + ": ")
            assert error.retry is retry
            assert number in (None, error.errno)
            assert DATA[1000:6000].startswith(got)
            assert len(got) < 5000

    asyncio.run(main())


def test_changed_content_is_told_by_each_validator() -> None:
    async def main() -> None:
        files: dict[str, bytes | Path] = {"/x": DATA}
        server = WebServer(files)
        async with opened(server) as origin:
            server.validators = ("Last-Modified",)
            assert "ETag None" in str(await failure(origin.read(0, 10)))
            server.validators = ("ETag",)
            assert "Last-Modified None" in str(await failure(origin.read(0, 10)))
            server.validators = ("ETag", "Last-Modified")
            assert await origin.read(0, 10) == DATA[:10]
            files["/x"] = DATA[::-1]
            error = await failure(origin.read(0, 10))
            assert "content changed" in str(error)
            assert not error.retry
            # Without ranges it would be the same file no more: the change is the better cause.
            server.faults = lambda *_: Fault("ignore_range")
            assert "content changed" in str(await failure(origin.read(0, 10)))

    asyncio.run(main())


def test_a_server_that_is_gone_can_be_tried_again() -> None:
    async def main() -> None:
        port = quiet_port()
        server = WebServer({"/x": DATA}, port=port)
        async with Session() as session:
            async with server:
                identity = await resolve(server.url("/x"), timeout=PATIENT, session=session)
            origin = open_origin(identity, timeout=PATIENT, session=session)
            error = await failure(origin.read(0, 10))
            assert (error.errno, error.retry) == (errno.ECONNREFUSED, True)
            again = WebServer({"/x": DATA}, port=port, validators=("ETag",))
            async with again:
                error = await failure(origin.read(0, 10))
                assert "Last-Modified" in str(error)
                again.validators = ("ETag", "Last-Modified")
                again._started = server._started
                assert await origin.read(0, 10) == DATA[:10]

    asyncio.run(main())


# ---- any sequence of them -----------------------------------------------------------------------

SIZE = 20_000
KINDS: list[FaultKind] = [
    "status",
    "ignore_range",
    "short_body",
    "short_length",
    "long_body",
    "wrong_content_range",
    "wrong_total",
    "hang",
    "reset",
    "change_etag",
    "extra_encoding",
]
faults = st.builds(
    Fault,
    st.sampled_from(KINDS),
    st.sampled_from([200, 204, 301, 400, 403, 404, 416, 429, 500, 503]),
    st.none() | st.integers(0, SIZE),
)
ranges = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)
steps = st.lists(st.tuples(ranges, st.none() | faults), min_size=1, max_size=8)


async def check_step(
    origin: HttpOrigin, offset: int, length: int, fault: Fault | None, streamed: bool
) -> None:
    truth = DATA[offset : offset + length]
    got = bytearray()
    try:
        if streamed:
            async with aclosing(origin.stream(offset, length)) as pieces:
                async for piece in pieces:
                    got.extend(piece)
        else:
            got.extend(await origin.read(offset, length))
    except OriginError:
        assert fault is not None, "an honest answer was refused"
        assert truth.startswith(got)
    else:
        assert got == truth
        assert fault is None, f"{fault} went unnoticed"


@given(steps, st.booleans())
@settings(max_examples=150)
def test_every_read_is_right_or_an_error(
    sequence: list[tuple[tuple[int, int], Fault | None]], streamed: bool
) -> None:
    async def main() -> None:
        server = WebServer({"/x": DATA[:SIZE]})
        async with opened(server) as patient:
            hasty = HttpOrigin(patient._identity, patient._session, 0.02)
            for (offset, length), fault in sequence:
                server.faults = lambda *_, fault=fault: fault
                hangs = fault is not None and fault.kind == "hang"
                origin = hasty if hangs else patient
                await check_step(origin, offset, length, fault, streamed)

    asyncio.run(main())
