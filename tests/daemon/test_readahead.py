"""The granule policy: random reads stay small, streams grow, the next window comes in time."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.helpers import KIB, MIB

from pagein.daemon.readahead import GRANULE, PAGE_GRANULE, STREAMS, WINDOW_MAX, Plan, Policy
from pagein.rangeset import RangeSet

SIZE = 1 << 30
PAGE = 4096


class Reader:
    """Plans READs and keeps the two sets as a Fill would: all planned is at once present."""

    def __init__(self, size: int = SIZE, *, arrives: bool = True) -> None:
        self.policy = Policy(size)
        self.present, self.inflight = RangeSet(), RangeSet()
        self.arrives = arrives

    def read(
        self,
        off: int,
        length: int,
        limit: int = WINDOW_MAX,
        round_trip: int | None = None,
        lead: int | None = None,
    ) -> Plan:
        plan = self.policy.plan(
            off,
            length,
            self.present,
            self.inflight,
            limit=limit,
            round_trip=round_trip,
            lead=lead,
        )
        for part in (plan.demand, *plan.ahead):
            (self.present if self.arrives else self.inflight).add(*part)
        return plan


def test_a_random_read_brings_the_granule_around_it() -> None:
    reader = Reader()
    assert reader.read(100 * GRANULE + 8192, 8192) == ((100 * GRANULE, 101 * GRANULE), ())
    # Across a border it brings both, so that its bytes are in the plan.
    assert reader.read(9 * GRANULE - PAGE, 2 * PAGE) == ((8 * GRANULE, 10 * GRANULE), ())


def test_a_random_read_of_more_than_half_a_granule_brings_nothing_but_itself() -> None:
    reader = Reader()
    off = 100 * GRANULE + PAGE
    assert reader.read(off, GRANULE) == ((off, off + GRANULE), ())
    assert reader.read(off + MIB, GRANULE // 2 + PAGE).demand == (
        off + MIB,
        off + MIB + GRANULE // 2 + PAGE,
    )


def test_a_page_brings_a_smaller_granule() -> None:
    plan = Reader().read(10 * MIB + PAGE, PAGE)
    assert plan == ((10 * MIB, 10 * MIB + PAGE_GRANULE), ())


def test_a_walk_over_scattered_pages_never_grows() -> None:
    reader = Reader()
    for step in range(500):
        reader.read(step * 100 * KIB // PAGE * PAGE, PAGE)
    assert reader.present.total <= 500 * PAGE_GRANULE


def test_a_stream_that_reads_what_was_prefetched_is_seen_at_its_edges_and_doubles() -> None:
    reader = Reader()
    off, windows = 0, []
    while off < 100 * MIB:
        (start, end), ahead = reader.read(off, 128 * KIB)
        assert (start, ahead) == (off, ())
        windows.append(end - start)
        off = end
    assert windows[:4] == [128 * KIB, 256 * KIB, 512 * KIB, MIB]
    assert windows[-1] == WINDOW_MAX


def test_a_reader_that_waits_for_what_is_in_flight_gets_its_next_window_in_time() -> None:
    reader = Reader(arrives=False)
    planned = 0
    for off in range(0, 64 * MIB, 128 * KIB):
        demand, ahead = reader.read(off, 128 * KIB)
        planned = max(planned, demand[1], *(part[1] for part in ahead))
        if off > 0:
            assert planned > off + 128 * KIB, "nothing would be under way behind this READ"
    assert planned - 64 * MIB <= 2 * WINDOW_MAX


def test_each_byte_of_a_stream_is_planned_ahead_once() -> None:
    reader = Reader(arrives=False)
    ahead = [reader.read(off, 128 * KIB).ahead for off in range(0, 64 * MIB, 128 * KIB)]
    parts = [part for each in ahead for part in each]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))


def test_the_same_read_again_is_no_stream() -> None:
    reader = Reader(arrives=False)
    reader.read(0, 64 * KIB)
    for _ in range(32):
        assert reader.read(0, 64 * KIB) == ((0, 64 * KIB), ())


def test_a_jump_within_what_is_in_flight_is_no_progress() -> None:
    reader = Reader(arrives=False)
    for off in range(0, 8 * MIB, 128 * KIB):
        reader.read(off, 128 * KIB)
    edge = list(reader.inflight)[-1][1]
    assert reader.read(edge - 64 * KIB, 64 * KIB).ahead == ()


def test_many_streams_at_once() -> None:
    reader = Reader()
    begins = [index * 16 * MIB + index * index * PAGE for index in range(STREAMS)]
    ends = list(begins)
    for _ in range(5):
        for index, off in enumerate(ends):
            demand = reader.read(off, 128 * KIB).demand
            assert demand[0] == off
            ends[index] = demand[1]
    assert all(end - begin > MIB for begin, end in zip(begins, ends, strict=True))


def test_a_slow_link_limits_the_window() -> None:
    reader = Reader()
    off = 0
    for _ in range(20):
        start, off = reader.read(off, 128 * KIB, limit=MIB).demand
        assert off - start <= MIB


def test_a_proven_stream_starts_with_what_the_link_carries_in_a_round_trip() -> None:
    reader = Reader(arrives=False)
    reader.read(0, 128 * KIB, round_trip=MIB)
    assert reader.read(128 * KIB, 128 * KIB, round_trip=MIB).demand == (128 * KIB, 128 * KIB + MIB)


def test_a_window_is_followed_by_the_next_one_a_round_trip_before_its_end() -> None:
    reader = Reader(arrives=False)
    off = edge = 0
    for _ in range(200):
        demand, ahead = reader.read(off, 128 * KIB, round_trip=20 * MIB)
        off += 128 * KIB
        edge = max(edge, demand[1], *(part[1] for part in ahead))
        if off > 256 * KIB:
            assert edge - off >= WINDOW_MAX - 128 * KIB


def test_random_reads_take_the_credit_of_the_next_stream() -> None:
    reader = Reader(arrives=False)
    for number in range(40):
        reader.read((number * number + 1) * MIB % (SIZE - MIB) + 8 * KIB, 64 * KIB)
    last = SIZE - MIB
    reader.read(last, 64 * KIB, round_trip=8 * MIB)
    start, end = reader.read(last + 64 * KIB, 64 * KIB, round_trip=8 * MIB).demand
    assert end - start == 128 * KIB


def test_streams_that_end_soon_take_credit_and_one_that_goes_on_gives_it_back() -> None:
    reader = Reader(arrives=False)

    def first_window(off: int) -> int:
        reader.read(off, 64 * KIB, round_trip=8 * MIB)
        demand = reader.read(off + 64 * KIB, 64 * KIB, round_trip=8 * MIB).demand
        return demand[1] - demand[0]

    offs = random.Random(1).sample(range(0, 800 * MIB, 16 * MIB), 8)
    found = [first_window(off) for off in offs]
    assert found[:3] == [8 * MIB, 2 * MIB, MIB]
    assert found[4:] == [128 * KIB] * 4
    off = offs[-1] + 128 * KIB
    for _ in range(100):
        reader.read(off, 128 * KIB, round_trip=8 * MIB)
        off += 128 * KIB
    assert first_window(900 * MIB) > 128 * KIB


def test_the_rest_of_a_read_that_came_as_two_is_no_stream() -> None:
    reader, asked = Reader(arrives=False), 0
    for number in range(39):
        off = random.Random(number).randrange(0, SIZE, 128 * KIB) + 8 * KIB
        for plan in (
            reader.read(off, 64 * KIB, round_trip=8 * MIB),
            reader.read(off + 64 * KIB, PAGE, round_trip=8 * MIB),
        ):
            asked += plan.demand[1] - plan.demand[0]
            assert plan.ahead == ()
    assert asked == 39 * 68 * KIB


def test_a_reader_that_meets_the_fetch_only_now_and_then_gets_its_next_window_in_time() -> None:
    reader = Reader(arrives=False)
    reader.read(0, 128 * KIB, round_trip=10 * MIB)
    off, edge = 128 * KIB, 0
    while off < 200 * MIB:
        demand, ahead = reader.read(off, 128 * KIB, round_trip=10 * MIB)
        edge = max(edge, demand[1], *(part[1] for part in ahead))
        assert edge - off > 10 * MIB or off < 3 * MIB
        reader.present.add(0, off + 900 * KIB)  # it came, and was read in silence
        off += 900 * KIB


def long_stream(reader: Reader, upto: int) -> tuple[int, int]:
    """A stream that is read as it comes, planned to `upto` or beyond: its next READ, its edge."""
    off = edge = 0
    while edge < upto:
        demand, ahead = reader.read(off, 128 * KIB, round_trip=MIB)
        edge = max(edge, demand[1], *(part[1] for part in ahead))
        reader.present.add(0, off + 128 * KIB)
        reader.inflight.discard(0, off + 128 * KIB)
        off += 128 * KIB
    return off, edge


def test_where_the_rate_is_known_the_next_window_is_asked_for_just_in_time() -> None:
    reader = Reader(arrives=False)
    off, edge = long_stream(reader, 100 * MIB)
    left = []
    while off < 300 * MIB:
        demand, ahead = reader.read(off, 128 * KIB, round_trip=MIB, lead=2 * MIB)
        reader.present.add(0, off + 128 * KIB)
        reader.inflight.discard(0, off + 128 * KIB)
        off += 128 * KIB
        if ahead:
            left.append(edge - off)
        edge = max(edge, demand[1], *(part[1] for part in ahead))
    assert len(left) > 10
    assert all(MIB < each <= 2 * MIB for each in left)


def test_when_a_long_streams_fetch_is_over_one_more_follows_without_a_read() -> None:
    reader = Reader(arrives=False)
    off, edge = long_stream(reader, 100 * MIB)
    reader.read(off, 128 * KIB, round_trip=MIB)
    reader.read(off + 128 * KIB, 128 * KIB, round_trip=MIB)  # it was seen in its window
    assert reader.policy.follow(edge - MIB) == (edge - MIB, edge - MIB)  # of another fetch
    assert reader.policy.follow(edge) == (edge, edge + WINDOW_MAX)
    more = edge + WINDOW_MAX
    assert reader.policy.follow(more) == (more, more)  # it is silent, and perhaps gone


def test_short_streams_and_those_at_the_end_are_followed_no_further() -> None:
    reader = Reader(arrives=False)
    _, edge = long_stream(reader, 8 * MIB)
    assert reader.policy.follow(edge) == (edge, edge)
    reader = Reader(40 * MIB, arrives=False)
    off, edge = long_stream(reader, 40 * MIB)
    reader.read(off, 128 * KIB, round_trip=MIB)
    assert reader.policy.follow(edge) == (edge, edge)


def test_random_reads_make_the_windows_of_streams_smaller() -> None:
    reader = Reader()
    off = 0
    while off < 64 * MIB:
        off = reader.read(off, 128 * KIB).demand[1]
    for number in range(30):
        reader.read(random.Random(number).randrange(512 * MIB, SIZE, MIB) + 8 * KIB, 64 * KIB)
    start, end = reader.read(off, 128 * KIB).demand
    assert end - start < MIB


def test_reads_at_equal_distances_are_fetched_ahead_and_nothing_between_them() -> None:
    reader, step = Reader(arrives=False), MIB
    plans = [reader.read(8 * KIB + number * step, 64 * KIB) for number in range(40)]
    assert [plan.ahead for plan in plans[:2]] == [(), ()]
    assert all(
        plan.demand == (8 * KIB + n * step, 72 * KIB + n * step) for n, plan in enumerate(plans)
    )
    ahead = [part for plan in plans for part in plan.ahead]
    assert ahead[0] == (8 * KIB + 3 * step, 72 * KIB + 3 * step)
    assert all(
        b[0] - a[0] == step and b[1] - b[0] == 64 * KIB for a, b in itertools.pairwise(ahead)
    )
    assert 37 <= len(ahead) < 120  # it is ahead of its reader, and not for ever


def test_a_silent_strided_reader_is_seen_where_the_plan_ended() -> None:
    reader, step, asked = Reader(), MIB, 0
    for number in range(200):
        off = 8 * KIB + number * step
        if not reader.present.covers(off, off + 64 * KIB):
            reader.read(off, 64 * KIB, round_trip=4 * MIB)
            asked += 1
    assert asked < 20
    assert reader.present.total < 270 * 64 * KIB


def test_two_readers_at_equal_distances_are_seen_when_their_reads_alternate() -> None:
    reader = Reader(arrives=False)
    ahead: set[tuple[int, int]] = set()
    for number in range(6):
        for first, step in ((8 * KIB, MIB), (200 * MIB, 3 * MIB + 4 * KIB)):
            ahead.update(reader.read(first + number * step, 64 * KIB).ahead)
    assert (8 * KIB + 4 * MIB, 72 * KIB + 4 * MIB) in ahead
    assert any(low > 200 * MIB for low, _ in ahead)


def test_random_reads_of_a_small_region_are_no_stride() -> None:
    ahead = 0
    for seed in range(8):
        reader, numbers = Reader(arrives=False), random.Random(seed)
        for place in numbers.sample(range(256), 128):
            ahead += len(reader.read(2 * place * GRANULE + PAGE, GRANULE, round_trip=MIB).ahead)
    assert ahead <= 8  # by three at equal distances of the last eight: 193


def test_nothing_is_planned_beyond_the_last_page() -> None:
    reader = Reader(100_000)
    pages = 25 * PAGE
    assert reader.read(0, 64 * KIB) == ((0, 64 * KIB), ())
    assert reader.read(64 * KIB, PAGE) == ((64 * KIB, pages), ())
    assert reader.read(64 * KIB + PAGE, PAGE).ahead == ()


READS = st.lists(
    st.tuples(st.integers(0, 1000).map(lambda n: n * PAGE), st.integers(1, 64)), max_size=60
)


@given(READS, st.booleans(), st.integers(1, WINDOW_MAX))
def test_plans_are_whole_pages_that_contain_the_read(
    reads: list[tuple[int, int]], arrives: bool, limit: int
) -> None:
    reader = Reader(1001 * PAGE, arrives=arrives)
    for off, pages in reads:
        end = min(off + pages * PAGE, 1001 * PAGE)
        demand, ahead = reader.read(off, pages * PAGE, limit)
        assert demand[0] <= off < end <= demand[1] <= 1001 * PAGE
        for low, high in [demand, *ahead]:
            assert low < high <= 1001 * PAGE
            assert low % PAGE == high % PAGE == 0
