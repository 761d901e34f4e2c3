"""Whether there is a runc at all, and how it fails: what is asked before anything is begun."""

from __future__ import annotations

import errno
import os
import shutil
from typing import Final

FAILED: Final = 125
"""Exit status for what pagein or runc could not do; 126 and 127 are about the command, as docker
and the shell have it."""
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127


class RunError(OSError):
    """A container that could not be started; `status` is what the command exits with."""

    def __init__(self, status: int, text: str, *, said: bool = False) -> None:
        """`said`: runc has told the user already, on the standard error that it hands on."""
        super().__init__(errno.ENOEXEC, text)
        self.status = status
        self.said = said


def find() -> str:
    """The path of runc. Raises RunError."""
    found = shutil.which("runc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin")
    if found is None:
        text = "runc is not installed: `apt-get install runc`, or your system's package of it"
        raise RunError(FAILED, text)
    return found
