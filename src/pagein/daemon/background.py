"""Background: what nobody asked for yet is fetched while nobody waits, until blobs are complete.

It comes after what readers wait for, what is read ahead of them, and what a trace says; while any
of that runs, nothing new is asked for. But what was asked for already is in the way of the next
reader. So it must not queue where the link begins: how much may be on its way grows while answers
are here little more than a round trip after they were asked for, and shrinks when they take longer
(LEDBAT, RFC 6817, does the same with packets). That finds what the link carries in a round trip; a
request brings about a fifth of it.

While others read now and then, less is on its way than the link carries in half a round trip, so
a reader waits half a round trip longer at most, and mostly less.

Of a compressed layer the least that can be asked for is what lies between two points of its index.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from pagein.daemon.buffers import Budget
from pagein.daemon.fill import Fill
from pagein.origins.pace import Pace
from pagein.protocol.messages import PAGE_SIZE

log = logging.getLogger("pagein.daemon")

REQUEST_LEAST: Final = 128 << 10
"""Bytes of the blob that a request brings at least: less is not worth its headers."""

REQUEST_MOST: Final = 4 << 20
"""And at most, on a link that carries much in a round trip."""

_PARTS = 5  # requests that are on their way together, about
_SHARE = 0.4  # round trips of the link's time that may be on their way among other reads
_QUEUED = 0.4  # round trips that an answer may take beyond one
_QUEUED_ALONE = 1.5  # the same while nobody else has read anything for a while
_ALONE = 1.0  # seconds
_QUEUED_LEAST = 0.012  # seconds: whoever measures is not always in time
_LATEST = 4  # answers that show it
_LESS = 0.8  # times what may be on its way, when they waited longer
_ASSUMED_RATE = 25e6  # bytes per second, until the rate is known
_MOST = 32 << 20  # bytes that may be on their way
_HASTE = 1.2  # times as fast as they come back, requests are sent
_SMOOTH = 0.25  # seconds of a given rate in one request, at most
_INSTANT = 0.001  # seconds: a round trip that is none
_PAUSE_FIRST, _PAUSE_MOST = 1.0, 60.0  # seconds, after a failure


@dataclass(eq=False, slots=True)
class _Work:
    fill: Fill
    rate: float


class Background:
    """Completes blobs, one after the other; made and used on one event loop."""

    def __init__(self, budget: Budget) -> None:
        """`budget` knows who else fetches."""
        self._budget = budget
        self._works: list[_Work] = []
        self._task: asyncio.Task[None] | None = None
        self._requests: dict[asyncio.Task[bool], int] = {}
        self._window = _Window(Pace())
        self._next_at = 0.0
        self._disturbed_at = -_ALONE

    @property
    def running(self) -> bool:
        """Whether a blob is not complete yet."""
        return self._task is not None and not self._task.done()

    def add(self, fill: Fill, rate: float) -> None:
        """Complete a blob, with at most `rate` bytes per second from its server."""
        self.remove(fill)
        self._works.append(_Work(fill, rate))
        if not self.running:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def remove(self, fill: Fill) -> None:
        """Ask for no more of a blob."""
        self._works = [work for work in self._works if work.fill is not fill]

    async def close(self) -> None:
        """End it; what was asked for already is the fill's business."""
        self._works.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # ---- one blob after the other

    async def _run(self) -> None:
        pause = _PAUSE_FIRST
        while self._works:
            for work in list(self._works):
                before = work.fill.present.total
                await self._pass(work)
                if work.fill.complete or work not in self._works:
                    self._done(work)
                elif work.fill.present.total > before:
                    pause = _PAUSE_FIRST
            if self._works:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_MOST)

    def _done(self, work: _Work) -> None:
        if work in self._works:
            self._works.remove(work)
            log.info("%s: complete", work.fill.name)

    async def _pass(self, work: _Work) -> None:
        """Ask once for everything that is missing, and wait until that is over."""
        fill, at = work.fill, 0
        if self._window.pace is not fill.pace:
            self._window = _Window(fill.pace)
        try:
            while work in self._works and (gap := fill.missing(at)) is not None:
                size = self._window.request(fill.origin.density, work.rate)
                await self._turn(work, size)
                if work not in self._works or (gap := fill.missing(gap[0])) is None:
                    continue
                start, end, _ = await fill.origin.around(gap[0], min(gap[1], gap[0] + size))
                at = max(end, gap[0] + size)
                task = asyncio.create_task(fill.background(start, end - start))
                self._requests[task] = end - start
                task.add_done_callback(self._ended)
        except OSError as problem:
            log.info("%s: not completed yet: %s", fill.name, problem)
        except Exception:  # somebody's origin
            log.exception("%s: not completed yet", fill.name)
        while self._requests:
            await asyncio.wait(self._requests)

    def _ended(self, task: asyncio.Task[bool]) -> None:
        self._requests.pop(task, None)
        if not task.cancelled():
            task.exception()  # looked at: its blob was closed

    async def _turn(self, work: _Work, size: int) -> None:
        """Wait until a request of `size` bytes may be sent."""
        loop, density = asyncio.get_running_loop(), work.fill.origin.density
        while work in self._works:
            if self._budget.busy:
                await self._budget.quiet()
                self._disturbed_at = loop.time()
            alone = loop.time() > self._disturbed_at + _ALONE
            room = self._window.size(loop.time(), alone=alone) * density
            if self._requests and sum(self._requests.values()) + size > room:
                await asyncio.wait(self._requests, return_when=asyncio.FIRST_COMPLETED)
            elif (wait := self._next_at - loop.time()) > 0:
                await asyncio.sleep(wait)
            else:
                break
        rate = min(work.rate, self._window.rate) * density
        self._next_at = max(self._next_at, loop.time()) + size / rate


class _Window:
    """How much of a server's answers may be on its way."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._size = 2.0 * REQUEST_LEAST
        self._most = self._size  # of that, at present
        self._rate = 0.0  # the best that the server has shown: half of a link does not show all
        self._seen = pace.answers
        self._fast = True  # grows fast, until answers have to wait for the first time
        self._again_at = 0.0

    def request(self, density: float, rate: float) -> int:
        """Bytes of the blob that one request is to bring; `rate` is what may be used."""
        size = min(self._most / _PARTS, rate * _SMOOTH) * density
        return int(min(max(size, REQUEST_LEAST), REQUEST_MOST)) & -PAGE_SIZE

    @property
    def rate(self) -> float:
        """Bytes per second at which to send requests: all at once would queue at once."""
        return _HASTE * self._most / max(self.pace.rtt or 0.0, _INSTANT)

    def size(self, now: float, *, alone: bool) -> float:
        """Bytes from the server that may be on their way, as its last answers say."""
        self._rate = max(self._rate, self.pace.rate or 0.0)
        least, limit = 2.0 * REQUEST_LEAST, float(_MOST)
        if not alone:
            share = _SHARE * (self.pace.rtt or 0.0) * (self._rate or _ASSUMED_RATE)
            limit = max(share, REQUEST_LEAST)
        self._adapt(now, _QUEUED_ALONE if alone else _QUEUED, least, limit)
        self._most = min(self._size, limit)
        return self._most

    def _adapt(self, now: float, most: float, least: float, limit: float) -> None:
        """Grow if the last answers came within `most` round trips beyond one, or else shrink."""
        new, rtt = self.pace.answers - self._seen, self.pace.rtt or 0.0
        if not new or now < self._again_at:
            return
        self._seen, self._again_at = self.pace.answers, now + rtt  # until that shows
        if self.pace.queued(_LATEST) > max(most * rtt, _QUEUED_LEAST):
            self._fast = False
            self._size = max(self._size * _LESS, least)
        elif self._size < limit:  # what is not used proves nothing
            more = 0.5 if self._fast else 1 / _PARTS
            self._size = min(self._size * (1 + more), _MOST)
