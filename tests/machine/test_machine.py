"""The play, with hypothesis as the one who draws the numbers: 2,000 steps, or a million.

    scripts/test tests/machine
    scripts/test --long tests/machine

A failure is cut down to the few steps that it needs; its report ends with the conversation.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from tests.fds import open_fds
from tests.machine.play import Play

BYTE = st.integers(0, 255)
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
STEPS = 50
"""Of one example, which begins with an empty cache."""


class Machine(RuleBasedStateMachine):
    """One rule, which is one step."""

    taken = 0
    """Steps of all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="pagein-machine-", dir=MEMORY))
        self.play = Play(self.directory)
        self.ended = False

    @rule(which=BYTE, a=BYTE, b=BYTE)
    def step(self, which: int, a: int, b: int) -> None:
        type(self).taken += 1
        with self._told():
            self.play.act(which, a, b)
            self.play.check()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            print(self.play.kernel.recorder)
            raise

    def teardown(self) -> None:
        try:
            with self._told():
                self.play.end()
        finally:
            self.play.close()
            shutil.rmtree(self.directory)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Deadlines run out by the thousand here, and each is worth a line in a log."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def play(examples: int) -> int:
    """How many steps were taken."""
    Machine.taken = 0
    before = open_fds()
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=examples, stateful_step_count=STEPS)
    )
    assert open_fds() <= before
    return Machine.taken


def test_2000_steps() -> None:
    assert play(45) >= 2000


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_a_million_steps() -> None:
    taken = 0
    while taken < 1_000_000:
        taken += play(2000)
        print(f"{taken:,} steps", flush=True)
