"""What the user half counts: bytes and times by the reason they were fetched for, and who answered.

Plain integers, changed on the event loop only, whether or not anybody looks: `pagein top` and the
metrics do (docs/metrics.md). To count a READ costs less than a microsecond.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

BUCKETS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Seconds: upper bounds of the buckets of each histogram; longer ones are in one more."""

HOSTS: Final = 64
"""Hosts that are told apart; the answers of further ones count as those of `OTHERS`."""

OTHERS: Final = "other"


class Kind(StrEnum):
    """Why bytes are fetched, the most urgent first."""

    DEMAND = "demand"
    """A READ waits for them."""
    AHEAD = "ahead"
    """They lie around a READ, or ahead of a stream of them."""
    PREFETCH = "prefetch"
    """A trace names them."""
    BACKGROUND = "background"
    """The rest of a blob, while nothing else is to be done."""


class Cause(StrEnum):
    """What a READ waited for."""

    PRESENT = "present"
    """Nothing: its bytes had come since it was sent."""
    AT_HAND = "at_hand"
    """A copy: its bytes were in this machine's memory."""
    IN_FLIGHT = "in_flight"
    """Bytes that were on their way already."""
    FETCHED = "fetched"
    """Some that were asked for on its account."""


class Histogram:
    """How many observations of so many seconds, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        """How many."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Now:
    """What holds at this moment: reads that wait, bytes of the blobs that are open."""

    waiting: int
    oldest: float
    """Seconds."""
    present: int
    size: int


class Tally:
    """The counts of one user half, over all its blobs.

    Attributes:
        fetched: bytes given to the cache, by kind; `DEMAND` is what a READ waited for when it came.
        reads: seconds that READs took, from their arrival to their last byte or their failure.
        fetches: seconds that fetches took, by what they were begun for, their waits included.
        failed_reads: READs that were answered without their bytes.
        failed_fetches: fetches that ended with an error.
        retries: how often a READ had a fetch made again.
        answers: (host, status code, or "failed" for none) -> how many requests ended so.
    """

    def __init__(self) -> None:
        self.fetched = dict.fromkeys(Kind, 0)
        self.reads = {cause: Histogram() for cause in Cause}
        self.fetches = {kind: Histogram() for kind in Kind}
        self.failed_reads = 0
        self.failed_fetches = 0
        self.retries = 0
        self.answers: dict[tuple[str, str], int] = {}
        self._hosts: set[str] = set()

    def landed(self, kind: Kind, size: int, wanted: int) -> None:
        """`size` bytes of a fetch of a `kind` have come; READs wait for `wanted` of them."""
        self.fetched[Kind.DEMAND] += wanted
        self.fetched[Kind.AHEAD if kind is Kind.DEMAND else kind] += size - wanted

    def ended(self, kind: Kind, seconds: float, error: Exception | None) -> None:
        """A fetch is over."""
        self.fetches[kind].observe(seconds)
        self.failed_fetches += error is not None

    def answered(self, host: str, code: str) -> None:
        """A server answered a request with a status `code`, or not at all: "failed"."""
        if host not in self._hosts:
            if len(self._hosts) >= HOSTS:
                host = OTHERS
            self._hosts.add(host)
        self.answers[host, code] = self.answers.get((host, code), 0) + 1

    def values(self) -> dict[str, Any]:
        """Counts as plain values, for the control socket."""
        hosts: dict[str, dict[str, int]] = {}
        for (host, code), count in self.answers.items():
            found = hosts.setdefault(host, {"requests": 0, "errors": 0})
            found["requests"] += count
            found["errors"] += count * is_error(code)
        return {
            "fetched": {kind.value: count for kind, count in self.fetched.items()},
            "reads": {cause.value: each.count for cause, each in self.reads.items()},
            "read_seconds": sum(each.sum for each in self.reads.values()),
            "failed_reads": self.failed_reads,
            "failed_fetches": self.failed_fetches,
            "retries": self.retries,
            "hosts": hosts,
        }


def is_error(code: str) -> bool:
    """Whether an answer brought nothing. A redirect, and 401 that asks for a token, did."""
    return not (code.startswith(("2", "3")) or code == "401")
