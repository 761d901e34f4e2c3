"""Memory of the fill engine: a fixed number of page-aligned buffers, and who may go first.

What arrives is copied once, into a buffer whose slices go straight to pwrite. The buffers are
private mappings that stay resident while they are reused: the real device writes with O_DIRECT and
refuses other memory, and a write whose source is not resident can leave zeros behind when its
process is killed (facts cachefiles-kernel 8.1, half-to-half 2).

One `Budget` serves all blobs of a daemon, so that its limits hold for the whole process.
"""

from __future__ import annotations

import asyncio
import mmap
from collections import deque
from collections.abc import Callable
from typing import Final

BUFFER_SIZE: Final = 1 << 20
"""Bytes of one buffer, and so the most that one pwrite gets."""

BYTES_IN_FLIGHT: Final = 64 << 20
"""Bytes that may be received and not yet written, over all blobs of a budget."""

AHEAD_RUNNING: Final = 8
"""Fetches that nobody waits for which may run at once."""

HELD_MOST: Final = 16
"""Prefetches that may be held back at once, each with its connection open."""

_IDLE_KEPT = 8  # free buffers that keep their memory


class GaveWay(Exception):
    """A prefetch ended early so that others may go on; what it did not bring is fetched later."""


class Buffer:
    """One page-aligned piece of memory, shared by who fills it and the writes of its parts."""

    __slots__ = ("_map", "broken", "users", "view")

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._map)
        self.users = 0
        self.broken = False


class Budget:
    """Buffers to receive into, and the rule "demand before prefetch", for one event loop."""

    def __init__(
        self,
        limit: int = BYTES_IN_FLIGHT,
        *,
        buffer_size: int = BUFFER_SIZE,
        ahead: int = AHEAD_RUNNING,
    ) -> None:
        """`limit` and `buffer_size` are bytes; `ahead` is a number of fetches.

        The prefetch must never be able to hold every buffer: each fetch holds a few, and `limit`
        has room for twice as many as `ahead` of them need.
        """
        self.buffer_size = buffer_size
        self._left = max(1, limit // buffer_size)
        self._free: list[Buffer] = []
        self._queue: deque[asyncio.Future[Buffer]] = deque()
        self._ahead = ahead
        self._held = 0
        self._running: set[object] = set()
        self._urgent: set[object] = set()
        self._background: set[object] = set()
        self._changes: list[asyncio.Future[None]] = []

    # ---- buffers

    async def take(self) -> Buffer:
        """The next free buffer, with one user; waits in line while all are in use."""
        if self._free:
            buffer = self._free.pop()
        elif self._left:
            self._left -= 1
            buffer = Buffer(self.buffer_size)
        else:
            buffer = await self._wait_for_buffer()
        buffer.users = 1
        return buffer

    def drop(self, buffer: Buffer) -> None:
        """One user less; the last one gives the buffer back.

        A broken buffer is forgotten instead: a write of it failed or was abandoned, and a thread
        may still be reading it. It must never hold other bytes; it goes when that thread lets go.
        """
        buffer.users -= 1
        if buffer.users:
            return
        if buffer.broken:
            buffer = Buffer(self.buffer_size)
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(buffer)
                return
        if len(self._free) < _IDLE_KEPT:
            self._free.append(buffer)
        else:
            self._left += 1

    async def _wait_for_buffer(self) -> Buffer:
        waiter: asyncio.Future[Buffer] = asyncio.get_running_loop().create_future()
        self._queue.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                buffer = waiter.result()
                buffer.users = 1
                self.drop(buffer)
            raise

    # ---- who goes first

    def mark(self, fetch: object, *, urgent: bool) -> None:
        """Say whether somebody waits for what `fetch` brings."""
        if urgent is (fetch in self._urgent):
            return
        if urgent:
            self._urgent.add(fetch)
        else:
            self._urgent.discard(fetch)
        self._changed()

    async def begin(self, fetch: object, *, background: bool = False) -> None:
        """Wait until `fetch` may ask its origin: at once if somebody waits for it."""
        if background:
            self._background.add(fetch)
        while fetch not in self._urgent and len(self._running - self._urgent) >= self._ahead:
            await self._change()
        self._running.add(fetch)

    def must_yield(self, fetch: object, spared: Callable[[object], bool] = lambda _: False) -> bool:
        """Whether `fetch` is a prefetch while somebody waits for another one, that is not `spared`.

        Spared is the fetch that it continues: both serve the same reader.
        """
        if not self._urgent or fetch in self._urgent:
            return False
        return not all(spared(other) for other in self._urgent)

    async def yield_to_demand(
        self, fetch: object, spared: Callable[[object], bool] = lambda _: False
    ) -> None:
        """Hold a running prefetch back while it must yield.

        Its connection stays open and fills up, so it goes on at once when its turn comes. An
        origin's connections are few, though: GaveWay if too many prefetches are held already.
        """
        if self._held >= HELD_MOST:
            raise GaveWay
        self._held += 1
        try:
            while self.must_yield(fetch, spared):
                await self._change()
        finally:
            self._held -= 1

    def end(self, fetch: object) -> None:
        """`fetch` is over. Harmless if it never began."""
        self._running.discard(fetch)
        self._urgent.discard(fetch)
        self._background.discard(fetch)
        self._changed()

    @property
    def busy(self) -> bool:
        """Whether something is fetched, but in the background."""
        return bool(self._urgent) or not self._running <= self._background

    async def quiet(self) -> None:
        """Wait until nothing is."""
        while self.busy:
            await self._change()

    def _changed(self) -> None:
        changes, self._changes = self._changes, []
        for future in changes:
            if not future.done():
                future.set_result(None)

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.append(future)
        await future
