"""Connections that are there before they are needed: to make one costs a round trip.

A reader whose second request needs a second connection waits for it twice as long. So where a blob
is read, a few connections more than are in use are kept: dialled, and put among the idle ones.
How many are idle is an estimate, of what was in use together lately; a wrong one costs a connection
too many, or one too late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import aiohttp
from yarl import URL

KEPT: Final = 2
"""Connections beyond those in use and the next one that a server should have."""

DIAL: Final = 10.0
"""Seconds for one of them."""


class Count:
    """Connections to one server; `memory` is for how many seconds an idle one is believed in."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._used = self._there = self._most = 0
        self._forget_at = 0.0

    def begin(self, now: float) -> None:
        """A request takes one."""
        self._age(now)
        self._used += 1
        self._there = max(self._there, self._used)
        self._most = max(self._most, self._used)

    def end(self, *, lost: bool) -> None:
        """It is over; `lost`: its connection cannot be used again."""
        self._used -= 1
        if lost:
            self._there = max(self._there - 1, self._used)

    def lacking(self, now: float) -> int:
        """How many should be dialled before the next request; whoever asks does that."""
        self._age(now)
        wanted = max(0, self._used + 1 + KEPT - self._there)
        self._there += wanted
        return wanted

    def failed(self) -> None:
        """One that should have been dialled is not there."""
        self._there = max(self._there - 1, self._used)

    def _age(self, now: float) -> None:
        """What was not in use for a while was given up, by one side or the other."""
        if now >= self._forget_at:
            self._there, self._most = max(self._used, self._most), self._used
            self._forget_at = now + self._memory


class _Dialled(Exception):
    """The connection is there, and idle."""


class _Dial(aiohttp.ClientRequest):
    """A request that is not sent: its connection goes to the idle ones."""

    @property
    def connection_key(self) -> Any:
        """Another one than requests have, so that none that is idle is taken."""
        return (super().connection_key, "dial")

    async def send(self, conn: Any) -> Any:
        """Nothing."""
        conn._key = super().connection_key
        conn.release()
        raise _Dialled


class Dialler:
    """Makes connections for the requests of others; owns the tasks that do."""

    def __init__(self, connector: aiohttp.BaseConnector) -> None:
        self._client = aiohttp.ClientSession(
            connector=connector,
            connector_owner=False,
            request_class=_Dial,
            cookie_jar=aiohttp.DummyCookieJar(),
            requote_redirect_url=False,
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def dial(self, count: Count, many: int, url: URL, **how: Any) -> None:
        """Have `many` more connections soon; `how` is what requests of the server say."""
        for _ in range(many):
            self._spawn(self._one(count, url, how))

    async def close(self) -> None:
        """End what runs; the connector is its owner's."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, count: Count, url: URL, how: dict[str, Any]) -> None:
        waits = aiohttp.ClientTimeout(total=DIAL)
        try:
            async with self._client.get(url, timeout=waits, allow_redirects=False, **how):
                pass
        except _Dialled:
            return
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            pass  # whoever needs one will see what is wrong
        count.failed()
