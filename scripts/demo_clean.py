"""How scripts/demo leaves nothing behind, whatever happened before."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_ENDS_BY_ITSELF = 15.0
"""Seconds that pagein has to end when nothing is mounted any more."""


def stop_pagein(state: Path, cache: Path, target: Path) -> None:
    """Unmount `target` if it is mounted, and wait until no process uses `state`."""
    if not state.exists():
        return
    command = [sys.executable, "-m", "pagein.cli.main"]
    command += ["--state-dir", str(state), "--cache", str(cache), "umount", str(target)]
    give_up = time.monotonic() + _ENDS_BY_ITSELF
    while _mounted(target) and time.monotonic() < give_up:
        subprocess.run(command, capture_output=True, check=False, timeout=60)
        command[-2:] = ["umount", "--lazy", str(target)]
    while (left := list(_processes(state))) and time.monotonic() < give_up:
        time.sleep(0.05)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        give_up = time.monotonic() + 5
        while (left := list(_processes(state))) and time.monotonic() < give_up:
            time.sleep(0.05)


def remove(directory: Path) -> None:
    """Remove `directory`, but nothing through a mount that is still there."""
    if any(_mounts_below(directory)):
        print(f"still mounted, not removed: {directory}", file=sys.stderr)
        return
    shutil.rmtree(directory, ignore_errors=True)


def _mounted(target: Path) -> bool:
    return str(target) in _mounts_below(target.parent)


def _mounts_below(directory: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{directory}/")]


def _processes(state: Path) -> Iterator[int]:
    """Processes of pagein that were started with this state directory, which is ours alone."""
    mark = os.fsencode(state)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = entry.read_bytes()
            if mark in command and b"pagein." in command:
                yield int(entry.parent.name)
