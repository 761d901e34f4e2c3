"""Asking the kernel half for a stack: layers, lowest first, as one tree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pagein.cli.halves import Ask


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: a name that tells it from all others (its digest), and its blobs as `blob_of`'s."""

    name: str
    blobs: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Writable:
    """Where a stack keeps what is written: `upper` and `work`, made below `directory`."""

    directory: str
    volatile: bool = False
    """Whether it may be lost when the machine dies; then nothing is synced at the end."""

    def question(self) -> dict[str, Any]:
        """As the kernel half wants it."""
        where = os.path.realpath(self.directory)
        names = {name: os.path.join(where, name) for name in ("upper", "work")}
        return {**names, "volatile": self.volatile}


def mount_stack(
    ask: Ask,
    target: str,
    layers: Sequence[Layer],
    *,
    label: str,
    writable: Writable | None = None,
    suid: bool = False,
    loop: str = "auto",
    timeout: float,
) -> None:
    """Mount `layers`, lowest first, on `target`, an absolute path without symbolic links.

    `label` is what the user calls it. `suid` lets set-uid programs work, below the runtime
    directory only. Raises ControlError in one line; nothing is left mounted then.
    """
    question = {
        "op": "mount-stack",
        "target": target,
        "label": label,
        "layers": [{"name": each.name, "blobs": each.blobs} for each in layers],
        "rw": writable.question() if writable else None,
        "suid": suid,
        "loop": loop,
    }
    ask(question, 4 * timeout + 30)
