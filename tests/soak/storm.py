"""Faults at random, as many for whoever asks as there may be on a bad day."""

import random
import threading
from collections import Counter
from email.utils import formatdate

from tests.pulled.front import Asked, Reply

from pagein.testing.webserver import Fault

_PASSING = (429, 503)


class Storm:
    """Spoils the part `rate` of all answers; seeded, though threads draw in any order."""

    def __init__(self, seed: int, rate: float) -> None:
        self.rate = rate
        self.seen: Counter[str] = Counter()
        """How often which fault was sent; "none" for honest answers."""
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def _draw(self, kinds: list[str], weights: list[int]) -> str:
        with self._lock:
            bad = self._random.random() < self.rate
            kind = self._random.choices(kinds, weights)[0] if bad else "none"
            self.seen[kind] += 1
        return kind

    def _below(self, limit: int) -> int:
        with self._lock:
            return self._random.randrange(max(1, limit))

    def _pause(self) -> str | None:
        """What Retry-After says: seconds, a date, or nothing."""
        # Longer ones would leave nothing to do in a short run: the pause is for all requests.
        return (None, None, None, "0", "1", formatdate(usegmt=True))[self._below(6)]

    # ---- with digests: a registry

    def lie(self, asked: Asked, reply: Reply) -> Reply | None:
        """For a `Front`: what becomes of an answer."""
        kinds = ["reset", "stall", "truncate", "corrupt", "status"]
        kind = self._draw(kinds, [4, 1, 4, 6, 4])
        size = len(reply.body)
        match kind:
            case "reset":
                return _cut(reply, self._below(size) if size else -1, "reset")
            case "stall":
                return _cut(reply, self._below(size), "hang")
            case "truncate":
                return _cut(reply, self._below(size), "close")
            case "corrupt" if size:
                return _corrupted(reply, self._below(size), 1 << self._below(8))
            case "status":
                return self._refused()
        return None

    def _refused(self) -> Reply:
        status = _PASSING[self._below(2)]
        pause = self._pause()
        headers = {} if pause is None else {"Retry-After": pause}
        return Reply(status, headers)

    # ---- without: a web server

    def fault(self, number: int, path: str, start: int, end: int) -> Fault | None:
        """For a `WebServer`: nothing that only a digest could tell."""
        kinds = ["reset", "hang", "short_body", "short_length", "status"]
        kind = self._draw(kinds, [4, 1, 4, 2, 4])
        match kind:
            case "reset" | "hang" | "short_body":
                after = self._below(end - start)
                return Fault(kind, after=after if after else None)
            case "short_length":
                return Fault(kind)
            case "status":
                code = _PASSING[self._below(2)]
                return Fault("status", code=code, retry_after=self._pause())
        return None


def _cut(reply: Reply, after: int, ending: str) -> Reply:
    found = Reply(reply.status, reply.headers, reply.body, reply.length, stop_after=after)
    found.ending = ending  # type: ignore[assignment]
    return found


def _corrupted(reply: Reply, at: int, bit: int) -> Reply:
    body = bytearray(reply.body)
    body[at] ^= bit
    return Reply(reply.status, reply.headers, bytes(body), reply.length)
