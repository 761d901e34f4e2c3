"""Background: what nobody asked for is fetched while nobody waits, in small requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.daemon.helpers import (
    KIB,
    MIB,
    Cache,
    FakeOrigin,
    Get,
    content,
    make_fill,
    now,
    passing,
    run,
)

from pagein.daemon.background import REQUEST_LEAST, REQUEST_MOST, Background
from pagein.daemon.buffers import Budget
from pagein.daemon.fill import Fill
from pagein.daemon.policy import parse_background

SIZE = 8 * MIB + 1234


async def _complete(fill: Fill) -> None:
    for _ in range(10_000):
        if fill.complete:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it is not completed")


@pytest.mark.parametrize(
    ("text", "rate"),
    [("off", None), ("idle", float("inf")), ("500k", 5e5), ("10M", 1e7), ("1.5G", 1.5e9)],
)
def test_a_policy_is_off_idle_or_bytes_per_second(text: str, rate: float | None) -> None:
    assert parse_background(text) == rate


@pytest.mark.parametrize("text", ["", "on", "-1", "0", "1T", "10 M", "٣M", "1e6", "0.5"])
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(OSError, match=r"--background .*: use off, idle"):
        parse_background(text)


def test_a_blob_is_completed_each_byte_once_in_requests_of_limited_size() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(SIZE), lambda *_: Get(delay=0.005))
        cache, budget = Cache(SIZE), Budget()
        fill = make_fill(origin, cache, budget=budget)
        await fill.read(MIB, 64 * KIB)
        background = Background(budget)
        background.add(fill, float("inf"))
        await _complete(fill)
        await background.close()
        cache.check(origin.data)
        assert sum(end - start for start, end in origin.gets) == SIZE
        assert max(end - start for start, end in origin.gets) <= REQUEST_MOST
        assert not background.running

    run(main())


def test_nothing_is_asked_for_while_a_reader_waits() -> None:
    async def main() -> None:
        slow = 5 * MIB
        origin = FakeOrigin(
            content(SIZE), lambda offset, _: Get(delay=5.0 if offset == slow else 0.001)
        )
        budget = Budget()
        fill = make_fill(origin, Cache(SIZE), budget=budget)
        background = Background(budget)
        read = asyncio.create_task(fill.read(slow, 64 * KIB))
        await asyncio.sleep(0.01)
        background.add(fill, float("inf"))
        await asyncio.sleep(4.0)
        assert origin.gets == [(slow, slow + 64 * KIB)]
        await read
        await _complete(fill)
        await background.close()

    run(main())


class LinkedOrigin(FakeOrigin):
    """Behind a link: a round trip, and a rate that answers share, one after the other."""

    rtt, rate = 0.1, 25e6
    pending = most = 0.0  # seconds of the link's time that are on their way

    async def _pieces(self, offset: int, length: int, get: Get) -> AsyncIterator[bytes]:
        self.pending += length / self.rate
        self.most = max(self.most, self.pending)
        await asyncio.sleep(self.rtt)
        for at in range(0, length, 16 * KIB):
            count = min(length - at, 16 * KIB)
            async with self.turn:
                await asyncio.sleep(count / self.rate)
            self.pending -= count / self.rate
            yield self.data[offset + at : offset + at + count]

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.turn = asyncio.Lock()


def test_among_reads_no_more_than_half_a_round_trip_of_the_links_time_is_on_its_way() -> None:
    size = 256 * MIB

    async def main() -> None:
        origin, budget = LinkedOrigin(bytes(size)), Budget()
        fill = make_fill(origin, Cache(size), budget=budget)
        background = Background(budget)
        background.add(fill, float("inf"))
        await asyncio.sleep(5.0)
        assert origin.most > origin.rtt  # alone: the link is full
        await _pages_read(fill, 0, 10, origin.rtt / 2)
        before, origin.most = fill.present.total, 0.0
        await _pages_read(fill, 10, 50, origin.rtt / 2)
        assert fill.present.total > before + 40 * REQUEST_LEAST  # it goes on
        itself = 16 * KIB / origin.rate
        assert origin.most <= origin.rtt / 2 + itself
        assert not fill.complete
        background.remove(fill)
        await background.close()
        await fill.close()

    run(main())


async def _pages_read(fill: Fill, first: int, last: int, pause: float) -> None:
    for number in range(first, last):
        await fill.read(fill.size - (number + 1) * MIB, 4 * KIB)
        await asyncio.sleep(pause)


def test_a_rate_is_not_exceeded() -> None:
    async def main() -> None:
        origin, budget = FakeOrigin(content(SIZE), lambda *_: Get()), Budget()
        fill = make_fill(origin, Cache(SIZE), budget=budget)
        background = Background(budget)
        began = now()
        background.add(fill, float(MIB))
        await _complete(fill)
        assert now() - began >= (SIZE - MIB // 4) / MIB
        await background.close()

    run(main())


def test_what_failed_is_asked_for_again_later() -> None:
    async def main() -> None:
        failing = True
        origin = FakeOrigin(
            content(SIZE), lambda *_: Get(stop=0, error=passing()) if failing else Get()
        )
        budget = Budget()
        fill = make_fill(origin, Cache(SIZE), budget=budget)
        background = Background(budget)
        background.add(fill, float("inf"))
        await asyncio.sleep(20)
        asked = len(origin.gets)
        assert fill.present.total == 0
        assert background.running
        # One pass asks for each part once, and the pauses between passes grow.
        assert asked <= 6 * (SIZE // REQUEST_LEAST + 1)
        failing = False
        await _complete(fill)
        await background.close()

    run(main())


def test_a_blob_that_is_removed_is_asked_for_no_more() -> None:
    async def main() -> None:
        origin, budget = FakeOrigin(content(SIZE), lambda *_: Get(delay=0.01)), Budget()
        fill = make_fill(origin, Cache(SIZE), budget=budget)
        background = Background(budget)
        background.add(fill, float(MIB))
        await asyncio.sleep(1.0)
        background.remove(fill)
        await asyncio.sleep(1.0)
        asked = len(origin.gets)
        await asyncio.sleep(5.0)
        assert len(origin.gets) == asked
        assert not fill.complete
        await background.close()

    run(main())


def test_32_readers_of_one_range_are_woken_in_the_same_turn_of_the_loop() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(delay=0.1))
        fill = make_fill(origin, Cache(MIB))
        turns: list[int] = []
        turn = 0

        async def count() -> None:
            nonlocal turn
            while len(turns) < 32:
                await asyncio.sleep(0)
                turn += fill.covers(0, 64 * KIB)

        async def read() -> None:
            await fill.read(0, 64 * KIB)
            turns.append(turn)

        counting = asyncio.create_task(count())
        await asyncio.gather(*(read() for _ in range(32)), counting)
        assert origin.gets == [(0, 64 * KIB)]
        assert max(turns) - min(turns) <= 1

    async def with_clock() -> None:
        # `count` never sleeps, so the clock is moved from beside it.
        moving = asyncio.create_task(asyncio.sleep(0.2))
        await main()
        await moving

    asyncio.run(with_clock())
