"""What a scenario saw, line by line."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def errno_name(number: int | None) -> str:
    """The name of an errno. EOPNOTSUPP by that name, which Linux gives ENOTSUP's number."""
    if number == errno.EOPNOTSUPP:
        return "EOPNOTSUPP"
    return errno.errorcode.get(number or 0, str(number))


class Transcript:
    """Lines, in which paths of this run stand as names like $CACHE."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, str] = {}
        """Text that depends on the run -> what stands for it."""

    def say(self, line: str) -> None:
        """Add a line."""
        for text, name in self.names.items():
            line = line.replace(text, name)
        self.lines.append(line)

    def call(
        self, what: str, call: Callable[[], T], show: Callable[[T], object] = lambda value: value
    ) -> T | None:
        """Do `call`, add `what` and its result or errno; None if it failed."""
        try:
            value = call()
        except OSError as problem:
            self.say(f"{what}: {errno_name(problem.errno)}")
            return None
        self.say(f"{what}: {show(value)}")
        return value

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join([*self.lines, ""])


def ok(_: Any) -> str:
    """For results that say nothing."""
    return "ok"
