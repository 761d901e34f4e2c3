"""How fast a server is: round trip and rate, as its answers show them, for all blobs it serves.

Both are what the best of some recent answers say: what else the link carries, and our own pauses,
only ever make an answer slower. The round trip is the least time from a request to its first byte
in the last minute or two.
The rate is measured while answers are being received, over all of them together, since they share
the link; the best sample but one counts, so that no single burst out of some buffer does.

No I/O; times are those of the running loop, in seconds.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

ASSUMED_RATE: Final = 50e6
"""Bytes per second of a server whose rate is not known yet: 400 Mbit/s."""

_SHOWS = 64 << 10  # bytes of an answer that shows whether it had to wait: not a page between others
_TOOK = 8  # answers whose time is remembered
_MEMORY = 60.0  # seconds for which the least of them is remembered, at least
_SAMPLES = 8  # rates
_SPAN = 0.05  # seconds of a sample, at least, unless the answers end before
_SHORT = 0.01  # seconds of a sample that counts at all
_LEAST = 128 << 10  # bytes of it
_FIRST = 1 << 20  # bytes that show it soon while nothing is known
_MUCH = 4 << 20  # bytes that are a sample, however short the time was
_HOSTS = 256  # that are remembered


class Pace:
    """Round trip and rate of one server.

    Attributes:
        rtt: seconds, or None while no answer has come.
        rate: bytes per second, or None while too little was received to say.
        answers: how many are over, of those that show whether they had to wait.
    """

    def __init__(self) -> None:
        self.rtt: float | None = None
        self.rate: float | None = None
        self.answers = 0
        self._before = self._least = math.inf
        self._turn_at = -math.inf
        self._took: deque[float] = deque(maxlen=_TOOK)
        self._samples: deque[float] = deque(maxlen=_SAMPLES)
        self._receiving = 0
        self._since = 0.0
        self._bytes = 0

    @property
    def round_trip(self) -> int | None:
        """Bytes that the link carries in a round trip, or None while that is not known.

        The rate may be an assumed one.
        """
        if self.rtt is None:
            return None
        return int(self.rtt * (ASSUMED_RATE if self.rate is None else self.rate))

    def queued(self, last: int) -> float:
        """Seconds that the last answers took beyond a round trip, the least of `last`.

        To the last byte: some links serve one answer after the other, some all at once. The least:
        a new connection takes longer, and so may whoever hears of the answer.
        """
        took = list(self._took)[-last:]
        return min(took) - self.rtt if took and self.rtt is not None else 0.0

    def begin(self, waited: float, now: float) -> None:
        """The first byte of an answer has come, `waited` seconds after it was asked for."""
        if now >= self._turn_at:
            self._before, self._least = self._least, math.inf
            self._turn_at = now + _MEMORY
        self._least = min(self._least, waited)
        self.rtt = min(self._before, self._least)
        if not self._receiving:
            self._since, self._bytes = now, 0
        self._receiving += 1

    def received(self, count: int, now: float) -> None:
        """`count` more bytes of an answer have come, after its first ones."""
        self._bytes += count
        long = _SPAN if self.rate is not None or self._bytes < _FIRST else _SHORT
        if now - self._since >= long:
            self._sample(now)

    def end(self, size: int, took: float, now: float) -> None:
        """An answer of `size` bytes is over, `took` seconds after it was asked for."""
        if size >= _SHOWS:
            self.answers += 1
            self._took.append(took)
        self._receiving -= 1
        if not self._receiving:
            self._sample(now)

    def _sample(self, now: float) -> None:
        seconds, count = now - self._since, self._bytes
        self._since, self._bytes = now, 0
        if count < _LEAST or seconds <= 0 or (seconds < _SHORT and count < _MUCH):
            return
        self._samples.append(count / seconds)
        best = sorted(self._samples)
        self.rate = best[-2] if len(best) > 2 else best[len(best) // 2]


_paces: OrderedDict[str, Pace] = OrderedDict()


def pace_of(server: str) -> Pace:
    """The pace of a server, by any name but "": the same one for each caller in this process."""
    if not server:
        return Pace()
    pace = _paces.setdefault(server, Pace())
    _paces.move_to_end(server)
    if len(_paces) > _HOSTS:
        _paces.popitem(last=False)
    return pace


async def measured(
    pace: Pace, stream: AsyncIterator[bytes | memoryview]
) -> AsyncGenerator[bytes | memoryview, None]:
    """The pieces of an answer, whose time and size `pace` hears of; closes `stream`."""
    loop = asyncio.get_running_loop()
    asked, begun, size = loop.time(), False, 0
    try:
        async for piece in stream:
            now = loop.time()
            if begun:
                pace.received(len(piece), now)
            else:
                pace.begin(now - asked, now)
                begun = True
            size += len(piece)
            yield piece
    finally:
        if begun:
            pace.end(size, loop.time() - asked, loop.time())
        if (aclose := getattr(stream, "aclose", None)) is not None:
            await aclose()
