"""When to ask again: pauses with full jitter, and what a server says of it. No I/O.

Full jitter: each pause is drawn from nothing up to a bound that doubles, so that those who were
refused together do not come back together. What a server asks for (Retry-After) comes before that.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final

FIRST: Final = 0.2
"""Seconds: the bound of the first pause; doubled for each further one."""

MOST: Final = 2.0
"""Seconds: the largest bound."""

ATTEMPTS: Final = 4
"""How often something is asked for that might be answered the next time, where nobody reads."""

Draw = Callable[[], float]
"""A number from [0, 1)."""


class Backoff:
    """The pauses of one who tries again and again."""

    def __init__(
        self, first: float = FIRST, most: float = MOST, draw: Draw = random.random
    ) -> None:
        """`first` and `most` in seconds."""
        self._bound = first
        self._most = most
        self._draw = draw

    def pause(self, after: float | None = None, luck: float | None = None) -> float:
        """Seconds to wait before the next try.

        `after`: what the server asked for, at least. `luck`: from [0, 1), drawn by somebody else,
        for several who are to ask again as one.
        """
        spread, self._bound = self._bound, min(2 * self._bound, self._most)
        return (after or 0.0) + spread * (self._draw() if luck is None else luck)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header (RFC 9110 10.2.3); a date counts from the Date header's.

    Names of `headers` are in lower case, or the mapping does not mind.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        until, now = (parsedate_to_datetime(text) for text in (value, headers.get("date", "")))
        return max((until - now).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):  # not dates, or only one with a time zone
        return None
