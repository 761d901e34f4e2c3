"""The state tables: every pair of state and event, what is delivered, and the diagrams."""

from __future__ import annotations

import itertools
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from pagein.protocol import diagrams, states
from pagein.protocol.messages import Opcode
from pagein.protocol.states import (
    Answer,
    CacheEvent,
    CacheState,
    IllegalTransition,
    ObjectEvent,
    ObjectState,
    RequestEvent,
    RequestState,
    answers,
    deliverable,
    next_cache_state,
    next_object_state,
    next_request_state,
    readable,
)

PAGE = Path(__file__).parents[2] / "docs" / "states.md"

# Written out once more, row by row, as the facts tell it (cachefiles-kernel 7.1 and 7.4): a table
# tested against itself would accept every mistake. None stands for an illegal transition.
OBJECTS: dict[str, dict[str, str | None]] = {
    "CLOSE": {"COPEN": "OPEN", "FD_CLOSED": "CLOSE", "READ_MET": "REOPENING", "DROP": "DROPPING"},
    "OPEN": {"COPEN": None, "FD_CLOSED": "CLOSE", "READ_MET": None, "DROP": "DROPPING"},
    "REOPENING": {"COPEN": "OPEN", "FD_CLOSED": "CLOSE", "READ_MET": None, "DROP": "DROPPING"},
    "DROPPING": {"COPEN": None, "FD_CLOSED": "DROPPING", "READ_MET": None, "DROP": None},
}

# Facts cachefiles-kernel 4, 6, 8.3, 8.4 and 10.
ANSWERED: dict[str, dict[str, str | None]] = {
    "NEW": {"DELIVER": "DELIVERED", "RESTORE": "NEW", "COMPLETE": "DONE", "FAIL": "DONE"},
    "DELIVERED": {"DELIVER": None, "RESTORE": "NEW", "COMPLETE": "DONE", "FAIL": "DONE"},
    "DONE": {"DELIVER": None, "RESTORE": None, "COMPLETE": None, "FAIL": None},
}
UNANSWERED: dict[str, dict[str, str | None]] = {
    "NEW": {"DELIVER": "DONE", "RESTORE": "NEW", "COMPLETE": "DONE", "FAIL": "DONE"},
    "DELIVERED": {"DELIVER": None, "RESTORE": None, "COMPLETE": None, "FAIL": None},
    "DONE": {"DELIVER": None, "RESTORE": None, "COMPLETE": None, "FAIL": None},
}
REQUESTS = {Opcode.OPEN: ANSWERED, Opcode.READ: ANSWERED, Opcode.CLOSE: UNANSWERED}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(ObjectState, ObjectEvent)))
def test_object_transition(state: ObjectState, event: ObjectEvent) -> None:
    after = OBJECTS[state.name][event.name]
    if after is None:
        with pytest.raises(IllegalTransition, match=f"{event.name} of an object in {state.name}"):
            next_object_state(state, event)
    else:
        assert next_object_state(state, event) is ObjectState[after]


@pytest.mark.parametrize(
    ("opcode", "state", "event"), list(itertools.product(Opcode, RequestState, RequestEvent))
)
def test_request_transition(opcode: Opcode, state: RequestState, event: RequestEvent) -> None:
    after = REQUESTS[opcode][state.name][event.name]
    if after is None:
        with pytest.raises(IllegalTransition, match=f"{event.name} of a {opcode.name} that is"):
            next_request_state(opcode, state, event)
    else:
        assert next_request_state(opcode, state, event) is RequestState[after]


def object_after(*events: ObjectEvent) -> ObjectState:
    state = ObjectState.CLOSE
    for event in events:
        state = next_object_state(state, event)
    return state


def test_a_daemon_dies_and_another_takes_over() -> None:
    """Facts cachefiles-kernel 10: close, kick, OPEN again, copen."""
    dead = ObjectEvent.COPEN, ObjectEvent.FD_CLOSED
    assert object_after(*dead) is ObjectState.CLOSE
    assert object_after(*dead, ObjectEvent.READ_MET) is ObjectState.REOPENING
    assert object_after(*dead, ObjectEvent.READ_MET, ObjectEvent.COPEN) is ObjectState.OPEN


def test_a_refused_reopen_comes_back_only_when_its_fd_is_closed() -> None:
    """Facts cachefiles-kernel 7.1: a negative copen is no event at all."""
    reopening = ObjectEvent.COPEN, ObjectEvent.FD_CLOSED, ObjectEvent.READ_MET
    assert deliverable(Opcode.READ, object_after(*reopening)) == "no"
    assert deliverable(Opcode.READ, object_after(*reopening, ObjectEvent.FD_CLOSED)) == "kick"


def test_nothing_leads_out_of_dropping() -> None:
    out = [after for (before, _), after in states.OBJECT_TABLE.items() if before.name == "DROPPING"]
    assert out == [ObjectState.DROPPING]


@pytest.mark.parametrize("state", ObjectState)
@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.CLOSE])
def test_open_and_close_are_always_delivered(opcode: Opcode, state: ObjectState) -> None:
    assert deliverable(opcode, state) == "yes"
    assert readable(opcode, state)


@pytest.mark.parametrize(
    ("state", "delivery", "pollin"),
    [
        (ObjectState.CLOSE, "kick", True),
        (ObjectState.OPEN, "yes", True),
        (ObjectState.REOPENING, "no", False),
        (ObjectState.DROPPING, "no", False),
    ],
)
def test_read_is_delivered_by_the_state_of_its_object(
    state: ObjectState, delivery: str, pollin: bool
) -> None:
    assert deliverable(Opcode.READ, state) == delivery
    assert readable(Opcode.READ, state) is pollin


@pytest.mark.parametrize("state", ObjectState)
def test_a_kick_is_a_legal_event(state: ObjectState) -> None:
    legal = (state, ObjectEvent.READ_MET) in states.OBJECT_TABLE
    assert legal is (deliverable(Opcode.READ, state) == "kick")


def test_object_diagram() -> None:
    lines = diagrams.object_diagram().splitlines()
    assert lines[:3] == ["stateDiagram-v2", "    [*] --> CLOSE", "    CLOSE --> OPEN: COPEN"]
    assert len(lines) == 2 + len(states.OBJECT_TABLE)


@pytest.mark.parametrize("opcode", Opcode)
def test_request_diagram(opcode: Opcode) -> None:
    lines = diagrams.request_diagram(opcode).splitlines()
    arrows = {
        f"    {before} --> {after}: {event}"
        for before, row in REQUESTS[opcode].items()
        for event, after in row.items()
        if after is not None
    }
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> NEW"]
    assert set(lines[2:]) == arrows
    assert len(lines) == 2 + len(arrows)


CACHES: dict[str, dict[str, str | None]] = {
    "UNBOUND": {"BIND": "READY", "DEVICE_CLOSED": None, "ALL_CLOSED": "WITHDRAWN"},
    "READY": {"BIND": None, "DEVICE_CLOSED": "DEAD", "ALL_CLOSED": "WITHDRAWN"},
    "DEAD": {"BIND": None, "DEVICE_CLOSED": None, "ALL_CLOSED": "WITHDRAWN"},
    "WITHDRAWN": {"BIND": None, "DEVICE_CLOSED": None, "ALL_CLOSED": None},
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(CacheState, CacheEvent)))
def test_cache_transition(state: CacheState, event: CacheEvent) -> None:
    after = CACHES[state.name][event.name]
    if after is None:
        with pytest.raises(
            IllegalTransition, match=f"{event.name} of a cache that is {state.name}"
        ):
            next_cache_state(state, event)
    else:
        assert next_cache_state(state, event) is CacheState[after]


@pytest.mark.parametrize(("answer", "opcode"), list(itertools.product(Answer, Opcode)))
def test_who_may_answer(answer: Answer, opcode: Opcode) -> None:
    right = {(Answer.COPEN, Opcode.OPEN), (Answer.CREAD, Opcode.READ)}
    assert answers(answer, opcode) is ((answer, opcode) in right)


def test_other_diagrams_and_tables() -> None:
    lines = diagrams.cache_diagram().splitlines()
    assert lines[1:3] == ["    [*] --> UNBOUND", "    UNBOUND --> READY: BIND"]
    assert len(lines) == 2 + len(states.CACHE_TABLE)
    copen = diagrams.copen_table().splitlines()
    assert len(copen) == 2 + len(states.COPEN_TABLE)
    assert copen[1] == "|---|---|---|---|"
    assert "| a size | closed | well | EBADFD |" in copen
    waits = diagrams.wait_table().splitlines()
    assert len(waits) == 2 + len(states.Wait)
    assert {line.count("|") for line in waits} == {len(states.End) + 2}


def test_the_module_prints_its_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # runpy warns of a module that is imported already.
    monkeypatch.delitem(sys.modules, "pagein.protocol.diagrams")
    runpy.run_module("pagein.protocol.diagrams", run_name="__main__")
    printed = capsys.readouterr().out
    assert PAGE.read_text().endswith(printed.rstrip() + "\n")
    assert printed.count("```mermaid\n") == 5
    assert printed.count("```\n") == 5
    for part in (diagrams.cache_diagram(), diagrams.copen_table(), diagrams.wait_table()):
        assert part in printed
    assert diagrams.object_diagram() in printed
    for opcode in Opcode:
        assert f"### {opcode.name} request\n" in printed
        assert diagrams.request_diagram(opcode) in printed


def test_the_module_runs_as_a_command() -> None:
    """Without the warning that `python -m` gives for a module its own package imports."""
    command = [sys.executable, "-W", "error", "-m", "pagein.protocol.diagrams"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert diagrams.object_diagram() in ran.stdout
