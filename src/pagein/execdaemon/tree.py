"""Processes below this one: adopted, found, ended, so that none outlives an exec-daemon."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Container, Iterator

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own ends."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def follow_parent(number: int, parent: int) -> None:
    """In a child: get the signal `number` when `parent` goes, also if it has gone already."""
    _libc.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def descendants(spare: Container[int] = ()) -> list[int]:
    """Living descendants, but not those in `spare`, nor theirs."""
    children: dict[int, list[int]] = {}
    for pid, parent, state in _table():
        if state not in "ZX":
            children.setdefault(parent, []).append(pid)
    found = []
    look_at = [os.getpid()]
    while look_at:
        below = [pid for pid in children.get(look_at.pop(), []) if pid not in spare]
        found += below
        look_at += below
    return found


def _table() -> Iterator[tuple[int, int, str]]:
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            state, parent, *_ = file.read().rpartition(b")")[2].split()
            yield int(name), int(parent), state.decode()


def end(spare: Container[int], timeout: float) -> None:
    """Kill all descendants, and what they start meanwhile; wait at most `timeout` seconds."""
    give_up = time.monotonic() + timeout
    while (left := descendants(spare)) and time.monotonic() < give_up:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.01)
    reap()


def reap() -> dict[int, int]:
    """Children that have ended, and their exit codes (negative: the signal that killed it)."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended
