"""Background: what nobody asked for yet is fetched while nobody waits, until blobs are complete.

It comes after what readers wait for, what is read ahead of them, and what a trace says; while any
of that runs, nothing new is asked for. What was asked for already is in the way of the next reader,
so it is little: a request brings what the link carries in a quarter of a round trip, requests are
sent no faster than the link brings their answers, and together they are little more than it
carries in one round trip. That keeps the link busy, and costs a reader half a round trip at most.

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

log = logging.getLogger("pagein.daemon")

REQUEST_LEAST: Final = 128 << 10
"""Bytes of the blob that a request brings at least: less is not worth its headers."""

REQUEST_MOST: Final = 4 << 20
"""And at most, on a link that carries much in a round trip."""

_ROUND_TRIPS = 0.25  # of link time, for one request
_AHEAD = 1.25  # round trips of link time that may be on their way
_FASTER = 1.15  # than what the link was seen to carry: else it would never be seen to carry more
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
        self._next_at = 0.0

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
        try:
            while work in self._works and (gap := fill.missing(at)) is not None:
                size = _request(fill)
                await self._turn(work, size)
                if work not in self._works or (gap := fill.missing(gap[0])) is None:
                    continue
                start, end = await fill.origin.around(gap[0], min(gap[1], gap[0] + size))
                at = max(end, gap[0] + size)
                task = asyncio.create_task(fill.background(start, end - start))
                self._requests[task] = end - start
                task.add_done_callback(self._ended)
        except OSError as problem:
            log.info("%s: not completed yet: %s", fill.name, problem)
        while self._requests:
            await asyncio.wait(self._requests)

    def _ended(self, task: asyncio.Task[bool]) -> None:
        self._requests.pop(task, None)
        if not task.cancelled():
            task.exception()  # looked at: its blob was closed

    async def _turn(self, work: _Work, size: int) -> None:
        """Wait until a request of `size` bytes may be sent."""
        loop, pace = asyncio.get_running_loop(), work.fill.pace
        density = work.fill.origin.density
        while work in self._works:
            await self._budget.quiet()
            if self._requests and sum(self._requests.values()) + size > _allowed(work.fill, size):
                await asyncio.wait(self._requests, return_when=asyncio.FIRST_COMPLETED)
            elif (wait := self._next_at - loop.time()) > 0:
                await asyncio.sleep(wait)
            else:
                break
        rate = min(work.rate, _rate(pace)) * density
        self._next_at = max(self._next_at, loop.time()) + size / rate


def _request(fill: Fill) -> int:
    """Bytes of the blob that one request brings."""
    carried = (fill.pace.round_trip or 0) * fill.origin.density
    return int(min(max(carried * _ROUND_TRIPS, REQUEST_LEAST), REQUEST_MOST)) & -4096


def _allowed(fill: Fill, size: int) -> float:
    """Bytes of the blob that may be on their way."""
    carried = (fill.pace.round_trip or 0) * fill.origin.density
    # What is decoded takes its time after it has come.
    return 2 * carried + 6 * size if fill.origin.decodes else _AHEAD * carried + size


def _rate(pace: Pace) -> float:
    """Bytes per second at which requests are sent; no limit while nothing is known."""
    return float("inf") if pace.rate is None else _FASTER * pace.rate
