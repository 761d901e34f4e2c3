"""Facts, scenarios, recordings, differences and the documents agree."""

import pytest
from tests.scenarios import coverage, differences
from tests.scenarios.differences import DIFFERENCES, ELSEWHERE, Difference, expected, rows
from tests.scenarios.facts import facts
from tests.scenarios.registry import HERE, scenarios

AT_LEAST = 200
"""Facts of sections 1 to 12 and 14 that are the same on both kernels."""


def test_every_fact_is_held_or_does_not_apply() -> None:
    held = set(coverage.held_by())
    assert held == {fact.id for fact in facts().values() if not fact.not_applicable}


def test_there_are_enough_of_them() -> None:
    same = set(coverage.held_by()) - set(coverage.different())
    numbered = [fact for fact in same if fact[0].isdecimal() and not fact.startswith("13")]
    assert len(numbered) >= AT_LEAST


def test_each_scenario_has_a_recording_and_says_what_it_is_about() -> None:
    every = scenarios()
    assert {path.stem for path in (HERE / "transcripts").glob("*.txt")} == set(every)
    assert [each.name for each in every.values() if not each.title] == []


def test_each_difference_is_used_and_is_about_a_fact_of_its_scenario() -> None:
    every = scenarios()
    for entry in DIFFERENCES:
        shown = {fact for name in entry.scenarios for fact in every[name].facts}
        assert set(entry.facts) <= shown, entry
        for name in entry.scenarios:
            expected(name, every[name].path.read_text(), [entry])


def test_an_unused_difference_is_an_error() -> None:
    entry = Difference("row", ("1 fact",), ("it",), ("not there",), ("ours",))
    with pytest.raises(ValueError, match="unused difference in it"):
        expected("it", "a\nb\n", [entry])
    assert expected("another", "a\nb\n", [entry]) == "a\nb\n"


def test_the_table_of_differences_is_that_of_the_architecture() -> None:
    shown = {entry.row for entry in DIFFERENCES}
    assert shown & set(ELSEWHERE) == set()
    assert shown | set(ELSEWHERE) == set(rows()), differences.ARCHITECTURE


def test_the_page_of_conformance_is_up_to_date() -> None:
    assert coverage.PAGE.read_text() == coverage.page(), "python -m tests.scenarios.coverage"
