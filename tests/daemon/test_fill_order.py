"""The fill engine: who goes first, how much at once, and what its owner does to it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
    settle,
)

from pagein.daemon.buffers import Budget


def test_demand_goes_before_prefetch() -> None:
    order: list[int] = []

    async def main() -> None:
        origin = FakeOrigin(content(8 * MIB), lambda *_: Get(piece=256 * KIB, delay=1.0))
        cache = Cache(8 * MIB)
        fill = make_fill(origin, cache)
        fill.prefetch(0, 4 * MIB)
        await asyncio.sleep(2.5)
        began = now()
        await fill.read(6 * MIB, 64 * KIB)
        assert now() - began == 1.0
        order.extend(start for start, _ in cache.writes)
        before = len(cache.writes)
        await fill.read(3 * MIB, 4096)  # now the prefetch is what somebody waits for
        assert len(cache.writes) > before
        cache.check(origin.data)
        await fill.close()

    run(main())
    assert order[-1] == 6 * MIB


def test_who_wants_to_know_when_a_prefetch_is_over_waits_for_it() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(piece=64 * KIB, delay=0.1))
        cache = Cache(MIB)
        fill = make_fill(origin, cache)
        fill.prefetch(0, 256 * KIB)
        assert await fill.prefetched(128 * KIB, 256 * KIB)
        assert cache.held.covers(0, 384 * KIB)
        assert len(origin.gets) == 2
        origin.behave = lambda *_: Get(stop=0, error=passing())
        assert not await fill.prefetched(512 * KIB, 4096)
        await fill.close()
        with pytest.raises(OSError, match="closed"):
            await fill.prefetched(0, MIB)

    run(main())


def test_a_prefetch_stands_still_while_somebody_waits_for_something_else() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(8 * MIB), lambda *_: Get(piece=77_777, delay=0.1))
        cache = Cache(8 * MIB)
        slow = FakeOrigin(content(MIB), lambda *_: Get(delay=10.0))
        budget = Budget()
        fill = make_fill(origin, cache, budget=budget)
        other = make_fill(slow, Cache(MIB), budget=budget)
        fill.prefetch(0, 4 * MIB)
        await asyncio.sleep(1.0)
        waiting = asyncio.create_task(other.read(0, 4096))
        await asyncio.sleep(1.0)
        held = fill.fetched
        await asyncio.sleep(5.0)
        assert fill.fetched == held
        await waiting
        await asyncio.sleep(10.0)
        assert fill.fetched == 4 * MIB
        cache.check(origin.data)

    run(main())


def test_what_comes_along_with_a_read_does_not_wait_for_others() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(piece=64 * KIB, delay=0.1), unit=512 * KIB)
        slow = FakeOrigin(content(MIB), lambda *_: Get(delay=10.0))
        budget, cache = Budget(), Cache(MIB)
        fill = make_fill(origin, cache, budget=budget)
        other = make_fill(slow, Cache(MIB), budget=budget)
        waiting = asyncio.create_task(other.read(0, 4096))
        await fill.read(128 * KIB, 4096)
        began = now()
        assert await fill.prefetched(0, 512 * KIB)
        assert now() - began < 5.0
        assert not waiting.done()
        await waiting
        cache.check(origin.data)
        await fill.close()
        await other.close()

    run(main())


def test_a_link_bound_stream_asks_for_its_next_window_before_the_current_one_ends() -> None:
    overlapped: list[int] = []

    async def main() -> None:
        def behave(_offset: int, _length: int) -> Get:
            overlapped.append(len(origin.running))
            return Get(piece=32 * KIB, delay=0.01)

        origin = FakeOrigin(content(16 * MIB), behave)
        cache = Cache(16 * MIB)
        fill = make_fill(origin, cache)
        for off in range(0, 16 * MIB, 128 * KIB):
            await fill.read(off, 128 * KIB)
        cache.check(origin.data)
        assert cache.held.covers(0, 16 * MIB)
        await fill.close()

    run(main())
    assert len(overlapped) < 16
    assert all(running == 2 for running in overlapped[2:])


def test_when_a_fetch_is_over_what_the_policy_wants_next_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB))
        fill = make_fill(origin, Cache(MIB))
        ends = {64 * KIB: (64 * KIB, 256 * KIB)}
        monkeypatch.setattr(fill._policy, "follow", lambda end, limit: ends.get(end, (end, end)))
        await fill.read(0, 64 * KIB)
        await settle()
        assert origin.gets == [(0, 64 * KIB), (64 * KIB, 256 * KIB)]
        await fill.close()

    run(main())


def test_random_reads_fetch_little_around_themselves() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(64 * MIB))
        fill = make_fill(origin, Cache(64 * MIB))
        for step in range(20):
            await fill.read((step * 7919 % 1000) * 64 * KIB + 8192, 8192)
        assert fill.fetched == 20 * 64 * KIB

    run(main())


def test_memory_is_bounded_and_shared_fairly() -> None:
    async def main() -> None:
        budget = Budget(4 * MIB, ahead=1)
        made = budget._left
        origin = FakeOrigin(content(64 * MIB), lambda *_: Get(piece=100_000, delay=0.01))
        cache = Cache(64 * MIB, delay=0.05)
        fill = make_fill(origin, cache, budget=budget)
        reads = [fill.read(off * MIB, 512 * KIB) for off in range(0, 64, 2)]
        await asyncio.gather(*reads)
        cache.check(origin.data)
        await fill.close()
        assert budget._left + len(budget._free) == made == 4
        assert not budget._urgent and not budget._running

    run(main())


def test_held_back_prefetches_do_not_keep_the_buffers() -> None:
    async def main() -> None:
        budget = Budget(4 * MIB, ahead=100)
        origin = FakeOrigin(content(64 * MIB), lambda *_: Get(piece=100_000, delay=0.01))
        cache = Cache(64 * MIB)
        fill = make_fill(origin, cache, budget=budget)
        for off in range(0, 40, 2):
            fill.prefetch(off * MIB, 2 * MIB - 4096)
        await asyncio.sleep(0.015)
        await asyncio.gather(*(fill.read(off * MIB, 4096) for off in range(41, 64)))
        assert len(origin.running) <= 16
        await fill.close()
        cache.check(origin.data)

    run(main())


def test_close_fails_the_reads_and_ends_the_fetches() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(8 * MIB), lambda *_: Get(delay=1.0))
        cache = Cache(8 * MIB, delay=3.0)
        fill = make_fill(origin, cache)
        reads = [asyncio.create_task(fill.read(off, MIB)) for off in (0, MIB, 4 * MIB)]
        await asyncio.sleep(2.5)
        await fill.close()
        assert origin.running == [] and cache.running == 0
        for result in await asyncio.gather(*reads, return_exceptions=True):
            assert isinstance(result, OSError) and result.errno == errno.ECANCELED
        with pytest.raises(OSError):
            await fill.read(7 * MIB, 4096)
        cache.check(origin.data)

    run(main())


def test_close_before_a_fetch_took_its_first_step_leaves_no_trace() -> None:
    async def main() -> None:
        budget = Budget()
        fill = make_fill(FakeOrigin(content(MIB)), Cache(MIB), budget=budget)
        read = asyncio.create_task(fill.read(0, 4096))
        await asyncio.sleep(0)
        await fill.close()
        await asyncio.gather(read, return_exceptions=True)
        other = make_fill(FakeOrigin(content(MIB)), Cache(MIB), budget=budget)
        other.prefetch(0, MIB)
        await settle()
        assert other.covers(0, MIB)

    run(main())


def test_close_ends_a_pause_between_tries() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(stop=0, error=passing()))
        fill = make_fill(origin, Cache(MIB))
        read = asyncio.create_task(fill.read(0, 4096))
        await asyncio.sleep(5.0)
        began = now()
        await fill.close()
        with pytest.raises(OSError, match="closed"):
            await read
        assert now() == began

    run(main())


def test_what_is_known_to_be_present_is_not_fetched() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(100_000))
        cache = Cache(100_000)
        fill = make_fill(origin, cache)
        fill.seed([(0, 10_000), (50_000, 60_000), (98_304, 200_000)])
        await fill.read(0, 65_536)
        await fill.read(65_536, 65_536)
        assert origin.gets == [(8192, 53_248), (57_344, 65_536), (65_536, 98_304)]
        cache.check(origin.data)

    run(main())


def test_seeding_wakes_those_who_wait_for_it() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(stop=0, hang=True))
        fill = make_fill(origin, Cache(MIB))
        read = asyncio.create_task(fill.read(0, 64 * KIB))
        await asyncio.sleep(1.0)
        fill.seed([(0, MIB)])
        await read
        await fill.close()

    run(main())


def test_what_was_lost_is_fetched_again() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB))
        cache = Cache(MIB)
        fill = make_fill(origin, cache)
        await fill.read(0, 64 * KIB)
        fill.forget(8192, 4096)
        cache.held.discard(8192, 12288)
        await fill.read(8192, 4096)
        assert origin.gets[1:] == [(8192, 12288)]

    run(main())


def test_a_claim_leaves_out_what_others_have_brought() -> None:
    held: list[tuple[int, int]] = []

    @asynccontextmanager
    async def claim(start: int, end: int) -> AsyncIterator[list[tuple[int, int]]]:
        held.append((start, end))
        yield [(start, start + 8192), (start + 16384, end - 4096)]
        assert cache.running == 0
        held.remove((start, end))

    cache = Cache(MIB)

    async def main() -> None:
        origin = FakeOrigin(content(MIB))
        fill = make_fill(origin, cache, claim=claim)
        await fill.read(0, 64 * KIB)
        assert origin.gets == [(0, 8192), (16384, 61440)]
        await settle()
        assert held == []
        cache.check(origin.data)

    run(main())


def test_a_claim_that_cannot_be_had_fails_the_read() -> None:
    @asynccontextmanager
    async def claim(start: int, end: int) -> AsyncIterator[list[tuple[int, int]]]:
        if start >= 0:
            raise OSError(errno.ENOLCK, "no locks available")
        yield []

    async def main() -> None:
        origin = FakeOrigin(content(MIB))
        fill = make_fill(origin, Cache(MIB), claim=claim)
        with pytest.raises(OSError, match="no locks") as caught:
            await fill.read(0, 4096)
        assert caught.value.errno == errno.ENOLCK
        assert origin.gets == []

    run(main())


def test_windows_fit_a_slow_link() -> None:
    async def main() -> None:
        size = 32 * MIB
        origin = FakeOrigin(content(size), lambda *_: Get(piece=64 * KIB, delay=1 / 32))  # 2 MiB/s
        fill = make_fill(origin, Cache(size))
        for off in range(0, size, 128 * KIB):
            await fill.read(off, 128 * KIB)
        longest = max(end - start for start, end in origin.gets)
        assert longest <= 4 * MIB
        await fill.close()

    run(main())


def test_the_write_that_completes_a_read_says_so_and_no_other_does() -> None:
    said: list[tuple[str, bool]] = []

    async def main() -> None:
        def behave(offset: int, _length: int) -> Get:
            return Get(piece=MIB, delay=1.0 if offset else 0.0)

        cache = Cache(MIB)
        fill = make_fill(FakeOrigin(content(MIB), behave), cache)
        fill.seed([(128 * KIB, 192 * KIB)])  # so the read has two parts, and the second is late

        async def read(name: str, off: int, length: int) -> None:
            def then() -> None:
                said.append((name, cache.held.covers(off, 128 * KIB)))

            await fill.read(off, length, then)

        await asyncio.gather(read("whole", 0, MIB), read("first", 0, 4096), read("twin", 0, 4096))
        await read("present", 0, 64 * KIB)
        assert fill.covers(0, MIB)

    run(main())
    assert sorted(said[:2]) == [("first", True), ("twin", True)]
    assert said[2:] == [("whole", True)]
