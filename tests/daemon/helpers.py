"""What the tests of the user half share: a clock that moves by itself, a fake origin, a fake cache.

`run` executes a coroutine on an event loop whose time is virtual: where the loop would sleep, time
jumps. Deadlines of 30 s cost nothing, and a wait that nothing will ever end is an error at once.
"""

from __future__ import annotations

import asyncio
import selectors
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pagein.daemon.fetch import Then
from pagein.daemon.fill import Fill
from pagein.origins.base import Around, Origin, OriginError
from pagein.protocol.messages import PAGE_SIZE
from pagein.rangeset import RangeSet

T = TypeVar("T")
KIB = 1 << 10
MIB = 1 << 20


class Stuck(Exception):
    """Everything waits, and nothing will wake it up."""


class _Selector(selectors.BaseSelector):
    """Sleeps by moving the clock."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck
        self.now += max(0.0, timeout)
        return self._real.select(0)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = _Selector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


_broken: list[str] = []


def ensure(rule: bool, text: str) -> None:
    """A rule that fakes check while they are called, where an exception could be swallowed."""
    if not rule:
        _broken.append(text)
        raise AssertionError(text)


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work` in virtual time; no task may be left of it."""

    async def checked() -> T:
        result = await work
        await settle()  # a fetch may end just after the read that it served
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left: {left}"
        return result

    _broken.clear()
    with asyncio.Runner(loop_factory=_Loop) as runner:
        result = runner.run(checked())
    assert not _broken, _broken
    return result


def now() -> float:
    """Seconds on the running loop's clock."""
    return asyncio.get_running_loop().time()


async def settle() -> None:
    """Let everything happen that can happen without time passing."""
    for _ in range(50):
        await asyncio.sleep(0)


def content(size: int) -> bytes:
    """Bytes of which no two pages are equal, and none is all zeros."""
    return array("Q", range(1, -(-size // 8) + 1)).tobytes()[:size]


@dataclass
class Get:
    """What one GET does: pieces of `piece` bytes, each after `delay` s, until `stop` bytes."""

    piece: int = 64 * KIB
    delay: float = 0.0
    stop: int | None = None
    error: BaseException | None = None  # raised after `stop` bytes
    hang: bool = False  # for ever, after `stop` bytes
    extra: int = 0  # bytes sent beyond those asked for
    empty: bool = False  # an empty piece after `stop` bytes


@dataclass
class FakeOrigin(Origin):
    """An origin that does what `behave(offset, length)` says; notes and checks what is asked."""

    data: bytes
    behave: Callable[[int, int], Get] = lambda _offset, _length: Get()
    gets: list[tuple[int, int]] = field(default_factory=list)
    running: list[tuple[int, int]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    closed: bool = False
    unit: int = 1  # bytes that come together
    prepared: list[int] = field(default_factory=list)  # requests that were running then

    async def size(self) -> int:
        return len(self.data)

    async def around(self, start: int, end: int) -> Around:
        if self.unit == 1:
            return Around(start, end)
        await asyncio.sleep(0)
        last = -(-len(self.data) // PAGE_SIZE) * PAGE_SIZE
        first = start // self.unit * self.unit
        return Around(first, min(-(-end // self.unit) * self.unit, last))

    def prepare(self) -> None:
        self.prepared.append(len(self.running))

    async def read(self, offset: int, length: int) -> bytes:
        return b"".join([bytes(piece) async for piece in self.stream(offset, length)])

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        ensure(0 <= offset < offset + length <= len(self.data), "not a range of the blob")
        for start, end in self.running:
            ensure(offset + length <= start or end <= offset, "fetched twice at once")
        mine = (offset, offset + length)
        self.gets.append(mine)
        self.running.append(mine)
        try:
            async for piece in self._pieces(offset, length, self.behave(offset, length)):
                yield piece
        finally:
            self.running.remove(mine)

    async def _pieces(self, offset: int, length: int, get: Get) -> AsyncIterator[bytes]:
        stop = length if get.stop is None else min(get.stop, length)
        done = 0
        while done < stop:
            count = min(get.piece, stop - done)
            await asyncio.sleep(get.delay)
            if self.gate is not None:
                await self.gate.wait()
            yield self.data[offset + done : offset + done + count]
            done += count
        if get.empty:
            yield b""
        if get.hang:
            await asyncio.sleep(1e9)
        if get.error is not None:
            raise get.error
        if get.extra:
            yield bytes(get.extra)

    async def close(self) -> None:
        self.closed = True


def passing(text: str = "the server answered 503") -> OriginError:
    """An error that is worth another try."""
    return OriginError(5, text, retry=True)


def final(text: str = "404 not found") -> OriginError:
    """An error that is not."""
    return OriginError(2, text, retry=False)


@dataclass
class Cache:
    """A cache file in memory. Bytes are taken at the end of a write: until then they must last."""

    size: int
    delay: float = 0.0
    behave: Callable[[int, int], BaseException | None] = lambda _offset, _length: None
    writes: list[tuple[int, int]] = field(default_factory=list)
    running: int = 0

    def __post_init__(self) -> None:
        self.pages = -(-self.size // PAGE_SIZE) * PAGE_SIZE
        self.bytes = bytearray(b"\xee" * self.pages)
        self.held = RangeSet()

    async def write(self, data: memoryview, offset: int, then: Then | None) -> None:
        ensure(offset % PAGE_SIZE == 0 and len(data) % PAGE_SIZE == 0, "not whole pages")
        ensure(0 < len(data) <= self.pages - offset, "not within the blob")
        self.running += 1
        try:
            await asyncio.sleep(self.delay)
            if (error := self.behave(offset, len(data))) is not None:
                raise error
            ensure(not self.held.overlaps(offset, offset + len(data)), "written twice")
            self.bytes[offset : offset + len(data)] = data
            self.held.add(offset, offset + len(data))
            self.writes.append((offset, offset + len(data)))
            if then is not None:
                then()
        finally:
            self.running -= 1

    def check(self, data: bytes) -> None:
        """What was written is the origin's, and zeros in the rest of the last page."""
        padded = data + bytes(self.pages - len(data))
        for start, end in self.held:
            assert self.bytes[start:end] == padded[start:end]


def make_fill(origin: FakeOrigin, cache: Cache, timeout: float = 30.0, **more: Any) -> Fill:
    """A Fill between the two."""
    return Fill(origin, len(origin.data), cache.write, timeout=timeout, name="blob", **more)
