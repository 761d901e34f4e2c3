"""One fetch: one range of one blob, from asking the origin to the return of the last write.

Receiving and writing overlap. What arrives is copied into a buffer; a full buffer is written while
the next one fills. A reader should not wait for a buffer to fill, so as soon as the bytes of a
waiting read are complete they are written too - unless a write is running already: then they go
with the next one, which is how many small READs become few large writes when the disk is the limit.

A fetch tries once. Whether to try again is decided by those who still wait (`fill.py`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final, Protocol

from pagein.daemon.buffers import Budget, Buffer
from pagein.daemon.readahead import WINDOW_MAX
from pagein.daemon.tally import Kind
from pagein.origins.base import Origin, OriginError
from pagein.origins.pace import Pace, measured
from pagein.protocol.messages import PAGE_SIZE
from pagein.rangeset import RangeSet

log = logging.getLogger("pagein.daemon")

Then = Callable[[], None]
"""Tells a reader that all it waits for is in the cache; called in the thread that wrote it."""


class Write(Protocol):
    """Puts whole pages of page-aligned memory into the cache."""

    def __call__(self, data: memoryview, offset: int, then: Then | None, /) -> Awaitable[None]:
        """Write `data`; then call `then`, or leave that to whoever waits for the read."""


Claim = Callable[[int, int], AbstractAsyncContextManager[list[tuple[int, int]]]]
"""Holds a range against other processes; yields the parts of it that are still missing."""

_WRITES: Final = 3  # of one fetch at a time
_STREAM: Final = 1 << 20  # bytes: a fetch as large as that is one of a proven stream
_LITTLE: Final = 512 << 10  # bytes of a stream that are worth a write at once
_PATIENCE: Final = 0.002  # seconds that less than that may wait for more
_NEXT: Final = 128 << 10  # bytes: what EROFS reads at a time
_SETTLE: Final = 5.0  # seconds that running writes get when a fetch is cancelled


class CacheError(OSError):
    """The cache did not take what was fetched; asking the origin again would not help."""


class Host(Protocol):
    """What a fetch needs of the Fill it works for."""

    origin: Origin
    size: int
    write: Write
    claim: Claim | None
    budget: Budget
    timeout: float
    stall: float
    requests: int
    pace: Pace

    @property
    def speed(self) -> float | None:
        """Bytes per second of the origin, as far as known."""

    def ends(self, start: int, end: int) -> list[Then]:
        """What to call when [start, end) is in the cache: it completes their reads."""

    def landed(self, start: int, end: int, kind: Kind) -> None:
        """[start, end), fetched for a reason of `kind`, is in the cache now."""


class Fetch:
    """Brings [start, end), multiples of 4096, into the cache; `waiting` is who wants it now."""

    def __init__(
        self, host: Host, start: int, end: int, kind: Kind = Kind.DEMAND, *, along: bool = False
    ) -> None:
        self.kind = kind
        self.begun = asyncio.get_running_loop().time()
        self.start = start
        self.end = end
        self.waiting: set[Waiting] = set()
        self.along = along
        self._host = host
        self._buffer: Buffer | None = None
        self._base = start  # offset in the blob of the buffer's first byte
        self._sent = 0  # bytes of the buffer that were given to writes
        self._filled = 0  # bytes of the buffer that hold data
        self._writes: set[asyncio.Task[None]] = set()
        self._write_error: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Fetch and write everything; raises what stopped it, after its writes have ended."""
        budget = self._host.budget
        try:
            await budget.begin(self, background=self.kind is Kind.BACKGROUND)
            async with AsyncExitStack() as stack:
                missing = await self._missing(stack)
                try:
                    for start, end in missing:
                        await self._get(start, end)
                    await self._finish_writes()
                finally:
                    await self._settle()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            budget.end(self)

    async def _missing(self, stack: AsyncExitStack) -> list[tuple[int, int]]:
        """What is to be fetched: all of it, or what other processes have not brought meanwhile."""
        if self._host.claim is None:
            return [(self.start, self.end)]
        try:
            async with asyncio.timeout(self._host.timeout):
                missing = await stack.enter_async_context(self._host.claim(self.start, self.end))
        except OSError as exc:
            raise CacheError(exc.errno or errno.ETIMEDOUT, f"cannot claim: {exc}") from exc
        at = self.start
        for start, end in [*missing, (self.end, self.end)]:
            if at < start:
                self._host.landed(at, start, self.kind)
            at = end
        return missing

    def overlaps(self, start: int, end: int) -> bool:
        """Whether some of [start, end) is among what it brings."""
        return self.start < end and start < self.end

    # ---- receiving

    async def _get(self, start: int, end: int) -> None:
        """Fetch one contiguous range. Whole pages that came before an error are written."""
        length = min(end, self._host.size) - start
        self._base, self._sent, self._filled = start, 0, 0
        self._host.requests += 1
        origin = self._host.origin
        origin.prepare()
        stream = origin.stream(start, length)
        if not origin.decodes:
            stream = measured(self._host.pace, stream)
        try:
            received = await self._receive(stream, length)
            if received != length:
                cause = f"the origin sent {received} bytes of {length}"
                raise OriginError(errno.EIO, cause, retry=received < length)
            await self._pad(length)
        finally:
            self._retire()
            if (aclose := getattr(stream, "aclose", None)) is not None:
                await aclose()

    async def _receive(self, stream: AsyncIterator[bytes | memoryview], length: int) -> int:
        loop = asyncio.get_running_loop()
        received = 0
        timer = asyncio.timeout(self._host.stall)
        try:
            async with timer:
                async for chunk in stream:
                    received += len(chunk)
                    if not chunk or received > length:
                        break
                    timer.reschedule(None)  # what follows waits for us, not for the origin
                    await self._store(memoryview(chunk))
                    if not self.along and self._host.budget.must_yield(self, self._goes_on):
                        await self._park()
                    timer.reschedule(loop.time() + self._host.stall)
        except TimeoutError as exc:
            if not timer.expired():
                raise
            cause = f"{self._host.origin}: no data for {self._host.stall:g} s"
            raise OriginError(errno.ETIMEDOUT, cause, retry=True) from exc
        return received

    async def _store(self, chunk: memoryview) -> None:
        while chunk:
            buffer = await self._room()
            count = min(len(chunk), len(buffer.view) - self._filled)
            buffer.view[self._filled : self._filled + count] = chunk[:count]
            self._filled += count
            chunk = chunk[count:]
            if self._filled == len(buffer.view):
                await self._turn()
        self.poke()
        if self._write_error is not None:
            raise self._write_error

    async def _room(self) -> Buffer:
        if self._buffer is None:
            self._buffer = await self._host.budget.take()
        return self._buffer

    def _goes_on(self, other: object) -> bool:
        """Whether it brings what the reader of `other` will want next: then it need not yield."""
        if (
            self.kind is Kind.BACKGROUND
            or not isinstance(other, Fetch)
            or other._host is not self._host
        ):
            return False
        return 0 <= self.start - other.end < WINDOW_MAX

    async def _park(self) -> None:
        """Let others go first, without holding a buffer that they may need."""
        rest = self._retire()
        await self._host.budget.yield_to_demand(self, self._goes_on)
        await self._store(memoryview(rest))

    def _retire(self) -> bytes:
        """Write the whole pages of the buffer and give it away; returns the bytes after them."""
        whole = self._filled // PAGE_SIZE * PAGE_SIZE
        rest = b"" if self._buffer is None else bytes(self._buffer.view[whole : self._filled])
        self._send(whole)
        self._let_go()
        self._base += whole
        self._sent = self._filled = 0
        return rest

    async def _turn(self) -> None:
        """The buffer is full: go on with another one, with a limit to those being written."""
        self._retire()
        while len(self._writes) >= _WRITES:
            await asyncio.wait(self._writes, return_when=asyncio.FIRST_COMPLETED)

    async def _pad(self, length: int) -> None:
        """Fill the last page of the blob with zeros (facts cachefiles-kernel 9.6)."""
        if tail := -length % PAGE_SIZE:
            await self._store(memoryview(bytes(tail)))

    # ---- writing

    def poke(self, *, now: bool = False) -> None:
        """Write what has arrived if that completes a waiting read and no write is running.

        The reader of a stream wants the next bytes too, and each write costs as much as a READ.
        So, unless `now`, little is not written where a moment brings more.
        """
        ready = self._base + self._filled // PAGE_SIZE * PAGE_SIZE
        unsent = self._base + self._sent
        if self._buffer is None or self._writes or ready == unsent:
            return
        if not any(read.start < ready and unsent < read.end <= ready for read in self.waiting):
            return
        if now or ready - unsent >= _LITTLE or not self._fast_stream():
            self._send(ready - self._base)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._flush)

    def _fast_stream(self) -> bool:
        speed = self._host.speed
        return self.end - self.start >= _STREAM and speed is not None and speed * _PATIENCE >= _NEXT

    def _flush(self) -> None:
        self._timer = None
        self.poke(now=True)

    def _send(self, upto: int) -> None:
        """Start to write the buffer's bytes up to `upto`."""
        buffer, low = self._buffer, self._sent
        if buffer is None or upto <= low or self._write_error is not None:
            return
        self._sent = upto
        buffer.users += 1
        ends = self._host.ends(self._base + low, self._base + upto)
        task = asyncio.create_task(self._write(buffer, low, upto, self._base + low, ends))
        self._writes.add(task)
        task.add_done_callback(lambda _: self._written(task, buffer))

    async def _write(
        self, buffer: Buffer, low: int, high: int, offset: int, ends: list[Then]
    ) -> None:
        def then() -> None:
            for each in ends:
                each()

        # Broken until proven whole: an error or a cancellation may leave a thread that reads it.
        try:
            async with asyncio.timeout(self._host.timeout):
                await self._host.write(buffer.view[low:high], offset, then if ends else None)
        except BaseException:
            buffer.broken = True
            raise
        self._host.landed(offset, offset + high - low, self.kind)

    def _written(self, task: asyncio.Task[None], buffer: Buffer) -> None:
        self._writes.discard(task)
        self._host.budget.drop(buffer)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, OSError):
            number = error.errno or (
                errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.EIO
            )
            cause = str(error) or "no answer"
            error = CacheError(number, f"cannot write to the cache: {cause}")
        if isinstance(error, Exception) and self._write_error is None:
            self._write_error = error
        self.poke()

    def _let_go(self) -> None:
        if self._buffer is not None:
            self._host.budget.drop(self._buffer)
            self._buffer = None

    async def _finish_writes(self) -> None:
        while self._writes:
            await asyncio.wait(self._writes)
        if self._write_error is not None:
            raise self._write_error

    async def _settle(self) -> None:
        """No write outlives its fetch, also when that is cancelled now or was before.

        One that hangs is abandoned, together with its memory.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE
        cancelled: asyncio.CancelledError | None = None
        while self._writes:
            left = deadline - loop.time()
            if left <= 0:
                log.error("a write to the cache hangs and was abandoned")
                for task in self._writes:
                    task.cancel()
            try:
                await asyncio.wait(self._writes, timeout=left if left > 0 else None)
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            raise cancelled


class Waiting:
    """A read that is not complete: [start, end) in bytes, and the future that ends its wait."""

    __slots__ = ("end", "future", "napping", "since", "start", "then")

    def __init__(self, start: int, end: int, then: Then | None, since: float) -> None:
        self.since = since
        self.start = start
        self.end = end
        self.then = then
        self.napping = False
        self.future: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()

    def wake(self, failure: Failure | None) -> None:
        """End the wait: with None the bytes may be there."""
        if not self.future.done():
            self.future.set_result(failure)


def wanted(reads: Iterable[Waiting], start: int, end: int) -> int:
    """How many bytes of [start, end) one of `reads` waits for."""
    found = RangeSet()
    for read in reads:
        if read.start < end and start < read.end:
            found.add(max(start, read.start), min(end, read.end))
    return found.total


class Failure:
    """Why a fetch ended, and the first byte it did not bring."""

    __slots__ = ("at", "error", "luck")

    def __init__(self, error: Exception, at: int) -> None:
        self.error = error
        self.at = at
        self.luck = random.random()
        """Of the pause before the next try: all who waited for the fetch ask again as one."""

    @property
    def after(self) -> float | None:
        """Seconds that the server asked for."""
        found: float | None = getattr(self.error, "after", None)
        return found

    @property
    def retry(self) -> bool:
        """Whether the same bytes may come at another try."""
        hopeful = isinstance(self.error, ConnectionError | TimeoutError)
        return bool(getattr(self.error, "retry", hopeful))

    def spares(self, read: Waiting) -> bool:
        """Whether a read may do better by itself: the failed byte is not among its own."""
        return not isinstance(self.error, CacheError) and not read.start <= self.at < read.end
