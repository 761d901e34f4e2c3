"""The granule policy: random reads stay small, streams grow, the next window comes in time."""

from __future__ import annotations

import itertools

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

    def read(self, off: int, length: int, limit: int = WINDOW_MAX) -> Plan:
        plan = self.policy.plan(off, length, self.present, self.inflight, limit=limit)
        for part in plan:
            if part is not None:
                (self.present if self.arrives else self.inflight).add(*part)
        return plan


def test_a_random_read_brings_the_granule_around_it() -> None:
    reader = Reader()
    assert reader.read(100 * GRANULE + 8192, 8192) == ((100 * GRANULE, 101 * GRANULE), None)
    # Across a border it brings both, so that its bytes are in the plan.
    assert reader.read(9 * GRANULE - PAGE, 2 * PAGE) == ((8 * GRANULE, 10 * GRANULE), None)


def test_a_page_brings_a_smaller_granule() -> None:
    plan = Reader().read(10 * MIB + PAGE, PAGE)
    assert plan == ((10 * MIB, 10 * MIB + PAGE_GRANULE), None)


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
        assert (start, ahead) == (off, None)
        windows.append(end - start)
        off = end
    assert windows[:4] == [128 * KIB, 256 * KIB, 512 * KIB, MIB]
    assert windows[-1] == WINDOW_MAX


def test_a_reader_that_waits_for_what_is_in_flight_gets_its_next_window_in_time() -> None:
    reader = Reader(arrives=False)
    planned = 0
    for off in range(0, 64 * MIB, 128 * KIB):
        demand, ahead = reader.read(off, 128 * KIB)
        planned = max(planned, demand[1], ahead[1] if ahead else 0)
        if off > 0:
            assert planned > off + 128 * KIB, "nothing would be under way behind this READ"
    assert planned - 64 * MIB <= 2 * WINDOW_MAX


def test_each_byte_of_a_stream_is_planned_ahead_once() -> None:
    reader = Reader(arrives=False)
    ahead = [reader.read(off, 128 * KIB).ahead for off in range(0, 64 * MIB, 128 * KIB)]
    parts = [part for part in ahead if part is not None]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))


def test_the_same_read_again_is_no_stream() -> None:
    reader = Reader(arrives=False)
    reader.read(0, 64 * KIB)
    for _ in range(32):
        assert reader.read(0, 64 * KIB) == ((0, 64 * KIB), None)


def test_a_jump_within_what_is_in_flight_is_no_progress() -> None:
    reader = Reader(arrives=False)
    for off in range(0, 8 * MIB, 128 * KIB):
        reader.read(off, 128 * KIB)
    edge = list(reader.inflight)[-1][1]
    assert reader.read(edge - 64 * KIB, 64 * KIB).ahead is None


def test_many_streams_at_once() -> None:
    reader = Reader()
    ends = [index * 16 * MIB for index in range(STREAMS)]
    for _ in range(5):
        for index, off in enumerate(ends):
            demand = reader.read(off, 128 * KIB).demand
            assert demand[0] == off
            ends[index] = demand[1]
    assert all(end - index * 16 * MIB > MIB for index, end in enumerate(ends))


def test_a_slow_link_limits_the_window() -> None:
    reader = Reader()
    off = 0
    for _ in range(20):
        start, off = reader.read(off, 128 * KIB, limit=MIB).demand
        assert off - start <= MIB


def test_nothing_is_planned_beyond_the_last_page() -> None:
    reader = Reader(100_000, arrives=False)
    pages = 25 * PAGE
    assert reader.read(0, 64 * KIB) == ((0, 64 * KIB), None)
    assert reader.read(64 * KIB, PAGE) == ((64 * KIB, pages), None)
    assert reader.read(64 * KIB + PAGE, PAGE).ahead is None


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
        for low, high in [demand, *([ahead] if ahead else [])]:
            assert low < high <= 1001 * PAGE
            assert low % PAGE == high % PAGE == 0
