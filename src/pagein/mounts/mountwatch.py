"""Notices changes of the mount table without waking up for anything else."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable


class MountWatch:
    """Calls back in the loop after /proc/self/mountinfo has changed.

    The file signals a change by POLLPRI, which asyncio does not watch for; an epoll instance that
    holds it is itself readable then, and asyncio can watch that.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        """Watch until `close`; `changed` is called on `loop`."""
        self._loop = loop
        self._changed = changed
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._fd, select.EPOLLPRI | select.EPOLLERR)
        self._epoll.poll(0)
        loop.add_reader(self._epoll.fileno(), self._ready)

    def close(self) -> None:
        """Stop watching."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        os.close(self._fd)

    def _ready(self) -> None:
        # To make it unreadable again. What it returns does not count: mountinfo tells a change to
        # the first poll only, and that was the loop's, through the instance.
        self._epoll.poll(0)
        self._changed()
