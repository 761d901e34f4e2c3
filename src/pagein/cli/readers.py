"""Who reads: processes by what /proc says of them, without a look at any mount.

A process that waits for us may hold the lock of its memory map, and who asks for its command line,
its maps or its wchan may come to wait for that lock too. So only `comm`, `stat`, `status` and links
are read here: those take no such lock. A link of /proc is a name that the kernel knows; reading it
opens nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_PROC = "/proc"
_KERNEL_THREAD = 0x00200000
"""PF_KTHREAD, among the flags of /proc/<pid>/stat."""


class Reader(NamedTuple):
    """A thread: the id of its process, and its name, of at most 15 bytes."""

    pid: int
    command: str


def reader_of(thread: int) -> Reader | None:
    """Whose `thread` is; None if it has ended, or is the kernel's, which reads for somebody."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        command, fields = _stat(str(thread))
        if int(fields[6]) & _KERNEL_THREAD:
            return None
        return Reader(_process_of(thread), command)
    return None


def blocked_on(targets: Sequence[str]) -> list[Reader]:
    """Processes in uninterruptible sleep that run, stand or have a file open below `targets`.

    Good guesses, no more: they may wait for something else. Who only maps a file is not found.
    """
    found = []
    for pid in filter(str.isdecimal, os.listdir(_PROC)):
        with contextlib.suppress(OSError, ValueError, IndexError):
            threads = [_stat(f"{pid}/task/{each}") for each in os.listdir(f"{_PROC}/{pid}/task")]
            blocked = [command for command, fields in threads if fields[0] == "D"]
            if blocked and any(_below(name, targets) for name in _names(pid)):
                found.append(Reader(int(pid), blocked[0]))
    return found


def _stat(process: str) -> tuple[str, list[str]]:
    """Its name, and the fields after it (proc(5)): the state comes first."""
    with open(f"{_PROC}/{process}/stat", encoding="utf-8", errors="replace") as file:
        text = file.read()
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, rest.split()


def _process_of(thread: int) -> int:
    with open(f"{_PROC}/{thread}/status", encoding="utf-8", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Tgid:"))


def _names(pid: str) -> Iterator[str]:
    for link in ("exe", "cwd", "root"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"{_PROC}/{pid}/{link}")
    for fd in os.listdir(f"{_PROC}/{pid}/fd"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"{_PROC}/{pid}/fd/{fd}")


def _below(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.startswith(f"{target}/") for target in targets)
