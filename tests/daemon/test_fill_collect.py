"""The fill engine under a stream: writes are collected, and nobody waits for that in vain."""

from __future__ import annotations

import asyncio

from tests.daemon.helpers import KIB, MIB, Cache, FakeOrigin, Get, content, make_fill, now, run

FAST = 118 << 20  # bytes per second: 1 Gbit/s
STEP = 128 * KIB


def test_little_of_a_fast_stream_waits_for_more() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(4 * MIB), lambda *_: Get(piece=64 * KIB))
        cache = Cache(4 * MIB)
        fill = make_fill(origin, cache)
        fill.pace.rate = FAST
        fill.prefetch(0, 4 * MIB)
        await fill.read(0, STEP)
        assert cache.writes == [(0, 512 * KIB)]
        await fill.close()

    run(main())


def test_a_slow_stream_is_written_as_it_comes() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(4 * MIB), lambda *_: Get(piece=64 * KIB))
        cache = Cache(4 * MIB)
        fill = make_fill(origin, cache)
        fill.pace.rate = FAST // 10
        fill.prefetch(0, 4 * MIB)
        await fill.read(0, STEP)
        assert cache.writes == [(0, STEP)]
        await fill.close()

    run(main())


def test_a_random_read_from_a_fast_origin_is_written_at_once() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(4 * MIB), lambda *_: Get(piece=4 * KIB))
        cache = Cache(4 * MIB)
        fill = make_fill(origin, cache)
        fill.pace.rate = FAST
        began = now()
        await fill.read(MIB, 8 * KIB)
        assert now() == began
        assert cache.writes[0] == (MIB, MIB + 8 * KIB)
        await fill.close()

    run(main())


def test_what_was_collected_is_written_although_nothing_follows() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(4 * MIB), lambda *_: Get(piece=STEP, stop=2 * STEP, hang=True))
        cache = Cache(4 * MIB)
        fill = make_fill(origin, cache)
        fill.pace.rate = FAST
        fill.prefetch(0, 4 * MIB)
        began = now()
        await asyncio.gather(fill.read(0, STEP), fill.read(STEP, STEP))
        assert now() - began < 0.01
        assert cache.writes == [(0, 2 * STEP)]
        await fill.close()

    run(main())
