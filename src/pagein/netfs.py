"""Reading through a cache that its netfs fills: the kernel's fs/netfs, for the original mode.

In this mode nobody is asked what is missing: who reads fetches it, writes it through the cookie and
goes on (seed, "The essential difference between these two modes"). A cache is an advantage and no
condition: without a cookie, without room, after an error of the disk, the data come from the server
all the same.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
from collections.abc import Awaitable, Callable

from pagein.fscache import Advice, Cookie, FsCache, Known
from pagein.protocol.messages import PAGE_SIZE

log = logging.getLogger("pagein.netfs")

Fetch = Callable[[int, int], Awaitable[bytes]]
"""Offset and length in bytes -> those bytes, all of them; OSError when the server fails."""


class NetfsFile:
    """A file of a netfs, open."""

    def __init__(self, cookie: Cookie | None, known: Known, fetch: Fetch) -> None:
        """Without a cookie everything is fetched."""
        self.cookie = cookie
        self.size = known.size
        self._fetch = fetch
        self._fetching: dict[tuple[int, int], asyncio.Event] = {}
        """Ranges that are under way from the server, and when that is over."""

    @classmethod
    async def open(
        cls, fscache: FsCache, volume_key: bytes, cookie_key: bytes, known: Known, fetch: Fetch
    ) -> NetfsFile:
        """Look the file up. That it cannot be cached is no error. Raises EINVAL for bad keys."""
        try:
            cookie = await fscache.acquire(volume_key, cookie_key, Advice.NONE, known)
        except OSError as problem:
            if problem.errno == errno.EINVAL:
                raise
            log.info("%r is not cached: %s", cookie_key, problem.__cause__ or problem)
            return cls(None, known, fetch)
        return cls(cookie, known, fetch)

    async def close(self, fscache: FsCache) -> None:
        """Give the cookie back."""
        cookie, self.cookie = self.cookie, None
        if cookie is not None:
            await fscache.relinquish(cookie)

    async def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range, as many as there are. Raises OSError when the server fails."""
        end = min(offset + length, self.size)
        found = bytearray()
        while (at := offset + len(found)) < end:
            found += await self._part(at, end)
        return bytes(found)

    async def _part(self, start: int, end: int) -> bytes:
        """What can be had in one piece from `start` on."""
        cookie = self.cookie
        if cookie is None or cookie.withdrawn:
            return await self._fetch(start, end - start)
        first = start & -PAGE_SIZE
        gap = cookie.file.present.first_gap(first, cookie.length)
        if gap is None or gap[0] > start:
            part = min(end, gap[0] if gap else cookie.length)
            return await self._hit(cookie, start, part)
        return await self._miss(cookie, start, min(end, gap[1]))

    async def _hit(self, cookie: Cookie, start: int, end: int) -> bytes:
        data = bytearray(end - start)
        loop = asyncio.get_running_loop()
        try:
            got = await loop.run_in_executor(None, cookie.file.read, [memoryview(data)], start)
            if got == len(data):
                return bytes(data)
            log.warning("%r: %d of %d cached bytes", cookie.object.cookie_key, got, len(data))
        except OSError as problem:
            log.warning("%r cannot be read: %s", cookie.object.cookie_key, problem)
        return await self._fetch(start, end - start)

    async def _miss(self, cookie: Cookie, start: int, end: int) -> bytes:
        """Fetch whole pages and write them. Who comes meanwhile waits, and looks again."""
        first = start & -PAGE_SIZE
        last = min((end + PAGE_SIZE - 1) & -PAGE_SIZE, cookie.length)
        for (low, high), over in self._fetching.items():
            if low < last and first < high:
                await over.wait()
                return b""
        over = self._fetching[first, last] = asyncio.Event()
        try:
            data = await self._fetch(first, min(last, self.size) - first)
            await self._store(cookie, data, first)
        finally:
            del self._fetching[first, last]
            over.set()
        return data[start - first : end - first]

    async def _store(self, cookie: Cookie, data: bytes, offset: int) -> None:
        """Write what was fetched, its last page padded with zeros; no room is no error."""
        size = (len(data) + PAGE_SIZE - 1) & -PAGE_SIZE
        with mmap.mmap(-1, size) as memory:  # resident once it is written, as it has to be
            memory.write(data)
            view = memoryview(memory)
            try:
                await cookie.file.write(view, offset)
            except OSError as problem:
                log.info("%r is not cached at %d: %s", cookie.object.cookie_key, offset, problem)
            finally:
                view.release()
