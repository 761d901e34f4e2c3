"""Who fetches next of what nobody waits for yet: a few bytes at a time, the most urgent first."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager


class Turns:
    """At most `limit` bytes at once, or a single request that has more. Of one event loop."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._limit = limit
        self._count = itertools.count()
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def take(self, size: int, rank: int) -> AsyncGenerator[Callable[[int], None], None]:
        """Wait for room for `size` bytes; of those who wait the lowest `rank` is first.

        Yields what is to be told of bytes that have come: others may have their room.
        """
        unseen = max(0, size - self._limit)
        size = min(size, self._limit)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._count), size, future))
        self._let_in()

        def came(count: int) -> None:
            nonlocal size, unseen
            count, unseen = max(0, count - unseen), max(0, unseen - count)
            count = min(count, size)
            size -= count
            self._left += count
            self._let_in()

        try:
            await future
            yield came
        finally:
            if future.done() and not future.cancelled():
                self._left += size
                self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            _, _, size, future = self._waiting[0]
            if future.done():  # its owner was cancelled
                heapq.heappop(self._waiting)
                continue
            if size > self._left:
                return
            heapq.heappop(self._waiting)
            self._left -= size
            future.set_result(None)
