"""How one server does: a circuit breaker, and who is asked before whom. No I/O, no clock.

The breaker is *closed* while the server answers now and then. When nothing but failures came for
`fail_after` seconds it *opens*: requests are refused at once, so that readers fail fast and do not
wait for a deadline each. From time to time one request is let through (*half-open*); an answer
closes the breaker, a failure leaves it open for longer.

Where there are mirrors, one that failed, or sent wrong bytes, stands aside for a while: the others
are asked before it. One that asked for a pause (Retry-After) gets it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final

from pagein.origins.retry import Draw

FAIL_AFTER: Final = 30.0
"""Seconds of nothing but failures after which a server counts as dead, unless said otherwise."""

PROBE_FIRST: Final = 1.0
PROBE_MOST: Final = 30.0
"""Seconds from the opening to the first probe, and between probes at most; doubling."""

ASIDE_FIRST: Final = 1.0
ASIDE_MOST: Final = 60.0
"""Seconds that a mirror stands aside after a failure, doubling for each in a row."""

LIED: Final = 300.0
"""Seconds that a mirror stands aside after wrong bytes."""

BUSY_MOST: Final = 60.0
"""Seconds: a server that asks for a longer pause is asked once in that time all the same."""

_TOGETHER: Final = 10.0
"""Seconds between failures that are one trouble: more than anybody pauses between tries."""

_SILENT: Final = 0.25
"""The part of `fail_after` after which a request that was given up counts as not answered."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request that was let through at `begun`."""

    begun: float
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request is not to be made: for how many seconds more, and why, in words."""

    seconds: float
    cause: str
    down: bool
    """The breaker is open; else the server asked for a pause."""


class Health:
    """One server's; times are in seconds of any clock that never goes back."""

    def __init__(
        self, fail_after: float = FAIL_AFTER, draw: Draw = random.random, *, name: str = ""
    ) -> None:
        self.name = name
        self._fail_after = fail_after
        self._draw = draw
        self._failing_since: float | None = None
        self._failed_last = 0.0
        self._alive = 0.0
        self._failures = 0
        self._open = False
        self._probe_at = 0.0
        self._probe_pause = PROBE_FIRST
        self._probing: Attempt | None = None
        self._aside_until = 0.0
        self._lied_until = 0.0
        self._busy_until = 0.0
        self.error = ""
        """What went wrong last."""

    # ---- a request

    def begin(self, now: float) -> Attempt | Refusal:
        """Before a request; `good`, `bad`, `busy` or `dropped` ends what was let through."""
        if now < self._busy_until:
            left = self._busy_until - now
            return Refusal(left, f"asked not to be asked for another {left:.1f} s", False)
        if not self._open:
            return Attempt(now)
        if not self._may_probe(now):
            left = max(self._probe_at - now, 0.0)
            return Refusal(left, f"has not answered for {self._failing(now):.0f} s", True)
        self._probing = Attempt(now, probe=True)
        return self._probing

    def good(self, attempt: Attempt, now: float) -> bool:
        """It answered; whether that closed the breaker."""
        closed, self._open = self._open, False
        self._ended(attempt)
        self._failing_since = None
        self._failures = 0
        self._aside_until = 0.0
        self._probe_pause = PROBE_FIRST
        return closed

    def alive(self, now: float) -> bool:
        """Some of an answer came; whether that closed the breaker."""
        self._alive = now
        closed, self._open = self._open, False
        return closed

    def bad(self, attempt: Attempt, now: float, error: str) -> bool:
        """It did not answer, or not as a server that works; whether that opened the breaker."""
        # What lies far apart, with nothing asked between, is no proof of a dead server.
        unasked = attempt.begun - self._failed_last
        if self._failing_since is None or unasked > max(self._fail_after, _TOGETHER):
            self._failing_since = attempt.begun
        # Nor is an answer that broke off: it was alive as long as that came.
        self._failing_since = max(self._failing_since, self._alive)
        self._failed_last = now
        self._failures += 1
        self.error = error
        self._aside_until = now + self._aside()
        self._ended(attempt)
        if self._open:
            if attempt.probe:
                self._probe_pause = min(2 * self._probe_pause, PROBE_MOST)
                self._probe_at = now + self._jittered(self._probe_pause)
            return False
        self._open = now - self._failing_since >= self._fail_after
        if self._open:
            self._probe_pause = PROBE_FIRST
            self._probe_at = now + self._jittered(PROBE_FIRST)
        return self._open

    def busy(self, attempt: Attempt, now: float, seconds: float | None) -> None:
        """It is alive, and does not want to answer now; `seconds` is what it asked for."""
        self._ended(attempt)
        self._busy_until = now + min(seconds or 0.0, BUSY_MOST)

    def dropped(self, attempt: Attempt, now: float, *, answering: bool = False) -> bool:
        """Whoever asked gave up; whether that opened the breaker.

        `answering`: the answer had begun. What it did not bring in time is a failure of its own.
        """
        if not answering and now - attempt.begun >= self._fail_after * _SILENT:
            return self.bad(attempt, now, f"no answer within {now - attempt.begun:.1f} s")
        self._ended(attempt)
        return False

    def lied(self, now: float, error: str) -> None:
        """What came from it was wrong."""
        self.error = error
        self._lied_until = now + LIED

    # ---- what is known

    def rank(self, now: float) -> tuple[int, float]:
        """Who is to be asked first: the least; of those in trouble who was so longest ago."""
        if now < self._busy_until:
            return 2, self._busy_until
        if self._open and not self._may_probe(now):
            return 3, self._probe_at
        aside = max(self._aside_until, self._lied_until)
        return (1, aside) if now < aside else (0, 0.0)

    @property
    def troubled(self) -> bool:
        """Whether its last request failed."""
        return self._failures > 0

    def state(self, now: float) -> str:
        """`closed`, `open` or `half-open`."""
        if not self._open:
            return "closed"
        return "half-open" if self._probing is not None or now >= self._probe_at else "open"

    def status(self, now: float) -> dict[str, Any]:
        """For `pagein status`; seconds from now."""
        return {
            "state": self.state(now),
            "failures": self._failures,
            "failing_for": self._failing(now),
            "next_try": max(self._probe_at - now, 0.0) if self._open else 0.0,
            "aside_for": max(self._aside_until - now, self._lied_until - now, 0.0),
            "busy_for": max(self._busy_until - now, 0.0),
            "last_error": self.error or None,
        }

    def _failing(self, now: float) -> float:
        return 0.0 if self._failing_since is None else now - self._failing_since

    def _may_probe(self, now: float) -> bool:
        # A probe that nobody ended is not waited for for ever.
        hangs = self._probing is not None and now - self._probing.begun > PROBE_MOST
        return now >= self._probe_at and (self._probing is None or hangs)

    def _aside(self) -> float:
        pause = ASIDE_FIRST * float(2 ** min(self._failures - 1, 16))
        return self._jittered(min(pause, ASIDE_MOST))

    def _jittered(self, seconds: float) -> float:
        # Half of it at least: those who probe together come back apart, and not at once.
        return seconds * (0.5 + 0.5 * self._draw())

    def _ended(self, attempt: Attempt) -> None:
        if self._probing is attempt:
            self._probing = None
