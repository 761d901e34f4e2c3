"""SERVE (`protocol.serving`): a READ's bytes, its end and the next message, in one call.

The reader comes first. The thread that has written the bytes reads them back and answers it; only
then the loop hears of it, ends the READ, and answers the daemon as soon as there is a message.

The daemon waits in the kernel meanwhile, where nothing but an answer ends a call, not even a kill.
So a call lasts no longer than `LINGER`; then the daemon sleeps in poll, as ever, and needs nobody.
"""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from typing import Final

from pagein.cachefiles.anonymous import AnonymousFile
from pagein.cachefiles.device import CachefilesDevice
from pagein.cachefiles.ondemand import error, trace_cread
from pagein.fuse import abi
from pagein.fuse.server import Answer, Body, FuseServer
from pagein.protocol.messages import MSG_MAX_SIZE
from pagein.protocol.serving import Serve, encode_answer

LINGER: Final = 0.02
"""Seconds that a SERVE waits for a message."""


class Serving:
    """The SERVEs of one device, of which one at a time waits for a message."""

    def __init__(self, device: CachefilesDevice, server: FuseServer) -> None:
        """Answers go through `server`."""
        self._device = device
        self._server = server
        self._last: _Call | None = None
        self._waiting: _Call | None = None

    def begin(self, file: AnonymousFile, unique: int, argument: memoryview) -> Answer:
        """Begin to write what a SERVE brings, unless something is in its way.

        Raises as `AnonymousFile.pwrite`, and EINVAL for what is no SERVE.
        """
        try:
            wanted = Serve.decode(argument)
        except ValueError:
            raise error(errno.EINVAL) from None
        call = self._last = _Call(file, unique, wanted)
        if not wanted.data:
            call.written(0)
            self._ended(call, 0)
            return self._server.ANSWERED
        writing = file.begin_pwrite(call.data, call.offset, call.written)
        if writing is None:
            return self._later(call)
        writing.add_done_callback(partial(self._written, call))
        return writing

    async def _later(self, call: _Call) -> Body:
        self._ended(call, await call.file.pwrite(call.data, call.offset, call.written))
        return self._server.ANSWERED

    def _written(self, call: _Call, writing: asyncio.Future[int]) -> None:
        if not writing.cancelled() and writing.exception() is None:  # else the server says so
            self._ended(call, writing.result())

    def _ended(self, call: _Call, written: int) -> None:
        """The loop hears of a write."""
        if call.answered:
            return
        if written < len(call.data):
            self._server.connection.error(call.unique, errno.ENOBUFS)
            return
        call.complete()
        if (message := self._read(call)) or self._waiting is not None:
            self._answer(call, message)
            return
        self._waiting = call
        call.late = asyncio.get_running_loop().call_later(LINGER, self._answer, call, b"")

    def hand_over(self) -> bool:
        """Give a daemon that waits its message; whether that was all there is to say."""
        call = self._waiting
        if call is None and (last := self._last) is not None and last.landed and not last.answered:
            call = last  # its reader was faster than the news of it, and reads on
            call.complete()
        if call is None or not (message := self._read(call)):
            return False
        self._answer(call, message)
        return not self._device.poll()

    def _read(self, call: _Call) -> bytes:
        if (
            call.session is not self._device.session
            or call.restored != call.session.requests.restored
        ):
            return b""  # its caller may be dead, and the message is another's
        try:
            return self._device.read(MSG_MAX_SIZE)
        except OSError:  # of a request that has failed, which is not the caller's
            return b""

    def _answer(self, call: _Call, message: bytes) -> None:
        if self._waiting is call:
            self._waiting = None
        if call.late is not None:
            call.late.cancel()
        call.answered = True
        body = encode_answer(message, asyncio.get_running_loop().time() - call.ended)
        self._server.connection.reply(call.unique, abi.ioctl_out(len(message)), body)


class _Call:
    """One SERVE."""

    def __init__(self, file: AnonymousFile, unique: int, wanted: Serve) -> None:
        self.file = file
        self.session = file.session
        self.restored = file.session.requests.restored
        self.unique = unique
        self.offset = wanted.offset
        self.data = memoryview(wanted.data)
        self.ended = 0.0
        """When its READ was completed, by the loop's clock in seconds."""
        self.late: asyncio.TimerHandle | None = None
        self.landed = False
        self.answered = False
        self._request = file.reading(wanted.msg_id)

    def written(self, written: int) -> None:
        """In the thread that wrote: the reader is answered, if that was what it waits for."""
        request = self._request
        if request is None or written < len(self.data):
            return
        self.landed = True
        trace_cread(request)
        covered = self.offset <= request.off and request.off + request.len <= self.offset + written
        if covered and request.at_once is not None:
            request.at_once()

    def complete(self) -> None:
        """What CREAD does; of a READ that is gone, nothing."""
        self.ended = asyncio.get_running_loop().time()
        if self._request is not None:
            self.file.complete(self._request)
