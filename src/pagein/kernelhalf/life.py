"""When the process that has the mounts ends, and the keeper with it.

When it is told to; at once after the last umount or a failed mount; else after a while with nothing
mounted. Never while a command is connected.
"""

from __future__ import annotations

import asyncio
import errno
import math
from collections.abc import Callable


class Life:
    """The life of one such process."""

    def __init__(
        self, linger: float, *, idle: Callable[[], bool], connections: Callable[[], int]
    ) -> None:
        """`linger`: seconds to stay with nothing to do; infinite: until told to end."""
        self._linger = linger
        self._idle = idle
        self._connections = connections
        self._news = asyncio.Event()
        self._leaving = False
        """It was decided to end: whoever asks now has to wait for the next process."""
        self.stopped = False

    def changed(self) -> None:
        """Something changed that may end the process: look at it again."""
        self._news.set()

    def stop(self) -> None:
        """End now."""
        self.stopped = True
        self._news.set()

    async def wait(self) -> None:
        """Return when the process has to end; sleeps until something changes."""
        while not self.stopped:
            self._news.clear()
            quiet = self._idle() and self._mortal
            try:
                async with asyncio.timeout(self._linger if quiet else None):
                    await self._news.wait()
            except TimeoutError:
                if self._idle() and not self._connections():
                    self._leaving = True
                    self.stop()

    @property
    def _mortal(self) -> bool:
        return math.isfinite(self._linger)

    def end_if_last(self) -> bool:
        """End after the answer to a question, if nothing is mounted and nobody else connected."""
        if not (self._mortal and self._idle() and self._connections() == 1):
            return False
        if not self._leaving:
            self._leaving = True
            asyncio.get_running_loop().call_later(0.05, self.stop)
        return True

    def check_staying(self) -> None:
        """Raise OSError ESHUTDOWN for whoever asks too late."""
        if self._leaving:
            raise OSError(errno.ESHUTDOWN, "pagein is shutting down; try again")
