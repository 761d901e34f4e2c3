"""RangeSet against the plainest model there is: a set of integers."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.rangeset import RangeSet

SPAN = 24
"""Small on purpose: ranges must often touch, overlap and be equal."""

RANGES = st.tuples(st.integers(0, SPAN), st.integers(0, SPAN)).map(
    lambda pair: (min(pair), max(pair))
)
CHANGES = st.lists(st.tuples(st.sampled_from(["add", "discard"]), RANGES), max_size=16)


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The maximal runs of consecutive numbers, half-open."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


def build(changes: list[tuple[str, tuple[int, int]]]) -> tuple[RangeSet, set[int]]:
    ours, model = RangeSet(), set[int]()
    for name, (start, end) in changes:
        if name == "add":
            ours.add(start, end)
            model |= set(range(start, end))
        else:
            ours.discard(start, end)
            model -= set(range(start, end))
        assert list(ours) == runs(model)
    return ours, model


@given(CHANGES)
def test_changes(changes: list[tuple[str, tuple[int, int]]]) -> None:
    ours, model = build(changes)
    assert len(ours) == len(runs(model))
    assert ours.total == len(model)
    assert bool(ours) == bool(model)


@given(CHANGES, RANGES)
def test_questions(changes: list[tuple[str, tuple[int, int]]], asked: tuple[int, int]) -> None:
    ours, model = build(changes)
    wanted = set(range(*asked))
    assert ours.covers(*asked) == (wanted <= model)
    assert ours.overlaps(*asked) == bool(wanted & model)
    assert list(ours.intersection(*asked)) == runs(wanted & model)
    missing = runs(wanted - model)
    assert list(ours.gaps(*asked)) == missing
    assert ours.first_gap(*asked) == (missing[0] if missing else None)


@given(st.lists(RANGES), st.lists(RANGES))
def test_construction_equality_and_repr(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    ours, theirs = RangeSet(first), RangeSet(second)
    numbers = {n for pair in first for n in range(*pair)}
    assert list(ours) == runs(numbers)
    assert (ours == theirs) == (numbers == {n for pair in second for n in range(*pair)})
    assert ours == RangeSet(reversed(first)) == RangeSet(ours)
    assert eval(repr(ours)) == ours


def test_equality_with_something_else() -> None:
    assert RangeSet([(1, 2)]) != [(1, 2)]


def test_a_set_that_changes_has_no_hash() -> None:
    with pytest.raises(TypeError):
        hash(RangeSet())


def test_a_copy_is_independent() -> None:
    ours = RangeSet([(0, 4)])
    twin = ours.copy()
    twin.add(8, 12)
    ours.discard(0, 2)
    assert list(ours) == [(2, 4)]
    assert list(twin) == [(0, 4), (8, 12)]


def test_iterators_do_not_see_later_changes() -> None:
    ours = RangeSet([(0, 4), (8, 12)])
    everything, present, missing = iter(ours), ours.intersection(0, 12), ours.gaps(0, 16)
    ours.discard(0, 16)
    assert list(everything) == [(0, 4), (8, 12)]
    assert list(present) == [(0, 4), (8, 12)]
    assert list(missing) == [(4, 8), (12, 16)]


def test_offsets_of_large_files() -> None:
    last = 2**63 - 1
    ours = RangeSet([(last - 4096, last)])
    assert ours.covers(last - 1, last)
    assert ours.first_gap(0, last) == (0, last - 4096)
    assert ours.total == 4096


@pytest.mark.parametrize(
    "method", ["add", "discard", "covers", "overlaps", "intersection", "gaps", "first_gap"]
)
@pytest.mark.parametrize(("start", "end"), [(2, 1), (-1, 1), (-2, -1)])
def test_what_is_no_range_is_refused(method: str, start: int, end: int) -> None:
    ours = RangeSet([(0, 4)])
    with pytest.raises(ValueError, match=r"not a range: \["):
        getattr(ours, method)(start, end)
    assert list(ours) == [(0, 4)]
