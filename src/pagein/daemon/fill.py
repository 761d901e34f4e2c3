"""Fill: the bytes of one blob, fetched when they are read, each of them once.

Everything that is asked for is cut into what is *present* (in the cache), what is *in flight* (some
fetch brings it), and gaps. Only gaps become fetches, and nothing is awaited between looking and
starting them; so two fetches never share a byte, however many readers ask at once.

A reader does not own the fetch that serves it. It waits until its range is covered; cancelled, it
just stops waiting. When a fetch fails, what it brought stays, the rest becomes a gap again, and
each reader that still needs some of it decides for itself: try again after a pause while its own
deadline allows, or give up at once if its own bytes were refused for good. So a bad byte in a
large window fails those who asked for that byte, not those who asked for its neighbours.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Iterable
from typing import Final

from pagein.daemon.buffers import Budget, GaveWay
from pagein.daemon.failures import RecentFailures, again, text_of
from pagein.daemon.fetch import Claim, Failure, Fetch, Then, Waiting, Write, wanted
from pagein.daemon.ranges import Ranges
from pagein.daemon.readahead import Policy, lead_of, window_limit
from pagein.daemon.tally import Cause, Kind, Tally
from pagein.origins.base import Origin
from pagein.origins.pace import pace_of
from pagein.origins.retry import Backoff

log = logging.getLogger("pagein.daemon")

CALM: Final = 5.0
"""Seconds after a failed fetch in which nothing is fetched ahead."""


class Fill:
    """Fetches ranges of `origin` and hands them to `write`; belongs to one event loop.

    Attributes:
        present: what is known to be in the cache, in bytes, whole pages; only to look at.
        pages: (off, length) to the whole pages that a range touches, as far as the blob has them.
        fetched: bytes given to the cache so far.
        requests: how often the origin was asked.
        errors: reads that failed.
        last_error: text of the last failure of a read, or None.
        pace: how fast the server is that the origin's bytes come from.
    """

    def __init__(
        self,
        origin: Origin,
        size: int,
        write: Write,
        *,
        timeout: float,
        claim: Claim | None = None,
        budget: Budget | None = None,
        tally: Tally | None = None,
        name: str = "",
    ) -> None:
        """`size` is in bytes, as `origin.size()` told; `timeout`, in seconds, is that of a read.

        Args:
            origin: where bytes come from; closing it stays its owner's business.
            size: bytes of the blob.
            write: puts whole pages into the cache; what it raises fails the reads concerned.
            timeout: a read returns or raises within it.
            claim: holds a range against other processes that fill the same cache.
            budget: limits shared with other blobs of this event loop.
            tally: counts what is fetched, and how long reads take.
            name: what the log calls this blob.
        """
        self.origin = origin
        self.size = size
        self.write = write
        self.claim = claim
        self.budget = Budget() if budget is None else budget
        self.tally = Tally() if tally is None else tally
        self.timeout = timeout
        self.stall = timeout / 2  # so that there is time for a second try
        self._ranges = Ranges(size)
        self.present = self._ranges.present
        self.pages = self._ranges.pages
        self.fetched = 0
        self.requests = 0
        self.errors = 0
        self.last_error: str | None = None
        self.name = name
        self._policy = Policy(size)
        self._fetches: dict[Fetch, asyncio.Task[None]] = {}
        self._reads: set[Waiting] = set()
        self._failures = RecentFailures()
        self.pace = pace_of(origin.server)
        self._calm_until = 0.0
        self._closed = False

    # ---- for those who read

    async def read(self, off: int, length: int, then: Then | None = None) -> None:
        """Return when [off, off + length), as far as it is within the blob, is in the cache.

        `then` is called before, and not on the loop, if the last write of the range can do that.

        Raises:
            OSError: it could not be had before the deadline, or just failed for somebody else
                (the kernel asks again page by page: facts cachefiles-kernel 9.4). What arrived
                before is in the cache all the same.
        """
        start, end = self.pages(off, length)
        if self.present.covers(start, end):
            self.tally.reads[Cause.PRESENT].observe(0.0)
            return
        self._check_open()
        now = asyncio.get_running_loop().time()
        around = await self.origin.around(start, end)
        self._check_open()
        if (recent := self._failures.find(self.present.gaps(start, end), now)) is not None:
            raise again(recent)
        cause = Cause.FETCHED if self._ranges.missing(start, end) else Cause.IN_FLIGHT
        read = Waiting(start, end, then, now)
        self._add(read)
        try:
            if around.in_order:
                self._launch(around.start, around.end)
            self._start_plan(start, end - start, now)
            self._launch(around.start, around.end, Kind.AHEAD, along=True)
            await self._wait(read, now + self.timeout)
        finally:
            self._remove(read)
            self.tally.reads[cause].observe(asyncio.get_running_loop().time() - now)

    def covers(self, off: int, length: int) -> bool:
        """Whether a read of the range would return at once."""
        return self.present.covers(*self.pages(off, length))

    def prefetch(self, off: int, length: int) -> None:
        """Fetch a range in the background, after everything that somebody waits for.

        At most `AHEAD_RUNNING` such fetches run at once over all blobs of a budget, in the order
        in which they were asked for; they hold still while somebody waits for another fetch.
        Failures are logged, and leave a gap.
        """
        self._check_open()
        self._launch(*self.pages(off, length), Kind.PREFETCH)

    async def prefetched(self, off: int, length: int) -> bool:
        """As `prefetch`, and wait until that is over; whether all of the range is here now.

        Cancelled, it just stops waiting. There is no deadline but those of the fetches.
        """
        self.prefetch(off, length)
        return await self._over(off, length)

    async def background(self, off: int, length: int) -> bool:
        """As `prefetched`, after all of that: for who completes the blob."""
        self._check_open()
        self._launch(*self.pages(off, length), Kind.BACKGROUND)
        return await self._over(off, length)

    async def _over(self, off: int, length: int) -> bool:
        start, end = self.pages(off, length)
        tasks = [task for each, task in self._fetches.items() if each.overlaps(start, end)]
        if tasks:
            await asyncio.wait(tasks)
        return self.covers(off, length)

    def missing(self, start: int) -> tuple[int, int] | None:
        """The first range from `start` on that is neither here nor on its way."""
        return self._ranges.first_missing(start)

    @property
    def complete(self) -> bool:
        """Whether all of the blob is here."""
        return self._ranges.complete

    # ---- for the owner

    def seed(self, present: Iterable[tuple[int, int]]) -> None:
        """Add byte ranges that were found in the cache; only whole pages of them count."""
        for low, high in present:
            if (whole := self._ranges.within(low, high)) is not None:
                self._arrived(*whole)

    def forget(self, off: int, length: int) -> None:
        """A range is not in the cache any more: fetch it again when it is read."""
        self._ranges.forget(*self.pages(off, length))

    @property
    def waits(self) -> list[tuple[float, int, int]]:
        """Each read that waits: since when, by the loop's clock, its start and its length."""
        return [(read.since, read.start, read.end - read.start) for read in self._reads]

    async def close(self) -> None:
        """Fail the reads, cancel the fetches and wait until their writes have ended."""
        self._closed = True
        self._ranges.close()
        for read in self._reads:
            read.wake(None)
        tasks = list(self._fetches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for fetch in self._fetches:  # cancelled before their first step
            self.budget.end(fetch)
        self._fetches.clear()

    # ---- for a thread that has the bytes at hand

    def take(self, start: int, end: int) -> bool:
        """In any thread: claim a range of whole pages of which nothing is here or on its way.

        False: only `read` knows what is to be done. What was taken is in flight until the loop
        calls `settle`, which must happen.
        """
        return self._ranges.take(start, end)

    def settle(self, start: int, end: int, *, landed: bool, seconds: float = 0.0) -> None:
        """What was taken is in the cache now, after `seconds`, or is a gap again."""
        self._ranges.release(start, end)
        if landed:
            self.requests += 1
            self.tally.reads[Cause.AT_HAND].observe(seconds)
            self.tally.landed(Kind.DEMAND, end - start, end - start)
            self._landed(start, end)
            return
        for read in self._reads:
            if read.start < end and start < read.end:
                read.wake(None)

    # ---- waiting

    async def _wait(self, read: Waiting, deadline: float) -> None:
        """Until `read` is covered; starts what is missing again after a failure."""
        backoff, last = Backoff(), None
        while not self.present.covers(read.start, read.end):
            self._check_open()
            if self._time_left(deadline) <= 0:
                raise self._give_up(read, self._late(last))
            self._launch(read.start, read.end)
            failure = await self._outcome(read, deadline)
            if failure is None:
                continue
            last = failure.error
            if failure.spares(read):
                continue
            pause = backoff.pause(failure.after, failure.luck)
            if not failure.retry or self._time_left(deadline) <= pause:
                raise self._give_up(read, failure.error)
            log.info("%s: %s; trying again in %.1f s", self.name, text_of(failure.error), pause)
            self.tally.retries += 1
            await self._nap(read, pause)

    async def _outcome(self, read: Waiting, deadline: float) -> Failure | None:
        """What ended the wait: None if the bytes may be there, or if the deadline passed."""
        read.future = asyncio.get_running_loop().create_future()
        await asyncio.wait({read.future}, timeout=max(0.0, self._time_left(deadline)))
        return read.future.result() if read.future.done() else None

    async def _nap(self, read: Waiting, pause: float) -> None:
        """Wait before another try; covered bytes end it early."""
        read.napping = True
        read.future = asyncio.get_running_loop().create_future()
        await asyncio.wait({read.future}, timeout=pause)
        read.napping = False

    def _late(self, last: Exception | None) -> OSError:
        cause = f"{self.origin}: no answer within {self.timeout:g} s"
        if last is not None:
            cause += f" (last error: {text_of(last)})"
        return OSError(errno.EIO, cause)

    def _give_up(self, read: Waiting, error: Exception) -> OSError:
        """Count, log and remember a failed read; returns what it raises."""
        now = asyncio.get_running_loop().time()
        gaps = list(self.present.gaps(read.start, read.end))
        self.errors += 1
        self.last_error = text_of(error)
        if self._failures.find(gaps, now) is None:
            length = read.end - read.start
            log.error(
                "%s: read of %d bytes at %d failed: %s",
                self.name,
                length,
                read.start,
                text_of(error),
                # A bug in somebody's origin: the cause alone would not show where.
                exc_info=None if isinstance(error, OSError) else error,
            )
        self._failures.add(gaps, error, now)
        return again(error)

    def _add(self, read: Waiting) -> None:
        self._reads.add(read)
        for fetch in self._fetches:
            if fetch.overlaps(read.start, read.end):
                self._join(fetch, read)

    def _join(self, fetch: Fetch, read: Waiting) -> None:
        fetch.waiting.add(read)
        self.budget.mark(fetch, urgent=True)
        fetch.poke()

    def _remove(self, read: Waiting) -> None:
        self._reads.discard(read)
        for fetch in self._fetches:
            fetch.waiting.discard(read)
            if not fetch.waiting:
                self.budget.mark(fetch, urgent=False)

    # ---- fetching

    def _start_plan(self, off: int, length: int, now: float) -> None:
        start = self.pace.round_trip
        if start is not None:
            start = int(start * self.origin.density)
        plan = self._ranges.plan(
            self._policy,
            off,
            length,
            limit=window_limit(self.speed),
            round_trip=start,
            lead=lead_of(self.speed, self.pace.rtt),
        )
        self._launch(*plan.demand)
        if now >= self._calm_until:
            for ahead in plan.ahead:
                self._launch(*ahead, Kind.AHEAD)

    def _launch(
        self, start: int, end: int, kind: Kind = Kind.DEMAND, *, along: bool = False
    ) -> None:
        """Start a fetch for each part of [start, end) that is neither present nor in flight."""
        for fetch in [
            Fetch(self, *gap, kind, along=along) for gap in self._ranges.claim(start, end)
        ]:
            self._fetches[fetch] = asyncio.create_task(self._run(fetch))
            for read in self._reads:
                if fetch.overlaps(read.start, read.end):
                    self._join(fetch, read)

    async def _run(self, fetch: Fetch) -> None:
        error: Exception | None = None
        try:
            await fetch.run()
        except GaveWay:
            pass
        except Exception as exc:
            error = exc
        finally:
            self._ended(fetch, error)

    def _ended(self, fetch: Fetch, error: Exception | None) -> None:
        """What the fetch did not bring is a gap again, and its readers decide what to do."""
        del self._fetches[fetch]
        self._ranges.release(fetch.start, fetch.end)
        gap = self.present.first_gap(fetch.start, fetch.end)
        now = asyncio.get_running_loop().time()
        self.tally.ended(fetch.kind, now - fetch.begun, error)
        if error is not None:
            self._calm_until = now + CALM
            if not fetch.waiting:
                log.info("%s: fetching ahead failed: %s", self.name, text_of(error))
        elif not self._closed and now >= self._calm_until:
            self._launch(
                *self._policy.follow(fetch.end, limit=window_limit(self.speed)), Kind.AHEAD
            )
        failure = Failure(error, gap[0]) if error is not None and gap is not None else None
        for read in fetch.waiting:
            if not read.napping:
                read.wake(failure)

    def ends(self, start: int, end: int) -> list[Then]:
        """Called by a fetch: the reads that miss nothing but [start, end), or some of that."""
        found = []
        for read in self._reads:
            if read.then is not None and read.start < end and start < read.end:
                missing = self.present.gaps(read.start, read.end)
                if all(start <= low and high <= end for low, high in missing):
                    found.append(read.then)
        return found

    def landed(self, start: int, end: int, kind: Kind) -> None:
        """Called by a fetch: [start, end) is in the cache now."""
        self.tally.landed(kind, end - start, wanted(self._reads, start, end))
        self._landed(start, end)

    def _landed(self, start: int, end: int) -> None:
        self.fetched += end - start
        self._arrived(start, end)

    @property
    def speed(self) -> float | None:
        """Bytes per second that the origin can give, as far as that is known."""
        return None if self.pace.rate is None else self.pace.rate * self.origin.density

    def _arrived(self, start: int, end: int) -> None:
        self._ranges.arrived(start, end)
        for read in self._reads:
            overlaps = read.start < end and start < read.end
            if overlaps and self.present.covers(read.start, read.end):
                read.wake(None)

    # ---- odds and ends

    def _time_left(self, deadline: float) -> float:
        return deadline - asyncio.get_running_loop().time()

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.ECANCELED, "the object was closed")
