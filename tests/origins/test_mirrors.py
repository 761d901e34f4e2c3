"""A URL with mirrors: who is asked, and what a reader gets when some of them do not do."""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
from msgspec.structs import replace

from pagein.origins import Origin, OriginError, open_origin, resolve
from pagein.origins.base import HostDown
from pagein.origins.session import Session
from pagein.testing.webserver import Fault, WebServer

DATA = os.urandom(300_000)
OTHER = bytes(255 - byte for byte in DATA)
PATIENT = 60.0
HASTY = 8.0
"""Seconds: a quarter of it is waited for a mirror that hangs."""


@dataclass
class Rig:
    mirror: WebServer
    source: WebServer
    session: Session
    origin: Origin

    def asked(self) -> tuple[int, int]:
        """Requests of mirror and source since the last look."""
        found = len(self.mirror.requests), len(self.source.requests)
        self.mirror.requests.clear()
        self.source.requests.clear()
        return found


@contextlib.asynccontextmanager
async def rig(
    *,
    timeout: float = PATIENT,
    validators: tuple[str, ...] = ("ETag",),
) -> AsyncIterator[Rig]:
    mirror = WebServer({"/copy": DATA}, validators=validators)
    source = WebServer({"/x": DATA}, validators=validators)
    async with mirror, source, Session() as session:
        identity = await resolve(source.url("/x"), timeout=PATIENT, session=session)
        identity = replace(identity, mirrors=(mirror.url("/copy"),))
        source.requests.clear()
        yield Rig(mirror, source, session, open_origin(identity, timeout=timeout, session=session))


async def failure(origin: Origin) -> OriginError:
    with pytest.raises(OriginError) as caught:
        await origin.read(0, 10)
    return caught.value


def test_the_mirror_is_asked_and_the_source_is_not() -> None:
    async def main() -> None:
        async with rig() as it:
            assert await it.origin.read(7, 1000) == DATA[7:1007]
            assert it.asked() == (1, 0)

    asyncio.run(main())


@pytest.mark.parametrize("code", [404, 403, 500, 503])
def test_a_mirror_that_refuses_is_passed_over_for_a_while(code: int) -> None:
    async def main() -> None:
        async with rig() as it:
            it.mirror.faults = lambda *_: Fault("status", code=code)
            for _ in range(20):
                assert await it.origin.read(7, 1000) == DATA[7:1007]
            mirror, source = it.asked()
            assert source == 20
            assert 1 <= mirror < 10  # again after some seconds, which a machine may need

    asyncio.run(main())


def test_a_mirror_with_other_content_gives_nothing_to_anybody() -> None:
    async def main() -> None:
        async with rig() as it:
            it.mirror.files = {"/copy": OTHER}
            for _ in range(5):
                assert await it.origin.read(7, 1000) == DATA[7:1007]
            assert it.asked() == (1, 5)

    asyncio.run(main())


def test_a_copy_may_be_younger_if_its_etag_is_the_same() -> None:
    async def main() -> None:
        async with rig(validators=("ETag", "Last-Modified")) as it:
            it.mirror._started = "Fri, 20 Nov 2026 10:00:00 GMT"
            assert await it.origin.read(0, 10) == DATA[:10]
            assert it.asked() == (1, 0)
        async with rig(validators=("Last-Modified",)) as it:
            it.mirror._started = "Fri, 20 Nov 2026 10:00:00 GMT"
            assert await it.origin.read(0, 10) == DATA[:10]
            assert it.asked() == (1, 1)

    asyncio.run(main())


def test_a_mirror_that_hangs_leaves_time_for_the_source() -> None:
    async def main() -> None:
        async with rig(timeout=HASTY) as it:
            it.mirror.faults = lambda *_: Fault("hang")
            stream = it.origin.stream(0, len(DATA))
            assert b"".join([bytes(piece) async for piece in stream]) == DATA
            assert it.asked() == (1, 1)

    asyncio.run(main())


def test_what_breaks_off_in_the_middle_is_had_from_the_source_next() -> None:
    """By whoever tries again."""

    async def main() -> None:
        async with rig() as it:
            it.mirror.faults = lambda *_: Fault("reset", after=1000)
            assert (await failure(it.origin)).retry
            assert it.asked() == (1, 0)
            async with asyncio.timeout(PATIENT):
                while not it.source.requests:
                    with contextlib.suppress(OriginError):
                        assert await it.origin.read(0, len(DATA)) == DATA

    asyncio.run(main())


def test_a_mirror_that_recovered_is_asked_again() -> None:
    async def main() -> None:
        async with rig() as it:
            it.mirror.faults = lambda *_: Fault("status")
            await it.origin.read(0, 10)
            it.mirror.faults = None
            it.mirror.requests.clear()
            async with asyncio.timeout(PATIENT):
                while not it.mirror.requests:
                    await it.origin.read(0, 10)
                    await asyncio.sleep(0.05)

    asyncio.run(main())


def test_when_nobody_has_it_that_which_may_pass_is_said() -> None:
    async def main() -> None:
        async with rig() as it:
            it.mirror.faults = lambda *_: Fault("status", code=503)
            it.source.faults = lambda *_: Fault("status", code=404)
            error = await failure(it.origin)
            assert error.retry
            assert "503" in str(error)

    asyncio.run(main())


# ---- the breaker --------------------------------------------------------------------------------


def test_a_dead_server_is_not_asked_and_comes_back_by_itself() -> None:
    async def main() -> None:
        async with WebServer({"/x": DATA}) as server, Session(fail_after=0.2) as session:
            identity = await resolve(server.url("/x"), timeout=PATIENT, session=session)
            origin = open_origin(identity, timeout=PATIENT, session=session)
            server.faults = lambda *_: Fault("reset")
            async with asyncio.timeout(PATIENT):
                while not isinstance(error := await failure(origin), HostDown):
                    assert error.retry
            assert (error.errno, error.retry, error.temporary) == (errno.EIO, False, True)
            assert f"http://127.0.0.1:{server.port} has not answered for" in str(error)
            server.requests.clear()
            # Refused without a request, or the probe that is made after a second.
            assert isinstance(await failure(origin), HostDown) == (not server.requests)
            (seen,) = session.servers()
            assert seen["server"] == f"http://127.0.0.1:{server.port}"
            assert seen["state"] in ("open", "half-open")
            server.faults = None
            async with asyncio.timeout(PATIENT):
                while session.servers()[0]["state"] != "closed":
                    with contextlib.suppress(HostDown):
                        assert await origin.read(0, 10) == DATA[:10]
                    await asyncio.sleep(0.05)

    asyncio.run(main())


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_asks_for_a_pause_gets_it_from_all(code: int) -> None:
    async def main() -> None:
        async with WebServer({"/x": DATA}) as server, Session() as session:
            identity = await resolve(server.url("/x"), timeout=PATIENT, session=session)
            first, second = (
                open_origin(identity, timeout=PATIENT, session=session) for _ in range(2)
            )
            server.faults = lambda *_: Fault("status", code=code, retry_after="50")
            error = await failure(first)
            assert (error.retry, error.after) == (True, 50.0)
            server.faults = None
            server.requests.clear()
            error = await failure(second)
            assert error.retry
            assert error.after is not None and 0 < error.after <= 50
            assert server.requests == []

    asyncio.run(main())


def test_a_start_waits_for_what_may_pass() -> None:
    async def main() -> None:
        faults = [Fault("status", code=503, retry_after="0"), Fault("reset"), None]
        server = WebServer({"/x": DATA}, faults=lambda number, *_: faults[number])
        async with server, Session() as session:
            found = await resolve(server.url("/x"), timeout=PATIENT, session=session)
            assert found.size == len(DATA)

    asyncio.run(main())


def test_what_this_process_lacks_is_not_the_server_s_fault() -> None:
    """No more fds, for one."""

    async def main() -> None:
        async with WebServer({"/x": DATA}) as server, Session(fail_after=0.0) as session:
            identity = await resolve(server.url("/x"), timeout=PATIENT)
            origin = open_origin(identity, timeout=PATIENT, session=session)

            async def no_fds(request: aiohttp.ClientRequest, **_: object) -> object:
                problem = OSError(errno.EMFILE, "Too many open files")
                raise aiohttp.ClientConnectorError(request.connection_key, problem)

            connector = session.client.connector
            assert connector is not None
            connector.connect, connect = no_fds, connector.connect  # type: ignore[method-assign,assignment]
            for _ in range(3):
                assert (await failure(origin)).retry
            connector.connect = connect  # type: ignore[method-assign]
            assert await origin.read(0, 10) == DATA[:10]

    asyncio.run(main())
