"""Limits, marks and the state line: facts cachefiles-kernel 2.1, 3.1, 11."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagein.protocol.commands import CommandError
from pagein.protocol.space import LIMITS, Limits, Marks, State

NUMBERS = st.integers(0, (1 << 64) - 1)
MARKS = st.builds(Marks, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)


@given(st.lists(st.tuples(st.sampled_from(sorted(LIMITS)), st.integers(0, 120)), max_size=40))
def test_the_limits_hold_together_whatever_is_set(commands: list[tuple[str, int]]) -> None:
    limits = Limits()
    for verb, percent in commands:
        before = dict(limits.percent)
        try:
            limits.set(verb, percent)
        except CommandError:
            assert limits.percent == before
        else:
            assert limits.percent == before | {verb: percent}
        for kind in "bf":
            run, cull, stop = (limits.percent[kind + name] for name in ("run", "cull", "stop"))
            assert 0 <= stop < cull < run < 100


@pytest.mark.parametrize("kind", ["b", "f"])
def test_only_what_breaks_it_is_refused(kind: str) -> None:
    """Each number, from each start: refused is what would not hold."""
    for run, cull, stop in ((7, 5, 1), (99, 98, 97), (2, 1, 0), (50, 25, 0)):
        for name, percent in itertools.product(("run", "cull", "stop"), (0, 1, 5, 25, 98, 99, 100)):
            limits = Limits({f"{kind}run": run, f"{kind}cull": cull, f"{kind}stop": stop})
            wanted = {"run": run, "cull": cull, "stop": stop} | {name: percent}
            fits = wanted["stop"] < wanted["cull"] < wanted["run"] < 100
            try:
                limits.set(kind + name, percent)
            except CommandError as problem:
                assert not fits, (wanted, problem)
            else:
                assert fits, wanted


def test_marks_are_whole_per_cents_of_the_file_system() -> None:
    """As measured: f_files=32768, f_blocks=124725 (facts 3.1)."""
    marks = Marks.of(Limits(), 32768, 124725)
    line = (
        b"cull=0 frun=8f1 fcull=663 fstop=147 brun=2219 bcull=185b bstop=4df"
        b" freleased=0 breleased=0"
    )
    assert State(False, marks, 0, 0).encode() == line
    assert State.decode(line) == State(False, marks, 0, 0)


@given(st.booleans(), MARKS, st.integers(0, (1 << 32) - 1), NUMBERS)
def test_a_state_is_read_as_it_was_written(
    culling: bool, marks: Marks, files: int, blocks: int
) -> None:
    state = State(culling, marks, files, blocks)
    assert State.decode(state.encode()) == state


@pytest.mark.parametrize("line", [b"", b"cull=2", b"cull=0 frun=1\n", b"\0" * 16])
def test_what_is_no_state(line: bytes) -> None:
    with pytest.raises(ValueError, match="not the state"):
        State.decode(line)


@pytest.mark.parametrize("files", [True, False])
def test_culling_has_two_marks(files: bool) -> None:
    """Below cull it begins, at run it ends; in between it stays what it was."""
    marks = Marks(700, 500, 100, 700, 500, 100)

    def at(free: int, culling: bool) -> tuple[bool, bool, bool]:
        have = (free, 9999) if files else (9999, free)
        return marks.stops(*have), marks.culls(*have, culling=culling), marks.runs(*have)

    assert at(99, False) == (True, True, False)
    assert at(100, False) == (False, True, False)
    assert at(499, False) == (False, True, False)
    assert at(500, False) == (False, False, False)
    assert at(500, True) == (False, True, False)
    assert at(699, True) == (False, True, False)
    assert at(700, True) == (False, False, True)


def test_without_limits_everything_is_allowed() -> None:
    marks = Marks.of(Limits(dict.fromkeys(LIMITS, 0)), 10**6, 10**6)
    assert not marks.stops(0, 0)
    assert not marks.culls(0, 0, culling=False)
