"""Whoever of an exec-daemon is killed, nothing is left: no process, no mount."""

import os
import signal
from pathlib import Path

import pytest
from tests.e2e.harness import DEADLINE
from tests.execdaemon.rig import ExecDaemon

pytestmark = pytest.mark.root


def victim_of(place: ExecDaemon, who: str, daemon: Path) -> int:
    """The process of an exec-daemon that plays the part `who`."""
    assert place.process is not None
    front = place.process.pid
    if who == "front":
        return front
    (supervisor,) = children(front)
    if who == "supervisor":
        return supervisor
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(supervisor)}
    wanted = os.fsencode(daemon) if who == "daemon" else b"pagein.keeper"
    (pid,) = [pid for pid, line in lines.items() if wanted in line.split(b"\0")]
    return pid


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


@pytest.mark.parametrize(
    ("who", "code"),
    [("front", -9), ("supervisor", 125), ("daemon", 128 + 9), ("keeper", 125)],
)
def test_nothing_is_left(
    place: ExecDaemon, c_daemon: Path, files: Path, who: str, code: int
) -> None:
    place.start(c_daemon, place.cache, files, options=("--mount", f"fsid=single,{place.target}"))
    place.wait_mounted()
    assert (place.target / "1").read_bytes() == b"0"
    assert place.process is not None
    os.kill(victim_of(place, who, c_daemon), signal.SIGKILL)
    place.process.communicate(timeout=DEADLINE)
    assert place.process.returncode == code
    place.process = None
    assert place.left() == []


def test_a_command_that_ignores_everything_ends_with_its_front(place: ExecDaemon) -> None:
    script = "trap '' TERM INT HUP; echo ready; while :; do sleep 0.05; done"
    process = place.start("sh", "-c", script, "sh", place.directory)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=DEADLINE)
    assert place.left() == []
