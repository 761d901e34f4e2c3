"""From the keys of an OPEN to an origin and its size: retries, deadline, errno of each failure."""

from __future__ import annotations

import asyncio
import errno
import inspect
from collections.abc import Awaitable, Callable
from typing import Final

from pagein.daemon.objects import Key
from pagein.origins.base import Origin

OriginOf = Callable[[bytes, bytes], Origin | Awaitable[Origin]]
"""(volume key, cookie key) -> origin; KeyError or FileNotFoundError for what is unknown."""

PAUSE_FIRST: Final = 0.1
PAUSE_MOST: Final = 5.0
"""Seconds between tries, doubling from the first to the most."""

_FORGET = 30.0  # seconds after which a refused OPEN does not slow the next one down
_MOST = 1024  # refused keys that are remembered


class Opener:
    """Finds origins, and paces OPENs that fail again and again.

    A refused re-OPEN is sent again by the next read of the device, at once and for ever (facts
    cachefiles-kernel 7.1): without a pause a missing blob would cost a processor and flood its
    server.
    """

    def __init__(self, origin_of: OriginOf, timeout: float) -> None:
        """`timeout`, in seconds, is for one OPEN."""
        self._origin_of = origin_of
        self._timeout = timeout
        self._refused: dict[Key, tuple[float, float]] = {}  # when, and the pause for the next

    async def open(self, key: Key) -> tuple[Origin, int]:
        """The origin of `key` and its size in bytes; raises whatever its maker raised."""
        await self._pace(key)
        try:
            async with asyncio.timeout(self._timeout):
                found = await self._try(key)
        except Exception:
            self._slow_down(key)
            raise
        self._refused.pop(key, None)
        return found

    async def _try(self, key: Key) -> tuple[Origin, int]:
        made = self._origin_of(*key)
        origin = await made if inspect.isawaitable(made) else made
        pause = PAUSE_FIRST
        try:
            while True:
                try:
                    return origin, _checked(await origin.size())
                except OSError as exc:
                    if not getattr(exc, "retry", False):
                        raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, PAUSE_MOST)
        except BaseException:
            await origin.close()
            raise

    async def _pace(self, key: Key) -> None:
        when, pause = self._refused.get(key, (0.0, 0.0))
        left = when + pause - asyncio.get_running_loop().time()
        if key in self._refused and left > 0:
            await asyncio.sleep(min(left, PAUSE_MOST))

    def _slow_down(self, key: Key) -> None:
        now = asyncio.get_running_loop().time()
        when, pause = self._refused.pop(key, (0.0, 0.0))
        fresh = pause == 0.0 or now > when + _FORGET
        self._refused[key] = (now, PAUSE_FIRST if fresh else min(2 * pause, PAUSE_MOST))
        if len(self._refused) > _MOST:
            del self._refused[next(iter(self._refused))]


def errno_of(exc: BaseException) -> int:
    """The positive errno that tells `exc` to the kernel: 1 to 4095 (facts cachefiles-kernel 6)."""
    match exc:
        case FileNotFoundError() | KeyError():
            return errno.ENOENT
        case OSError(errno=int(number)) if 0 < number < 4096:
            return number
        case TimeoutError():
            return errno.ETIMEDOUT
        case _:
            return errno.EIO


def _checked(size: object) -> int:
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"the origin's size is {size!r}")
    return size
