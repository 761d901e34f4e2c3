"""The network is for those who wait for it: what nobody waits for yet is received meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_PATIENCE: Final = 1.0  # seconds that a download pauses at most: nothing may wait in a ring


class Traffic:
    """Who waits for the network right now, of all layers that share it."""

    def __init__(self) -> None:
        self._direct = 0
        self._changes: list[asyncio.Future[None]] = []

    @contextmanager
    def direct(self) -> Iterator[None]:
        """For as long as the next bytes of a request are waited for that is no download."""
        self._direct += 1
        self._changed()
        try:
            yield
        finally:
            self._direct -= 1
            self._changed()

    async def quiet(self, wanted: Callable[[], bool] = lambda: False) -> None:
        """Return when nobody waits, or after a while; or when it is `wanted` that waits."""
        if not self._direct or wanted():
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                while self._direct and not wanted():
                    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._changes.append(future)
                    await future
        except TimeoutError:
            pass

    def _changed(self) -> None:
        changes, self._changes = self._changes, []
        for future in changes:
            if not future.done():
                future.set_result(None)
