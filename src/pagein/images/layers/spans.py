"""Spans of compressed layers: what lies between two points, decoded as it arrives.

A span is fetched once, however many want some of it, and kept for a while: whoever reads a file
reads its neighbours next. It is fetched in order, and what of it was decoded is given out at once.
When a transfer breaks off, what came stays, and the next one goes on from there.

A reader that goes away leaves its transfer running, for the next one. Only who waits in vain and
gives up ends it, so that another try is another request.
"""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from pagein.images.layers.chunks import Decoder
from pagein.images.layers.errors import LayerError
from pagein.images.layers.guesses import Guesses
from pagein.images.layers.index import Place
from pagein.images.layers.turns import Turns
from pagein.origins.base import Origin, OriginError
from pagein.origins.pace import measured, pace_of

KEPT: Final = 64 << 20
"""Bytes of spans that are kept, over all layers of a process: an image may have a hundred."""

REQUESTS: Final = 16
"""Requests for spans that run at once: each brings up to some MB, which wait to be decoded."""

FORESEEN: Final = 1 << 20
"""Bytes that are fetched at once of what is said to be read soon: about what a link holds in a
round trip. What is asked for now shares the link with them."""


class Kept:
    """Which spans stay in memory, and how many requests bring more: for all layers of a loop."""

    def __init__(self, budget: int = KEPT, *, requests: int = REQUESTS) -> None:
        """`budget` in bytes; spans in use stay beyond it."""
        self.slots = asyncio.Semaphore(requests)
        self.turns = Turns(FORESEEN)
        self.guesses = Guesses()
        self._budget = budget
        self._spans: OrderedDict[Span, dict[int, Span]] = OrderedDict()

    def touch(self, span: Span, table: dict[int, Span]) -> None:
        """`span`, which stands in `table`, is in use now: it goes last."""
        self._spans[span] = table
        self._spans.move_to_end(span)

    def forget(self, span: Span) -> None:
        """It is not to be found any more; who reads it goes on."""
        table = self._spans.pop(span, None)
        if table is not None and table.get(span.number) is span:
            del table[span.number]

    def shrink(self) -> None:
        """Forget what was not used for longest, down to the budget."""
        held = sum(span.held for span in self._spans)
        for span in list(self._spans):
            if held <= self._budget:
                break
            if not span.busy:
                held -= span.held
                self.forget(span)


class Span:
    """One span: what of it was received, and what of that was decoded."""

    def __init__(self, place: Place, decoder: Decoder, tasks: set[asyncio.Task[None]]) -> None:
        """`tasks` is where what runs stands, for its owner to end."""
        self.number = place.number
        self.out = place.point.out
        self.size = place.size
        self.length = place.end - place.start
        """Bytes of the layer."""
        self.at, self.end = place.start, place.end
        """What of the layer is still to be received."""
        self.users = 0
        self.reach = 0
        """How much of it what was asked for should give, if that was not all."""
        self.error: Exception | None = None
        self.transfer: Transfer | None = None
        self.guess: int | None = None
        """If nobody asked for it yet: how many guesses before it, in a row, came true."""
        self.foreseen = False
        """Whether nobody asked for it yet, and it is no guess."""
        self._decoder: Decoder | None = decoder
        self._tasks = tasks
        self._packed: list[bytes] = []
        self._data = bytearray()
        self._filled = 0
        self._wanted = False
        self._decoding: asyncio.Task[None] | None = None
        self._news: set[asyncio.Future[None]] = set()

    @property
    def held(self) -> int:
        """Bytes of memory."""
        return len(self._data) + sum(map(len, self._packed))

    @property
    def busy(self) -> bool:
        """Whether somebody reads it, or works on it."""
        return bool(self.users) or self.transfer is not None or self._decoding is not None

    @property
    def complete(self) -> bool:
        """Whether all of it was decoded."""
        return self._filled == self.size and bool(self._filled)

    # ---- for who reads

    async def parts(self, start: int, end: int) -> AsyncGenerator[tuple[int, memoryview], None]:
        """What it has of [start, end) in the tar, as it comes: offsets, and the bytes there.

        OSError as the origin, LayerError when what it gave cannot be decoded. Somebody must have
        begun a transfer of what is missing; it ends early if that was of too little.
        """
        have = max(0, start - self.out)
        end = min(end - self.out, self.size)
        self.users += 1
        try:
            self._want()
            while have < end:
                if self._filled <= have:
                    if self._idle:
                        return
                    await self._change()
                    continue
                filled = min(self._filled, end)
                yield self.out + have, memoryview(self._data)[have:filled]
                have = filled
        finally:
            self.users -= 1

    @property
    def _idle(self) -> bool:
        """Whether more will come only if somebody asks for it."""
        working = self.transfer is not None or self._packed or self._decoding is not None
        return self.at < self.end and not working and self.error is None

    async def _change(self) -> None:
        """Until there is more; raises what went wrong."""
        if self.error is not None:
            # A fresh one for each reader: an exception must not be raised twice.
            raise copy.copy(self.error).with_traceback(None) from self.error
        future = asyncio.get_running_loop().create_future()
        self._news.add(future)
        try:
            await future
        except asyncio.CancelledError:
            if self.users == 1 and self.transfer is not None:
                self.transfer.give_up()
            raise
        finally:
            self._news.discard(future)

    # ---- for who fetches

    def receive(self, at: int, piece: bytes | memoryview) -> None:
        """`piece` is what the layer has at `at`; what is of use of it is kept."""
        low, high = max(at, self.at), min(at + len(piece), self.end)
        if at > self.at or low >= high:
            return
        whole = high - low == len(piece)
        self._packed.append(bytes(piece) if whole else bytes(piece[low - at : high - at]))
        self.at = high
        if self._wanted:
            self._decode_soon()

    def fail(self, error: Exception) -> None:
        """Those who wait get `error`."""
        self.error = error
        self.tell()

    def tell(self) -> None:
        """Those who wait look again."""
        for future in self._news:
            if not future.done():
                future.set_result(None)

    # ---- decoding

    def _want(self) -> None:
        self._wanted = True
        self._decode_soon()

    def _decode_soon(self) -> None:
        if self._decoding is None and self._packed and self._filled < self.size:
            self._decoding = own(self._tasks, self._decode())

    async def _decode(self) -> None:
        """Until nothing is left of what was received."""
        try:
            while self._packed and self._filled < self.size:
                packed, self._packed = b"".join(self._packed), []
                self._filled = await asyncio.to_thread(self._unpack, packed)
                self.tell()
        except Exception as error:
            self.fail(error)
        finally:
            self._decoding = None
        if self.at == self.end and self._filled < self.size and self.error is None:
            self.fail(LayerError(f"a span of {self.size} bytes decodes to {self._filled}"))

    def _unpack(self, packed: bytes) -> int:
        """In a thread: decode `packed` behind what there is; where that ends."""
        filled, decoder = self._filled, self._decoder
        assert decoder is not None
        if not self._data:
            self._data = bytearray(self.size)
        with memoryview(self._data) as view:
            for piece in decoder.feed(packed):
                taken = min(len(piece), self.size - filled)
                view[filled : filled + taken] = piece[:taken]
                filled += taken
                if filled == self.size:
                    self._decoder = None  # that of zstd is twice as large as its window
                    break
        return filled


class Transfer:
    """One request for neighbouring spans."""

    def __init__(
        self,
        spans: Sequence[Span],
        origin: Origin,
        kept: Kept,
        tasks: set[asyncio.Task[None]],
        end: int | None = None,
    ) -> None:
        """Begin it; it stands in `tasks` while it runs. It ends at `end`, or that of the last."""
        self._spans = spans
        self._end = spans[-1].end if end is None else end
        self._origin = origin
        self._kept = kept
        for span in spans:
            span.error = None
            span.transfer = self
        self._task = own(tasks, self._run())

    async def over(self) -> None:
        """Wait until it has ended, well or not."""
        await asyncio.wait([self._task])

    def give_up(self) -> None:
        """Who waited for one of its spans does not do so any more: end it if nobody else does."""
        if sum(span.users for span in self._spans if span.at < span.end) <= 1:
            self._task.cancel()
            self._leave(OriginError.of(str(self._origin), "the request was given up", retry=True))

    async def _run(self) -> None:
        error: Exception | None = None
        try:
            async with self._kept.slots:
                await self._receive()
        except Exception as problem:
            error = problem
        finally:
            self._leave(error)
            self._kept.shrink()

    def _leave(self, error: Exception | None) -> None:
        """Others may fetch what is missing now."""
        for span in self._spans:
            if span.transfer is self:
                span.transfer = None
                if error is not None and span.at < span.end:
                    span.fail(error)
                else:
                    span.tell()

    async def _receive(self) -> None:
        at, end = self._spans[0].at, self._end
        first = 0
        stream = measured(pace_of(self._origin.server), self._origin.stream(at, end - at))
        async with closing(stream) as pieces:
            async for piece in pieces:
                for span in self._spans[first:]:
                    span.receive(at, piece)
                at += len(piece)
                while first < len(self._spans) and self._spans[first].at == self._spans[first].end:
                    self._spans[first].transfer = None
                    first += 1
        if at != end:
            raise LayerError(f"the layer ends at byte {at}, not {end}")


@asynccontextmanager
async def closing(
    stream: AsyncIterator[bytes | memoryview],
) -> AsyncGenerator[AsyncIterator[bytes | memoryview], None]:
    """As aclosing, of an iterator that may have nothing to close."""
    try:
        yield stream
    finally:
        if (aclose := getattr(stream, "aclose", None)) is not None:
            await aclose()


def own(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `work` as a task that stands in `tasks` until it is over."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
