"""The fill engine against a model: anything may fail, hang or be cancelled, at any moment.

Checked by the fakes while it runs: no byte is fetched twice at once, none is written twice, memory
that is being written does not change. Checked here: every read is over by its deadline; one that
succeeded has its bytes in the cache; the cache holds nothing but what the origin has.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
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
)

from pagein.daemon.buffers import Budget
from pagein.daemon.fill import Fill

TIMEOUT = 10.0
SIZE = 2 * MIB + 1234
DATA = content(SIZE)


@dataclass(frozen=True)
class Step:
    """A read that begins `after` seconds after the last one, cancelled after `patience`."""

    off: int
    length: int
    after: float
    patience: float | None
    ahead: bool  # a prefetch instead, for which nobody waits
    watched: bool  # but for its end


GETS = st.one_of(
    st.builds(Get, piece=st.sampled_from([1000, 4096, 64 * KIB, MIB]), delay=st.floats(0, 0.5)),
    st.builds(
        Get,
        piece=st.sampled_from([1000, 64 * KIB]),
        delay=st.floats(0, 0.5),
        stop=st.integers(0, 100 * KIB),
        error=st.sampled_from([None, passing(), final(), ValueError("a bug"), OSError(5, "io")]),
    ),
    st.builds(Get, stop=st.integers(0, 100 * KIB), hang=st.just(True)),
    st.builds(Get, extra=st.integers(1, 5000)),
    st.builds(Get, stop=st.integers(0, 50 * KIB), empty=st.just(True), hang=st.just(True)),
)
STEPS = st.lists(
    st.builds(
        Step,
        off=st.one_of(st.integers(0, SIZE + 8192), st.integers(0, 40).map(lambda n: n * 16 * KIB)),
        length=st.one_of(st.just(4096), st.integers(0, 300 * KIB)),
        after=st.one_of(st.just(0.0), st.floats(0, 3.0)),
        patience=st.one_of(st.none(), st.floats(0, 2.0)),
        ahead=st.integers(0, 4).map(lambda n: n == 0),
        watched=st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=150)
@given(
    steps=STEPS,
    gets=st.lists(GETS, max_size=30),
    write_errors=st.sets(st.integers(0, 20), max_size=3),
    write_delay=st.sampled_from([0.0, 0.01, 1.0]),
    buffers=st.integers(2, 8),
    unit=st.sampled_from([1, 100 * KIB, 512 * KIB]),
    close_after=st.one_of(st.none(), st.floats(0, 20)),
)
def test_whatever_happens_the_bytes_are_right_and_nobody_waits_for_ever(
    steps: list[Step],
    gets: list[Get],
    write_errors: set[int],
    write_delay: float,
    buffers: int,
    unit: int,
    close_after: float | None,
) -> None:
    plan, writes = iter(gets), iter(range(1 << 30))

    def fail(_offset: int, _length: int) -> BaseException | None:
        return OSError(105, "no space") if next(writes) in write_errors else None

    async def main() -> None:
        origin = FakeOrigin(DATA, lambda *_: next(plan, Get(piece=10_000)), unit=unit)
        cache = Cache(SIZE, delay=write_delay, behave=fail)
        # Small buffers make every case of "the buffer is full" happen within a small blob.
        budget = Budget(buffers * 64 * KIB, buffer_size=64 * KIB, ahead=1)
        fill = make_fill(origin, cache, timeout=TIMEOUT, budget=budget)
        reads = []
        for step in steps:
            await asyncio.sleep(step.after)
            if step.ahead and step.watched:
                watching = _watch(fill, cache, step)
                reads.append(asyncio.create_task(watching))
            elif step.ahead:
                fill.prefetch(step.off, step.length)
            else:
                reads.append(asyncio.create_task(_one(fill, cache, step)))
        if close_after is not None:
            await asyncio.sleep(close_after)
            await fill.close()
        await asyncio.gather(*reads)
        if close_after is None:
            await asyncio.sleep(TIMEOUT)
            origin.behave, cache.behave = lambda *_: Get(), lambda *_: None
            for _ in range(200):  # what is under way may be slow, and is not abandoned for that
                if await _readable(fill):
                    break
            assert cache.held.covers(0, SIZE)
        await fill.close()
        cache.check(DATA)
        assert origin.running == [] and cache.running == 0
        assert not budget._running and not budget._urgent
        assert budget._left + len(budget._free) == buffers

    run(main())


async def _readable(fill: Fill) -> bool:
    try:
        await fill.read(0, SIZE)
    except OSError:
        await asyncio.sleep(1.0)
        return False
    return True


async def _watch(fill: Fill, cache: Cache, step: Step) -> None:
    try:
        async with asyncio.timeout(step.patience):
            here = await fill.prefetched(step.off, step.length)
    except TimeoutError:
        return
    except OSError:  # closed
        return
    start, end = min(step.off, SIZE), min(step.off + step.length, SIZE)
    assert not here or cache.held.covers(start, end)


async def _one(fill: Fill, cache: Cache, step: Step) -> None:
    began = now()
    try:
        async with asyncio.timeout(step.patience):
            await fill.read(step.off, step.length)
    except TimeoutError:
        return  # the reader's patience, or the origin's ETIMEDOUT
    except OSError:
        assert now() - began <= TIMEOUT
        return
    assert now() - began <= TIMEOUT
    if step.length:
        end = min(step.off + step.length, SIZE)
        assert cache.held.covers(min(step.off, end), end)
