"""What is counted: bytes by why they were fetched, times by what was waited for."""

from __future__ import annotations

import asyncio

import pytest
from tests.daemon.helpers import (
    KIB,
    MIB,
    Cache,
    FakeOrigin,
    Get,
    content,
    final,
    make_fill,
    now,
    passing,
    run,
    settle,
)

from pagein.daemon.fill import Fill
from pagein.daemon.tally import BUCKETS, HOSTS, OTHERS, Cause, Histogram, Kind, Tally


def test_bytes_by_why_they_came() -> None:
    async def main() -> Tally:
        origin, cache = FakeOrigin(content(8 * MIB)), Cache(8 * MIB)
        tally = Tally()
        fill = make_fill(origin, cache, tally=tally)
        await fill.read(MIB, 4 * KIB)
        await settle()
        brought = cache.held.total
        assert tally.fetched == counts(demand=4 * KIB, ahead=brought - 4 * KIB)
        assert await fill.prefetched(4 * MIB, 256 * KIB)
        expected = counts(demand=4 * KIB, ahead=brought - 4 * KIB, prefetch=256 * KIB)
        assert tally.fetched == expected
        assert sum(tally.fetched.values()) == fill.fetched == cache.held.total
        await fill.close()
        return tally

    tally = run(main())
    assert tally.failed_fetches == 0
    assert {kind: each.count for kind, each in tally.fetches.items()} == {
        **dict.fromkeys(Kind, 0),
        Kind.DEMAND: 1,
        Kind.PREFETCH: 1,
    }


def test_what_a_reader_waits_for_is_demand_whoever_asked_first() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(piece=64 * KIB, delay=1.0))
        tally = Tally()
        fill = make_fill(origin, Cache(MIB), tally=tally)
        fill.prefetch(0, 256 * KIB)
        await asyncio.sleep(0.5)
        await fill.read(128 * KIB, 8 * KIB)
        await asyncio.sleep(10)
        assert tally.fetched == counts(demand=8 * KIB, prefetch=248 * KIB)
        await fill.close()

    run(main())


def test_seconds_by_what_was_waited_for() -> None:
    async def main() -> Tally:
        origin = FakeOrigin(content(MIB), lambda *_: Get(delay=2.0))
        tally = Tally()
        fill = make_fill(origin, Cache(MIB), tally=tally)
        first = asyncio.create_task(fill.read(0, 4 * KIB))
        await asyncio.sleep(1.0)
        second = asyncio.create_task(fill.read(0, 4 * KIB))
        await settle()
        assert sorted(fill.waits) == [(now() - 1.0, 0, 4 * KIB), (now(), 0, 4 * KIB)]
        await asyncio.gather(first, second)
        await fill.read(0, 4 * KIB)
        assert fill.waits == []
        fill.settle(*_taken(fill, 512 * KIB), landed=True, seconds=0.25)
        await fill.close()
        return tally

    tally = run(main())
    found = {cause: (each.count, each.sum) for cause, each in tally.reads.items()}
    assert found == {
        Cause.PRESENT: (1, 0.0),
        Cause.AT_HAND: (1, 0.25),
        Cause.IN_FLIGHT: (1, 1.0),
        Cause.FETCHED: (1, 2.0),
    }
    assert tally.fetches[Kind.DEMAND].sum == 2.0
    assert tally.fetched[Kind.DEMAND] == 8 * KIB


def _taken(fill: Fill, start: int) -> tuple[int, int]:
    assert fill.take(start, start + 4 * KIB)
    return start, start + 4 * KIB


def test_failures_and_retries() -> None:
    async def main() -> Tally:
        answers = [passing(), passing(), final()]
        origin = FakeOrigin(content(MIB), lambda *_: Get(stop=0, error=answers.pop(0)))
        tally = Tally()
        fill = make_fill(origin, Cache(MIB), tally=tally)
        with pytest.raises(OSError, match="404"):
            await fill.read(0, 4 * KIB)
        await fill.close()
        return tally

    tally = run(main())
    assert (tally.failed_fetches, tally.retries) == (3, 2)
    assert tally.reads[Cause.FETCHED].count == 1
    assert sum(tally.fetched.values()) == 0


def test_a_histogram_counts_each_in_the_bucket_of_its_bound() -> None:
    histogram = Histogram()
    for seconds in (0.0, BUCKETS[0], BUCKETS[0] + 1e-9, BUCKETS[-1], 1e6):
        histogram.observe(seconds)
    assert histogram.counts[:2] == [2, 1]
    assert histogram.counts[-2:] == [1, 1]
    assert histogram.count == 5


def test_answers_by_host_are_bounded() -> None:
    tally = Tally()
    for number in range(HOSTS + 10):
        tally.answered(f"host-{number}", "206")
    tally.answered("host-0", "503")
    tally.answered("host-0", "failed")
    tally.answered("host-0", "401")  # which asks for a token
    hosts = tally.values()["hosts"]
    assert hosts["host-0"] == {"requests": 4, "errors": 2}
    assert hosts[OTHERS] == {"requests": 10, "errors": 0}
    assert len(hosts) == HOSTS + 1


def counts(**given: int) -> dict[Kind, int]:
    """By kind; what is not given is 0."""
    return {kind: given.get(kind, 0) for kind in Kind}
