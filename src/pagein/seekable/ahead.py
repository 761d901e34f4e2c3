"""Who reads on and on gets what comes next decoded in threads, each of them a span of its own."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

LONG: Final = 16
"""Chunks read in a row after which it is guessed that the next ones will be read as well."""

_READERS = 16  # of which it is known where they are


class Ahead:
    """Knows who reads on, and has the threads. Its owner's lock guards it."""

    def __init__(self, threads: int | None) -> None:
        """Use so many threads; None: as many as there are processors for this process."""
        self.threads = len(os.sched_getaffinity(0)) if threads is None else threads
        self._runs: OrderedDict[int, int] = OrderedDict()  # by the chunk that would come next
        self._pool: ThreadPoolExecutor | None = None

    def reads_on(self, number: int) -> bool:
        """Note that a chunk is read; whether many before it were read as well, in order."""
        run = self._runs.pop(number, 0) + 1
        self._runs[number + 1] = run
        if len(self._runs) > _READERS:
            self._runs.popitem(last=False)
        return run >= LONG

    def spans(self, size: int, memory: int) -> int:
        """How many spans of `size` bytes to decode ahead, when `memory` bytes may be kept.

        They and those that were just read must not push each other out.
        """
        return min(self.threads, memory // (4 * size)) if size else 0

    def submit(self, call: Callable[[int], None], number: int) -> bool:
        """Have it called in a thread; False if the interpreter ends, and it is not."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, "pagein seekable")
        try:
            self._pool.submit(call, number)
        except RuntimeError:
            return False
        return True

    def close(self) -> None:
        """Wait for what runs; what does not run yet never will."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
