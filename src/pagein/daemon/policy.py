"""What `--background` says, for the command line and the user half; loads nothing else."""

from __future__ import annotations

import errno
import re
from typing import Final

OFF: Final = "off"
IDLE: Final = "idle"

_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}


def parse_background(text: str) -> float | None:
    """`off`, `idle`, or bytes per second (10M): what may be used; None for nothing.

    Raises OSError (EINVAL) for anything else.
    """
    if text == OFF:
        return None
    if text == IDLE:
        return float("inf")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", text, re.ASCII)
    rate = float(match[1]) * _UNITS[match[2]] if match is not None else 0.0
    if rate < 1:
        cause = f"--background {text}: use off, idle, or bytes per second such as 500k or 10M"
        raise OSError(errno.EINVAL, cause)
    return rate
