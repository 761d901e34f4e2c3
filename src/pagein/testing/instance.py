"""A pagein of one's own: runtime files and cache in a private directory, nothing left at the end.

    with Instance(directory) as pagein:
        pagein.mount([url_of_metadata, url_of_blob], target)

For demonstrations, measurements and tests. Everything goes through the command line, as a user's
would. Mounting needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pagein.mounts.syscalls import mounts

_COMMAND_TIMEOUT = 180.0
_ENDS_BY_ITSELF = 15.0
"""Seconds that the processes have to end when nothing is mounted any more."""
_KILLED = 5.0


class CommandFailed(Exception):
    """A pagein command did not succeed; the text is what it said."""


class Instance:
    """The directories `run` and `cache` below `directory`, and whatever is mounted with them."""

    def __init__(self, directory: Path) -> None:
        """`directory` must be readable by every user: what fetches is not root."""
        self.state = directory / "run"
        self.cache = directory / "cache"
        self._targets: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def run(self, *arguments: str | Path) -> str:
        """What `pagein ARGUMENTS` prints. Raises CommandFailed."""
        # In a session of its own, so that a Ctrl-C does not end it half-way.
        ran = subprocess.run(
            [*self._command(), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_TIMEOUT,
            start_new_session=True,
        )
        if ran.returncode:
            raise CommandFailed(f"pagein {arguments[0]}: {(ran.stderr or ran.stdout).strip()}")
        return ran.stdout

    def mount(self, sources: Sequence[str], target: Path, *more: str) -> None:
        """Mount an image, metadata or single file first, on the existing directory `target`.

        `more`: further options of `pagein mount`.
        """
        primary, *devices = sources
        options = [word for device in devices for word in ("--device", device)]
        self._targets.append(target)
        self.run("mount", primary, *options, *more, target)

    def umount(self, target: Path) -> None:
        """Unmount; with the last mount the processes end."""
        self.run("umount", target)
        self._targets.remove(target)

    def status(self) -> dict[str, Any]:
        """`pagein status --json`."""
        found: dict[str, Any] = json.loads(self.run("status", "--json"))
        return found

    def stop(self) -> None:
        """Unmount everything, by force if need be, and wait until no process is left."""
        give_up = time.monotonic() + _ENDS_BY_ITSELF
        options: list[str] = []
        # A mount that was begun may appear only now: look again until nobody is left to make one.
        while (left := list(_processes(self.state))) and time.monotonic() < give_up:
            for target in filter(_is_mounted, self._targets):
                with contextlib.suppress(CommandFailed, subprocess.TimeoutExpired):
                    self.run("umount", *options, target)
                options = ["--lazy"]
            time.sleep(0.02)
        self._targets.clear()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            left = _wait_gone(self.state, time.monotonic() + _KILLED) if left else []

    def _command(self) -> list[str]:
        command = [sys.executable, "-P", "-m", "pagein.cli.main"]
        return [*command, "--state-dir", str(self.state), "--cache", str(self.cache)]


def mounted_below(directory: Path) -> list[str]:
    """Mount points below `directory`."""
    below = f"{os.path.realpath(directory)}/"
    return [entry.target for entry in mounts() if entry.target.startswith(below)]


def _is_mounted(target: Path) -> bool:
    return os.path.realpath(target) in {entry.target for entry in mounts()}


def _wait_gone(state: Path, give_up: float) -> list[int]:
    while (left := list(_processes(state))) and time.monotonic() < give_up:
        time.sleep(0.02)
    return left


def _processes(state: Path) -> Iterator[int]:
    """Processes of pagein that were started with this directory, or with files in it."""
    mark = os.fsencode(state)
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            at_it = any(word == mark or word.startswith(mark + b"/") for word in words)
            if at_it and any(word.startswith(b"pagein.") for word in words):
                yield int(entry.parent.name)
