"""The fill engine: who waits for what, and what is fetched how often."""

from __future__ import annotations

import asyncio
import errno
import logging

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
)

from pagein.origins.base import OriginError
from pagein.origins.retry import FIRST


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


def test_an_origin_hears_of_each_request_before_it_is_made() -> None:
    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: Get(delay=0.1))
        fill = make_fill(origin, Cache(MIB))
        await asyncio.gather(*(fill.read(n * 256 * KIB, 64 * KIB) for n in (0, 1, 3)))
        assert origin.prepared == [0, 1, 2]

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


def test_a_pause_that_the_server_asks_for_is_kept() -> None:
    asked = OriginError(5, "503", retry=True, after=7.0)
    answers = [Get(stop=0, error=asked), Get()]

    async def main() -> None:
        origin = FakeOrigin(content(MIB), lambda *_: answers.pop(0))
        began = now()
        await make_fill(origin, Cache(MIB)).read(0, 4096)
        assert 7.0 <= now() - began <= 7.0 + FIRST

    run(main())


def test_a_pause_that_goes_beyond_the_deadline_fails_the_read_now() -> None:
    """There is nothing to wait for."""

    async def main() -> None:
        asked = OriginError(5, "comes back tomorrow", retry=True, after=86400.0)
        origin = FakeOrigin(content(MIB), lambda *_: Get(stop=0, error=asked))
        began = now()
        with pytest.raises(OSError, match="tomorrow"):
            await make_fill(origin, Cache(MIB)).read(0, 4096)
        assert (now(), len(origin.gets)) == (began, 1)

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

    async def write(data: memoryview, offset: int, then: object) -> None:
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
