"""What the file of a blob does for readers that go from start to end."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pagein.mounts.stream import AHEAD, DROP_STEP, Advice, Span, Stream

STEP = 128 << 10
NOTHING = Advice(None, None)


def walk(stream: Stream, start: int, count: int, *, waited: bool) -> list[tuple[int, Advice]]:
    """`count` reads from `start` on; the advice that was given, and after which read."""
    reads = range(start, start + count * STEP, STEP)
    given = [(at, stream.follow(at, STEP, waited=waited)) for at in reads]
    return [(at, advice) for at, advice in given if advice != NOTHING]


def test_what_comes_from_memory_is_not_read_ahead_and_let_go_of_behind() -> None:
    given = walk(Stream(), 0, 2 * DROP_STEP // STEP, waited=False)
    assert given == [
        (DROP_STEP - STEP, Advice(Span(0, DROP_STEP), None)),
        (2 * DROP_STEP - STEP, Advice(Span(DROP_STEP, DROP_STEP), None)),
    ]


def test_a_stream_from_disk_is_read_ahead_without_gaps_or_overlaps() -> None:
    given = walk(Stream(), 0, 4 * AHEAD // STEP, waited=True)
    spans = [advice.ahead for _, advice in given if advice.ahead is not None]
    assert spans[0].offset == STEP  # from the first wait on
    for before, after in pairwise(spans):
        assert after.offset == before.offset + before.length
    # Never less than half a window ahead of the reader.
    assert spans[-1].offset + spans[-1].length - 4 * AHEAD >= AHEAD // 2


def test_one_wait_is_enough_to_keep_reading_ahead() -> None:
    stream = Stream()
    assert stream.follow(0, STEP, waited=True).ahead == Span(STEP, AHEAD)
    assert any(advice.ahead for _, advice in walk(stream, STEP, AHEAD // STEP, waited=False))


def test_scattered_reads_are_no_stream() -> None:
    stream = Stream()
    places = [64 << 20, 1 << 20, 32 << 20, 9 << 20]
    for _ in range(100):
        assert [stream.follow(at, 4096, waited=True) for at in places] == [NOTHING] * 4


@pytest.mark.parametrize("waited", [False, True])
def test_reads_that_end_in_another_order_are_still_one_stream(waited: bool) -> None:
    stream = Stream()
    at, dropped = 0, 0
    while at < 4 * DROP_STEP:
        for offset in (at + STEP, at):
            advice = stream.follow(offset, STEP, waited=waited)
            dropped += advice.drop.length if advice.drop else 0
        at += 2 * STEP
    assert dropped >= 3 * DROP_STEP


def test_a_jump_forgets_what_was_read_ahead() -> None:
    stream = Stream()
    walk(stream, 0, 8, waited=True)
    assert stream.follow(1 << 30, STEP, waited=True) == NOTHING
    assert stream.follow((1 << 30) + STEP, STEP, waited=True).ahead == Span(
        (1 << 30) + 2 * STEP, AHEAD
    )
