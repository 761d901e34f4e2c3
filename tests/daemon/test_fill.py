"""The fill engine: who waits for what, and what is fetched how often."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.daemon.helpers import (
    KIB,
    MIB,
    Cache,
    FakeOrigin,
    Get,
    Stuck,
    content,
    final,
    make_fill,
    now,
    passing,
    run,
    settle,
)

from pagein.daemon.buffers import Budget


def test_the_clock_of_these_tests_finds_a_wait_without_end() -> None:
    with pytest.raises(Stuck):
        run(asyncio.Event().wait())


def test_a_read_brings_its_bytes_and_pads_the_last_page() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(10_000))
        cache = Cache(10_000)
        fill = make_fill(origin, cache)
        await fill.read(8192, 4096)
        cache.check(origin.data)
        assert cache.held.covers(8192, 12288)
        assert origin.gets == [(0, 10_000)]
        await fill.read(0, 12288)
        assert len(origin.gets) == 1
        assert fill.fetched == 12288

    run(main())


@pytest.mark.parametrize(("off", "length"), [(12288, 4096), (1 << 40, 1 << 20), (0, 0), (5000, 0)])
def test_a_read_of_nothing_asks_nobody(off: int, length: int) -> None:
    async def main() -> None:
        origin = FakeOrigin(content(10_000))
        await make_fill(origin, Cache(10_000)).read(off, length)
        assert origin.gets == []

    run(main())


def test_32_readers_of_one_range_cause_one_fetch() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(delay=0.1))
        cache = Cache(MIB)
        fill = make_fill(origin, cache)
        await asyncio.gather(*(fill.read(128 * KIB, 64 * KIB) for _ in range(32)))
        assert origin.gets == [(128 * KIB, 192 * KIB)]
        cache.check(origin.data)

    run(main())


def test_a_cancelled_reader_does_not_take_the_fetch_along() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(delay=1.0))
        fill = make_fill(origin, Cache(MIB))
        first = asyncio.create_task(fill.read(0, 64 * KIB))
        second = asyncio.create_task(fill.read(0, 64 * KIB))
        await asyncio.sleep(0.5)
        first.cancel()
        await second
        assert first.cancelled()
        assert len(origin.gets) == 1

    run(main())


def test_a_fetch_without_readers_is_finished_all_the_same() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(delay=1.0))
        cache = Cache(MIB)
        fill = make_fill(origin, cache)
        task = asyncio.create_task(fill.read(0, 64 * KIB))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.sleep(1.0)
        assert fill.covers(0, 64 * KIB)
        await fill.read(0, 64 * KIB)
        assert len(origin.gets) == 1

    run(main())


def test_a_read_is_answered_while_the_rest_of_its_window_is_under_way() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(piece=128 * KIB, delay=1.0))
        fill = make_fill(origin, Cache(MIB))
        fill.prefetch(0, MIB)
        began = now()
        await fill.read(0, 4096)
        assert now() - began == 1.0
        await fill.read(300 * KIB, 4096)
        assert now() - began == 3.0
        assert origin.running == [(0, MIB)]
        await fill.close()

    run(main())


def test_small_writes_join_while_one_is_running() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(piece=4096, delay=0.01))
        cache = Cache(MIB, delay=0.5)
        fill = make_fill(origin, cache)
        fill.prefetch(0, 400 * KIB)
        await asyncio.gather(*(fill.read(4096 * page, 4096) for page in range(100)))
        assert len(cache.writes) < 6
        cache.check(origin.data)

    run(main())


def test_a_complete_read_is_written_although_the_origin_falls_silent_meanwhile() -> None:
    async def main() -> None:
        origin = FakeOrigin(
            content(MIB), lambda *_: Get(piece=4096, stop=8192, delay=1.0, hang=True)
        )
        fill = make_fill(origin, Cache(MIB, delay=5.0))
        fill.prefetch(0, MIB)
        began = now()
        await asyncio.gather(fill.read(0, 4096), fill.read(4096, 4096))
        # The second page came while the first was being written, and nothing came after it.
        assert now() - began == 11.0
        await fill.close()

    run(main())


def test_what_came_before_an_error_stays_and_satisfies_its_readers() -> None:
    async def main() -> None:
        behave = lambda *_: Get(piece=4096, stop=32 * KIB + 10, error=final(), delay=0.1)  # noqa: E731
        origin = FakeOrigin(content(MIB), behave)
        cache = Cache(MIB)
        fill = make_fill(origin, cache)
        first, second = await asyncio.gather(
            fill.read(0, 32 * KIB), fill.read(0, 64 * KIB), return_exceptions=True
        )
        assert first is None
        assert isinstance(second, OSError) and second.errno == errno.ENOENT
        assert cache.held.covers(0, 32 * KIB)
        assert not cache.held.overlaps(32 * KIB, 64 * KIB)
        cache.check(origin.data)
        await fill.close()

    run(main())


def test_neighbours_of_a_bad_byte_are_served() -> None:
    def behave(offset: int, length: int) -> Get:
        bad = 128 * KIB
        return Get(stop=bad - offset, error=final()) if offset <= bad < offset + length else Get()

    async def main() -> None:
        origin = FakeOrigin(content(MIB), behave)
        cache = Cache(MIB)
        fill = make_fill(origin, cache)
        fill.prefetch(0, MIB)
        results = await asyncio.gather(
            *(fill.read(off * KIB, 64 * KIB) for off in (0, 64, 128, 192)), return_exceptions=True
        )
        assert [type(each) for each in results[:2]] == [type(None)] * 2
        assert isinstance(results[2], FileNotFoundError)
        assert results[3] is None
        cache.check(origin.data)

    run(main())


def test_passing_errors_are_tried_again() -> None:
    answers = [Get(stop=0, error=passing()), Get(stop=8192, error=passing()), Get()]

    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: answers.pop(0))
        cache = Cache(MIB)
        fill = make_fill(origin, cache)
        await fill.read(0, 64 * KIB)
        assert origin.gets == [(0, 64 * KIB), (0, 64 * KIB), (8192, 64 * KIB)]
        cache.check(origin.data)
        assert fill.errors == 0

    run(main())


def test_32_readers_try_again_as_one() -> None:
    answers = [Get(stop=0, error=passing(), delay=0.1)] * 3 + [Get(delay=0.1)]

    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: answers.pop(0))
        fill = make_fill(origin, Cache(MIB))
        await asyncio.gather(*(fill.read(0, 64 * KIB) for _ in range(32)))
        assert answers == []

    run(main())


def test_a_server_that_stays_down_fails_the_read_by_its_deadline(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(stop=0, error=passing()))
        fill = make_fill(origin, Cache(MIB))
        began = now()
        with pytest.raises(OSError, match="503") as caught:
            await fill.read(0, 64 * KIB)
        assert caught.value.errno == errno.EIO
        assert 20 < now() - began <= 30
        assert len(origin.gets) > 10
        # The kernel asks again, page by page: none of that may cost a request or a wait.
        asked, failed = len(origin.gets), now()
        for page in range(16):
            with pytest.raises(OSError, match="503"):
                await fill.read(4096 * page, 4096)
        assert (len(origin.gets), now()) == (asked, failed)
        await asyncio.sleep(0.6)
        origin.behave = lambda *_: Get()
        await fill.read(0, 64 * KIB)
        assert (fill.errors, fill.last_error) == (1, "the server answered 503")

    run(main())
    failures = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert [each.getMessage() for each in failures] == [
        "blob: read of 65536 bytes at 0 failed: the server answered 503"
    ]


def test_a_hanging_server_is_asked_once_more_and_then_the_read_fails() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(stop=8192, hang=True))
        cache = Cache(MIB)
        fill = make_fill(origin, cache)
        began = now()
        with pytest.raises(OSError) as caught:
            await fill.read(0, 64 * KIB)
        assert now() - began <= 30
        assert caught.value.errno in (errno.EIO, errno.ETIMEDOUT)
        assert [start for start, _ in origin.gets][:2] == [0, 8192]
        assert cache.held.covers(0, 8192)
        await fill.close()

    run(main())


def test_a_connection_that_hangs_once_is_replaced() -> None:
    answers = [Get(stop=0, hang=True), Get()]

    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: answers.pop(0))
        fill = make_fill(origin, Cache(MIB))
        await fill.read(0, 64 * KIB)
        assert len(origin.gets) == 2

    run(main())


@pytest.mark.parametrize(
    ("get", "text"),
    [
        (Get(stop=100), "sent 100 bytes of 65536"),
        (Get(stop=4096, empty=True, hang=True), "sent 4096 bytes of"),
        (Get(extra=1), "sent 65537 bytes of 65536"),
        (Get(stop=0, error=ValueError("a bug")), "a bug"),
        (Get(stop=0, error=PermissionError(errno.EACCES, "no")), "no"),
    ],
)
def test_origins_that_do_not_keep_their_word(get: Get, text: str) -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: get)
        cache = Cache(MIB)
        fill = make_fill(origin, cache, timeout=1.0)
        if get.extra:  # every byte asked for has arrived
            await fill.read(0, 64 * KIB)
        else:
            with pytest.raises(OSError, match=text):
                await fill.read(0, 64 * KIB)
        cache.check(origin.data)
        await fill.close()

    run(main())


def test_no_space_fails_the_read_and_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB))
        cache = Cache(MIB, behave=lambda *_: OSError(errno.ENOBUFS, "no space left in the cache"))
        fill = make_fill(origin, cache)
        with pytest.raises(OSError, match="no space") as caught:
            await fill.read(0, 64 * KIB)
        assert caught.value.errno == errno.ENOBUFS
        with pytest.raises(OSError, match="no space"):
            await fill.read(4096, 4096)
        assert len(origin.gets) == 1
        assert not fill.covers(0, 4096)

    run(main())
    assert "cannot write to the cache" in caplog.text


def test_a_write_that_hangs_is_given_up_and_its_memory_is_not_used_again() -> None:
    seen: list[memoryview] = []
    copies: list[bytes] = []

    async def write(data: memoryview, offset: int) -> None:
        if not seen:
            seen.append(data)
            copies.append(bytes(data))
            await asyncio.sleep(1e9)

    async def main() -> None:
        origin = FakeOrigin(content(MIB))
        fill = make_fill(origin, Cache(MIB), timeout=2.0)
        fill.write = write
        with pytest.raises(OSError, match=r"cannot write|no answer"):
            await fill.read(0, 64 * KIB)
        for granule in range(1, 16):
            await fill.read(granule * 64 * KIB, 64 * KIB)
        assert bytes(seen[0]) == copies[0]

    run(main())


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
