"""The keeper begun before the command line is read in full: reading it takes as long as that.

What is guessed here from its words decides about time only: a process that turns out not to be
wanted is told to end, and one that is wanted and was not begun is started later.
"""

from __future__ import annotations

import fcntl
import os

from pagein import standby

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_STATE_DIR = "/run/pagein"
_GLOBAL = ("--state-dir", "--cache", "--hosts-dir")
"""Options with a value that may stand before the command."""
_OTHERWISE = ("--help", "-h", "--front-end", "-o")
"""Words of commands that start nothing, or something else."""


def begin(words: Sequence[str]) -> None:
    """Begin a keeper, if it looks as if this command line will start one."""
    state_dir = wanted_in(words)
    if state_dir is None or os.geteuid():
        return
    try:
        if held(state_dir):
            return
    except OSError:  # whoever needs it will say so
        return
    standby.prepare("pagein.keeper", bound=False)


def wanted_in(words: Sequence[str]) -> str | None:
    """The runtime directory in which a command line that mounts something wants a keeper."""
    at = 0
    while words[at : at + 1] and words[at] in _GLOBAL:
        at += 2
    ours = words[: words.index("--")] if "--" in words else words
    if ours[at : at + 1] not in (["run"], ["mount"]) or len(words) < at + 2:
        return None
    if any(word in _OTHERWISE for word in ours):
        return None
    found = DEFAULT_STATE_DIR
    for word, value in zip(ours, [*ours[1:], ""], strict=True):
        if word == "--state-dir":
            found = value
        elif word.startswith("--state-dir="):
            found = word.partition("=")[2]
    return found


def held(state_dir: str) -> bool:
    """Whether a keeper holds this runtime directory."""
    try:
        fd = os.open(os.path.join(state_dir, "lock"), os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
