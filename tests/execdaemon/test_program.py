"""What a program sees of the device under exec-daemon; on the real kernel: test_real_kernel.py."""

import json
from pathlib import Path

import pytest
from tests.execdaemon.rig import PROGRAM, SEEN, ExecDaemon

pytestmark = pytest.mark.root


def test_a_program_sees_what_the_kernel_would_show(place: ExecDaemon, files: Path) -> None:
    done = place.run(*PROGRAM, place.cache, files, place.target)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == SEEN


def test_and_with_each_read_looked_at(place: ExecDaemon, files: Path) -> None:
    done = place.run(*PROGRAM, place.cache, files, place.target, options=("--every-read",))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == SEEN
