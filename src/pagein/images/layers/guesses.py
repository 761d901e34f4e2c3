"""How much may be fetched that nobody asked for: as long as most of it is used. Pure.

Who reads a span often reads the next one soon: files lie in a layer in the order of directories,
and what is used together was installed together. To have it on its way already hides a round
trip. So guesses are made on credit: those not used yet, or never, stay within a fixed part of what
was asked for. A reader in random places soon has no credit left; one that goes forward earns it
with each guess that comes true, and then guesses further ahead.
"""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.4
"""Unused guesses over what was asked for, at most: 29 % of all bytes fetched."""

FREE: Final = 2 << 20
"""Bytes that are asked for before the first guess: a single small file costs its spans alone."""

MEMORY: Final = 64 << 20
"""Bytes asked for after which older ones count half: credit for today is not from last week."""

FORESEEN: Final = 12 << 20
"""Bytes that were foreseen and are not used, or not yet: beyond them nothing more is."""

_RUN = 4  # guesses in a row that came true, for each further span that is guessed at once
_AT_ONCE = 4


class Guesses:
    """The credit of all layers of a process; sizes are bytes of compressed layers."""

    def __init__(self) -> None:
        self._asked = 0.0
        self._foreseen = 0.0
        self._unused = 0.0

    def asked(self, size: int) -> None:
        """Somebody reads what was not guessed."""
        self._asked += size
        if self._asked > MEMORY:
            self._asked /= 2
            self._unused /= 2

    def foresee(self, size: int) -> bool:
        """Whether there is room for something that is said to be read soon; if so it is made."""
        if self._foreseen + size > FORESEEN:
            return False
        self._foreseen += size
        return True

    def foreseen(self, size: int) -> None:
        """Somebody reads what was foreseen."""
        self._foreseen = max(0.0, self._foreseen - size)
        self.asked(size)

    def came_true(self, size: int) -> None:
        """Somebody reads what was guessed."""
        self._unused = max(0.0, self._unused - size)
        self.asked(size)

    def allow(self, size: int) -> bool:
        """Whether there is credit for a guess; if so it is made."""
        if self._unused + size > SHARE * max(0.0, self._asked - FREE):
            return False
        self._unused += size
        return True


def at_once(run: int) -> int:
    """Spans to guess after `run` guesses in a row that came true."""
    return min(1 + run // _RUN, _AT_ONCE)
