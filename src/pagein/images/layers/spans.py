"""Spans of compressed layers: what lies between two points, decoded as it arrives.

A span is fetched once, however many want some of it, and kept for a while: whoever reads a file
reads its neighbours next. It is fetched in order, and what of it was decoded is given out at once.
When a transfer breaks off, what came stays, and the next one goes on from there. So does who wants
more of a span that was asked for in part (`enough.py`): only what is new is fetched, and the
decoder that stands there goes on. A few of those are kept; of other spans what was received, to be
decoded once more.

A reader that goes away leaves its transfer running, for the next one. Only who waits in vain and
gives up ends it, so that another try is another request.
"""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from typing import Final

from pagein.images.layers.chunks import Decoder
from pagein.images.layers.enough import LITTLE, enough
from pagein.images.layers.errors import LayerError
from pagein.images.layers.guesses import Guesses
from pagein.images.layers.index import Place
from pagein.images.layers.transfer import Transfer, own
from pagein.images.layers.turns import Turns

KEPT: Final = 64 << 20
"""Bytes of spans that are kept, over all layers of a process: an image may have a hundred."""

REQUESTS: Final = 16
"""Requests for spans that run at once: each brings up to some MB, which wait to be decoded."""

FORESEEN: Final = 2 << 20
"""Bytes on their way at once of what is said to be read soon: a few times what a link holds in a
round trip. What is asked for now shares the link with them."""

STANDING: Final = 4
"""Decoders that stand in the middle of a span while nobody reads it: of zstd each has its window
twice, 16 MB mostly."""

_AT_ONCE = 256 << 10  # bytes that are decoded before somebody looks again


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
        standing = [span for span in self._spans if span.stands]
        for span in standing[: max(0, len(standing) - STANDING)]:
            span.pause()
        held = sum(span.held for span in self._spans)
        for leave in (Span.rest, self.forget):
            for span in list(self._spans):
                if held <= self._budget:
                    return
                if not span.busy:
                    held -= span.held
                    leave(span)
                    held += span.held if span in self._spans else 0


class Span:
    """One span: what of it was received, and what of that was decoded."""

    def __init__(
        self,
        place: Place,
        decoder: Callable[[Place], Decoder],
        tasks: set[asyncio.Task[None]],
        *,
        whole: bool = True,
    ) -> None:
        """`tasks` is where what runs stands, for its owner to end.

        `whole`: whoever wants some of it asks for all of it.
        """
        self._place = place
        self._whole = whole
        self.number = place.number
        self.out = place.out
        self.size = place.size
        self.length = place.end - place.start
        """Bytes of the layer."""
        self.at, self.end = place.start, place.end
        """What of the layer is still to be received."""
        self.due = place.start
        """Up to where in the layer it was asked for."""
        self.reach = 0
        """How much of it that should give, and what of it was decoded."""
        self.users = 0
        self.error: Exception | None = None
        self.transfer: Transfer | None = None
        self.guess: int | None = None
        """If nobody asked for it yet: how many guesses before it, in a row, came true."""
        self.foreseen = 0
        """Bytes of the layer that nobody asked for yet, and that are no guess."""
        self._make = decoder
        self._decoder: Decoder | None = None
        self._tasks = tasks
        # All that was received: of one that is asked for as a whole, until it is decoded.
        self._packed: list[bytes] = []
        self._fed = 0  # how many of these the decoder was given
        self._known = 0  # bytes that it will give once more
        self._data = bytearray()
        self._filled = 0
        self._goal = 0  # how much of it is wanted
        self._decoding: asyncio.Task[None] | None = None
        self._news: set[asyncio.Future[None]] = set()

    @property
    def held(self) -> int:
        """Bytes of memory, but for its decoder."""
        return self._filled + sum(map(len, self._packed))

    @property
    def busy(self) -> bool:
        """Whether somebody reads it, or works on it."""
        return bool(self.users) or self.transfer is not None or self._decoding is not None

    @property
    def complete(self) -> bool:
        """Whether all of it was decoded."""
        return self._filled == self.size and bool(self._filled)

    @property
    def filled(self) -> int:
        """Bytes of it that were decoded."""
        return self._filled

    @property
    def stands(self) -> bool:
        """Whether a decoder waits in the middle of it for somebody who wants more."""
        return self._decoder is not None and not self.busy

    def pause(self) -> None:
        """Let the decoder go, if it is not at work: who wants more has to begin anew."""
        if self.stands:
            self._decoder = None

    def rest(self) -> None:
        """Keep only what was received, if nobody works on it and that is there."""
        if self._packed and not self.busy and self.error is None:
            self._decoder, self._data = None, bytearray()
            self.reach = max(self.reach, self._filled)
            self._filled = self._goal = 0

    @property
    def failed(self) -> bool:
        """Whether what came cannot be decoded."""
        return self.at == self.end and self.error is not None

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
            self._goal = max(self._goal, end)
            self._decode_soon()
            while have < end:
                if self._filled <= have:
                    if self._idle:
                        self.reach = self._filled  # which was estimated
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
        working = self.transfer is not None or self._undecoded or self._decoding is not None
        return self.at < self.end and not working and self.error is None

    @property
    def _undecoded(self) -> bool:
        """Whether something is wanted and was received."""
        start = 0 if self._decoder is None else self._fed
        return self._filled < self._goal and start < len(self._packed)

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

    def new(self, until: int | None = None) -> int:
        """Bytes of the layer that have to be fetched of it beyond what was asked for."""
        return max(self._due(until) - max(self.due, self.at), 0)

    def ask(self, until: int | None = None) -> int:
        """Somebody will fetch it, up to `until` in the tar; bytes as `new` says."""
        new = self.new(until)
        self.due = max(self.due, self.at) + new
        wanted = self.size if self.due == self.end or until is None else until - self.out
        self.reach = max(self.reach, min(wanted, self.size))
        return new

    def _due(self, until: int | None) -> int:
        if self._whole or until is None:
            return self.end
        known = self._decoder is not None and self._fed == len(self._packed) and not self._decoding
        at, out = (self.at, self._filled) if known else (self._place.start, 0)
        return max(enough(self._place, until - self.out, at, out), min(self.at + LITTLE, self.end))

    def receive(self, at: int, piece: bytes | memoryview) -> None:
        """`piece` is what the layer has at `at`; what is of use of it is kept."""
        low, high = max(at, self.at), min(at + len(piece), self.end)
        if at > self.at or low >= high:
            return
        self.at = high
        if not self.complete or not self._whole:
            whole = high - low == len(piece)
            self._packed.append(bytes(piece) if whole else bytes(piece[low - at : high - at]))
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

    def _decode_soon(self) -> None:
        if self._decoding is None and self._undecoded:
            self._decoding = own(self._tasks, self._decode())

    async def _decode(self) -> None:
        """Until nothing is left of what was received, or nobody wants more."""
        try:
            while self._undecoded:
                if self._decoder is None:
                    self._fed, self._known = 0, self._filled
                packed = self._some()
                self._filled = await asyncio.to_thread(self._unpack, packed)
                if self.complete:
                    self._decoder = None  # that of zstd is twice as large as its window
                    if self._whole:
                        self._packed.clear()
                self.tell()
        except Exception as error:
            self.fail(error)
        finally:
            self._decoding = None
        ended = self.at == self.end and self._fed == len(self._packed)
        if ended and self._filled < self._goal and self.error is None:
            self.fail(LayerError(f"a span of {self.size} bytes decodes to {self._filled}"))

    def _unpack(self, packed: bytes) -> int:
        """In a thread: decode `packed` behind what there is; where that ends."""
        filled, decoder = self._filled, self._decoder
        if decoder is None:
            decoder = self._decoder = self._make(self._place)
        if not self._data:
            self._data = bytearray(self.size)
        with memoryview(self._data) as view:
            for piece in decoder.feed(packed):
                again = min(len(piece), self._known)
                self._known -= again
                taken = min(len(piece) - again, self.size - filled)
                view[filled : filled + taken] = piece[again : again + taken]
                filled += taken
                if filled == self.size:
                    break
        return filled

    def _some(self) -> bytes:
        """What is to be decoded next."""
        first, size = self._fed, 0
        while self._fed < len(self._packed) and size < _AT_ONCE:
            size += len(self._packed[self._fed])
            self._fed += 1
        return b"".join(self._packed[first : self._fed])
