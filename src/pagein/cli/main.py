"""The `pagein` command: which one it is, and what need not wait for it to be read in full."""

from __future__ import annotations

import gc
import os
import sys

from pagein.cli import early

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

COMMANDS = (
    "mount",
    "run",
    "umount",
    "status",
    "top",
    "ls",
    "cat",
    "stat",
    "du",
    "extract",
    "images",
    "index",
    "trace",
    "seekable",
    "cull",
    "daemon",
    "device",
    "exec-daemon",
    "events",
    "debug",
)
"""In the order of `--help`. Each is a function, or an `app` of several, in a module of its name."""


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pagein.cli.app import app_of

    return app_of(COMMANDS)


def wanted(words: Sequence[str]) -> Sequence[str]:
    """The command that a command line names; all, where that is not plain to see."""
    at = 0
    while at < len(words) and words[at] in ("--state-dir", "--cache"):
        at += 2
    return words[at : at + 1] if words[at : at + 1] and words[at] in COMMANDS else COMMANDS


def main() -> None:
    """Entry point of the `pagein` script."""
    early.begin(sys.argv[1:])
    gc.disable()  # importing makes no garbage, and the collector looks for it all the time
    from pagein.cli.app import app_of

    app = app_of(wanted(sys.argv[1:]))
    gc.freeze()
    gc.enable()
    try:
        app()
    except BrokenPipeError:
        os._exit(1)  # whoever read our output has gone, and there is nobody to tell


if __name__ == "__main__":
    main()
