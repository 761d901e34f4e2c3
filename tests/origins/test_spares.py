"""Connections that are dialled ahead: there when they are needed, and never a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.ports import quiet_port

from pagein.origins import Identity, OriginError, open_origin, resolve
from pagein.origins.health import Attempt
from pagein.origins.http import HttpOrigin
from pagein.origins.session import Session
from pagein.origins.spares import KEPT, Count
from pagein.testing.proxy import LinkProxy
from pagein.testing.webserver import WebServer

DATA = bytes(range(256)) * 1000
PATIENT = 60.0


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[HttpOrigin, LinkProxy]]:
    """An origin with one idle connection, through a proxy that counts them."""
    async with (
        asyncio.timeout(PATIENT),
        WebServer({"/x": DATA}) as server,
        LinkProxy("127.0.0.1", server.port) as proxy,
        Session() as session,
    ):
        source = f"http://127.0.0.1:{proxy.port}/x"
        identity = await resolve(source, timeout=PATIENT, session=session)
        origin = open_origin(identity, timeout=PATIENT, session=session)
        assert isinstance(origin, HttpOrigin)
        yield origin, proxy


async def dialled(session: Session) -> None:
    while tasks := session._dialler._tasks:
        await asyncio.wait(tasks)


async def read(origin: HttpOrigin, many: int) -> None:
    for got in await asyncio.gather(*(origin.read(256 * n, 100) for n in range(many))):
        assert got == DATA[:100]


def test_requests_take_the_connections_that_were_made_for_them() -> None:
    async def main() -> None:
        async with linked() as (origin, proxy):
            session = origin._usable_session()
            origin.prepare()
            assert len(session._dialler._tasks) == KEPT
            await dialled(session)
            origin.prepare()  # they are there
            assert not session._dialler._tasks
            await read(origin, 1 + KEPT)
            counted = proxy.counters
            assert (counted.connections, counted.requests) == (1 + KEPT, 2 + KEPT)
            await read(origin, 2 + KEPT)  # one more than there are
            assert counted.connections == 2 + KEPT

    asyncio.run(main())


def test_a_server_in_trouble_is_not_dialled() -> None:
    async def main() -> None:
        async with linked() as (origin, _):
            session = origin._usable_session()
            target = origin._target
            health = session.health(target.url)
            now = asyncio.get_running_loop().time()
            health.bad(Attempt(now), now, "it did not answer")
            origin.prepare()
            assert not session._dialler._tasks

    asyncio.run(main())


def test_where_nobody_listens_a_dial_says_nothing_and_a_read_says_why() -> None:
    async def main() -> None:
        identity = Identity(source=f"http://127.0.0.1:{quiet_port()}/x", size=len(DATA))
        async with asyncio.timeout(PATIENT), Session() as session:
            origin = open_origin(identity, timeout=PATIENT, session=session)
            origin.prepare()
            assert session._dialler._tasks
            await dialled(session)
            with pytest.raises(OriginError, match="cannot connect"):
                await origin.read(0, 10)

    asyncio.run(main())


def test_closing_ends_what_is_dialled() -> None:
    async def main() -> None:
        async with linked() as (origin, _):
            origin.prepare()
            session = origin._usable_session()
            tasks = set(session._dialler._tasks)
            assert len(tasks) == KEPT
            await session.close()
            assert all(task.done() for task in tasks)
            origin.prepare()  # too late, and no error

    asyncio.run(main())


# ---- the estimate


def test_what_is_lacking_is_counted_once() -> None:
    count = Count(60.0)
    assert count.lacking(0.0) == 1 + KEPT
    assert count.lacking(0.0) == 0
    count.begin(0.0)
    assert count.lacking(0.0) == 1
    count.end(lost=False)
    assert count.lacking(0.0) == 0


def test_a_connection_that_broke_or_was_never_there_is_lacking() -> None:
    count = Count(60.0)
    count.lacking(0.0)
    count.failed()
    assert count.lacking(0.0) == 1
    count.begin(0.0)
    count.end(lost=True)
    assert count.lacking(0.0) == 1


def test_what_was_not_in_use_for_a_while_is_not_believed_in() -> None:
    count = Count(60.0)
    for _ in range(9):
        count.begin(0.0)
    for _ in range(9):
        count.end(lost=False)
    assert count.lacking(59.0) == 0
    count.begin(61.0)
    assert count.lacking(61.0) == 0  # nine were in use a minute ago
    assert count.lacking(200.0) == 1 + KEPT
