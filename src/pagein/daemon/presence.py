"""What the cache file itself says is in it: SEEK_DATA and SEEK_HOLE through an anonymous fd.

A new daemon knows nothing of what an earlier one fetched. The kernel does, and asks only for holes;
but a granule around a hole would bring its neighbours a second time.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from pagein.daemon.device import AnonFd
from pagein.daemon.fill import Fill
from pagein.protocol.messages import PAGE_SIZE
from pagein.rangeset import RangeSet

SEED_SECONDS: Final = 10.0
"""Seconds that reading the extents of one blob may take; what is unknown then is fetched again."""

SEED_EXTENTS: Final = 65536
"""Extents of one blob that are looked at."""


async def extents(anon: AnonFd, start: int, end: int) -> AsyncGenerator[tuple[int, int], None]:
    """The parts of [start, end) that hold data, in order, in bytes; OSError as lseek."""
    for _ in range(SEED_EXTENTS):
        if start >= end:
            return
        try:
            data = await anon.lseek(start, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # no data from here on
                return
            raise
        if data >= end:
            return
        start = await anon.lseek(data, os.SEEK_HOLE)
        if start <= data:  # no file answers so; do not ask for ever
            raise OSError(errno.EIO, f"SEEK_HOLE at {data} answered {start}")
        yield data, min(start, end)


async def seed(fill: Fill, anon: AnonFd) -> None:
    """Tell `fill` what the cache file holds, within `SEED_SECONDS`; OSError when it cannot."""
    async with asyncio.timeout(SEED_SECONDS), aclosing(extents(anon, 0, fill.size)) as found:
        async for low, high in found:
            # The last page of the blob is in the file as a whole.
            fill.seed([(low, high if high < fill.size else -(-high // PAGE_SIZE) * PAGE_SIZE)])


async def recheck(fill: Fill, anon: AnonFd, off: int, length: int) -> None:
    """Make `fill` forget what it takes for present in a range that the cache file has not.

    A READ for bytes that were written is usual: it was sent before they were. But it may also be
    the sign that the cache lost them, and then trusting ourselves would fail it for ever.
    """
    end = min(off + length, fill.size)
    held = RangeSet()
    async for low, high in extents(anon, off, end):
        held.add(low, high)
    for low, high in held.gaps(min(off, end), end):
        fill.forget(low, high - low)
