"""What a daemon has of an object: the file behind an anonymous fd (facts cachefiles-kernel 8)."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.ondemand import Request, error
from pagein.cachefiles.tracepoints import ONDEMAND_FD_WRITE, trace
from pagein.protocol.messages import PAGE_SIZE

if TYPE_CHECKING:
    from pagein.cachefiles.device import CachefilesDevice

_LOGICAL_BLOCK = 512


class AnonymousFile:
    """One open file description of an object's anonymous file (facts 8)."""

    def __init__(self, device: CachefilesDevice, object_id: int, handle: int) -> None:
        """Open anon/<object_id>. Raises ENOENT for an id that is not in use."""
        session = device.session
        if session is None:
            raise error(errno.ENOENT)
        self._device = device
        self.session = session
        self.object = session.requests.open_handle(object_id, handle)
        self.object_id = object_id
        self.handle = handle
        device._changed()

    def check_write(self, offset: int, length: int) -> None:
        """Raise what a write is refused with: ENOBUFS, EINVAL (facts 8.1)."""
        if offset < 0:
            raise error(errno.EINVAL)
        if self.object.file is None or self.object.size is None or self.session.cache is None:
            raise error(errno.ENOBUFS)
        if offset % PAGE_SIZE:
            raise error(errno.ENOBUFS)
        if length % _LOGICAL_BLOCK:
            raise error(errno.EINVAL)
        if length % PAGE_SIZE and offset + length < self.object.size:
            # The kernel takes it, and the rest of the page is then zeros that claim to be data.
            raise error(errno.EINVAL)

    async def pwrite(
        self, data: memoryview, offset: int, then: Callable[[int], None] | None = None
    ) -> int:
        """Write at a page multiple; returns the bytes written. `data` must be resident memory.

        `then` hears of them in the thread that wrote them; not if it is nothing that is written.
        """
        file = self._writable(offset, len(data))
        if not data:
            return 0
        self._trace_write(data, offset)
        return await file.write(data, offset, then=then, wrote=partial(self._wrote, offset))

    def begin_pwrite(
        self, data: memoryview, offset: int, then: Callable[[int], None]
    ) -> asyncio.Future[int] | None:
        """As `pwrite` of some bytes, which has begun when this returns; None if it has to wait."""
        file = self._writable(offset, len(data))
        if not file.idle(offset, len(data)):
            return None
        self._trace_write(data, offset)
        return file.begin_write(data, offset, then=then, wrote=partial(self._wrote, offset))

    def _writable(self, offset: int, length: int) -> BackingFile:
        """What such a write goes to. Raises as `check_write`."""
        self.check_write(offset, length)
        assert self.object.file is not None
        return self.object.file

    def _trace_write(self, data: memoryview, offset: int) -> None:
        if trace.on:
            trace.event(ONDEMAND_FD_WRITE, self.object.cookie_key, offset, len(data))

    def _wrote(self, offset: int, written: int) -> None:
        if self._device.wrote is not None:
            self._device.wrote(self.object, offset, written)

    def lseek(self, offset: int, whence: int) -> int:
        """SEEK_SET, END, DATA, HOLE on the cache file. ENOBUFS before copen."""
        file = self.object.file
        if file is None:
            raise error(errno.ENOBUFS)
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            return file.lseek(offset, whence)
        base = {os.SEEK_SET: 0, os.SEEK_END: file.length}.get(whence)
        if base is None or base + offset < 0:
            raise error(errno.EINVAL)
        return base + offset

    def cread(self, msg_id: int) -> None:
        """CACHEFILES_IOC_CREAD: complete a READ of this object, else EINVAL (facts 8.3)."""
        self.session.requests.cread(self.object_id, msg_id)

    def reading(self, msg_id: int) -> Request | None:
        """The READ that a CREAD would complete; None if there is none."""
        try:
            return self.session.requests.reading(self.object_id, msg_id)
        except OSError:
            return None

    def complete(self, request: Request) -> None:
        """What CREAD does, of a READ that was there; without effect if it is gone."""
        self.session.requests.complete(request)

    def release(self) -> None:
        """Close this file description."""
        self.session.requests.close_handle(self.object_id, self.handle)
        self._device.release_anonymous(self.session)
        self._device._changed()
