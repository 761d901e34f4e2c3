"""Both halves in one process: the device without a file, plain calls in place of system calls.

For the library, for tests and for small tools; no root, no FUSE. The daemon does not notice: it is
given a `Device` like any other.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import Callable

from pagein.cachefiles.anonymous import AnonymousFile
from pagein.cachefiles.device import CachefilesDevice
from pagein.daemon.device import AnonFd, Device, DeviceDead
from pagein.protocol.messages import MSG_MAX_SIZE, Message, Open, decode

_handles = itertools.count(1)


class LocalDevice(Device):
    """The daemon's side of a kernel half in the same process and on the same loop."""

    def __init__(self, device: CachefilesDevice) -> None:
        """Open `device`. Raises EBUSY when it is open."""
        self._device = device
        self._session = device.open()
        self._woken = asyncio.Event()
        self._closed = False
        device.pollers.append(self._woken.set)

    async def read(self) -> Message:
        while not (self._closed or self._session.dead):
            self._woken.clear()
            raw = self._device.read(MSG_MAX_SIZE)
            if raw:
                return decode(raw)
            await self._woken.wait()
        raise DeviceDead("the device was closed")

    async def command(self, data: bytes) -> None:
        await self._device.write(data)

    async def open_anon(self, message: Open) -> AnonFd:
        return LocalAnonFd(AnonymousFile(self._device, message.object_id, next(_handles)))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._device.pollers.remove(self._woken.set)
        self._woken.set()
        self._device.release()


class LocalAnonFd(AnonFd):
    """An fd of an object's anonymous file; dups share the open file description."""

    def __init__(self, file: AnonymousFile, sharers: set[LocalAnonFd] | None = None) -> None:
        self._file = file
        self._sharers: set[LocalAnonFd] = set() if sharers is None else sharers
        self._sharers.add(self)

    def _open_file(self) -> AnonymousFile:
        if self not in self._sharers:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._file

    async def pwrite(
        self, data: memoryview | bytes, offset: int, then: Callable[[], None] | None = None
    ) -> None:
        file, view, done = self._open_file(), memoryview(data), 0
        while done < len(view):
            done += await file.pwrite(view[done:], offset + done)

    async def cread(self, msg_id: int) -> None:
        self._open_file().cread(msg_id)

    async def lseek(self, offset: int, whence: int) -> int:
        return self._open_file().lseek(offset, whence)

    def dup(self) -> AnonFd:
        return LocalAnonFd(self._open_file(), self._sharers)

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "there is no file descriptor inside one process")

    async def close(self) -> None:
        if self in self._sharers:
            self._sharers.discard(self)
            if not self._sharers:
                self._file.release()
