"""One FUSE connection on an asyncio loop: requests in, replies and notifications out.

The connection decides nothing about files. It reads ``/dev/fuse`` without blocking, calls the
handler once per request, and writes what the handler replies, at once or later. A request that
nobody replies to blocks its caller in the kernel for ever: that is the handler's affair, except
when it raises, which is answered with EIO.

Buffers are private memory that is faulted in when it is made, one request each. The data of a WRITE
lies page-aligned in it, and the buffer stays lent until `Connection.release`, so that a thread can
write the data out without a copy. Prefaulted private memory is what makes a killed pwrite safe
(facts half-to-half 2).

All methods are for the loop's thread, but `reply` and `error` are for any. A write to ``/dev/fuse``
does not wait: the kernel copies.
"""

import asyncio
import errno
import logging
import mmap
import os
import threading
from collections.abc import Callable
from typing import Final

from pagein.fuse import abi
from pagein.fuse.handshake import BUFFER

BATCH: Final = 16
"""Requests handled per wake-up, so that one busy connection does not starve the loop."""
_PAGE: Final = mmap.PAGESIZE
_START: Final = _PAGE - abi.WRITE_DATA_OFFSET  # where a message is read to: WRITE data on a page
_KEPT: Final = 16  # free buffers kept; more come and go with the load
_MAX_LENT: Final = 64  # WRITEs held by the handler before reading pauses: bounds memory to 68 MiB
_GONE: Final = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN})

_log = logging.getLogger("pagein.fuse")

Handler = Callable[[abi.Request], None]


class _Buffer:
    """Prefaulted memory for one request."""

    __slots__ = ("memory", "view")

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self.memory = mmap.mmap(-1, _PAGE + BUFFER, flags=flags)
        self.view = memoryview(self.memory)[_START:]


class Connection:
    """A FUSE connection whose INIT is done, served on ``loop``.

    ``handler`` is called in the loop for every request; it replies with `reply` or `error`, at once
    or later, to all but those in `abi.UNANSWERED`. The body of a WRITE stays valid until `release`;
    any other body only until the handler returns. ``on_close`` is called once when the kernel ends
    the connection (umount, abort), not by `close`.

    ``fd`` is made non-blocking and, unless ``closefd`` is false, closed by `close`.
    """

    def __init__(
        self,
        fd: int,
        handler: Handler,
        *,
        loop: asyncio.AbstractEventLoop,
        on_close: Callable[[], None] | None = None,
        closefd: bool = True,
        paused: bool = False,
    ) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._handler = handler
        self._loop = loop
        self._on_close = on_close
        self._closefd = closefd
        self._free: list[_Buffer] = []
        self._lent: dict[int, _Buffer] = {}
        self._reading = False
        self._closed = False
        self._ending = threading.Lock()  # the fd is not closed while another thread replies
        if not paused:
            self._watch(True)

    def start(self) -> None:
        """Begin to read requests, on a connection that was made paused."""
        self._watch(True)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, by the kernel or by `close`."""
        return self._closed

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._fd

    def close(self) -> None:
        """Stop serving. Requests without a reply stay pending if somebody else holds the fd."""
        if self._closed:
            return
        self._watch(False)
        with self._ending:
            self._closed = True
            if self._closefd:
                os.close(self._fd)
        self._free.clear()
        self._lent.clear()

    # --- towards the kernel ---

    def reply(self, unique: int, *buffers: abi.Buffer) -> bool:
        """Complete a request with ``buffers`` as its body; False when nobody waits for it any more.

        Raises OSError EINVAL for a body that the request cannot have: a bug of the caller.
        """
        return self._send(unique, 0, buffers)

    def error(self, unique: int, error: int) -> bool:
        """Complete a request with an errno (positive); False when nobody waits for it any more."""
        return self._send(unique, -error, ())

    def notify(self, code: int, payload: abi.Buffer = b"") -> bool:
        """Send a notification (`abi.Notify`); False when there is nobody it concerns."""
        return self._send(0, code, (payload,) if payload else ())

    def notify_poll(self, kh: int) -> bool:
        """Tell whoever polls with handle ``kh`` (`abi.PollIn`) to ask again."""
        return self.notify(abi.Notify.POLL, abi.notify_poll_out(kh))

    def resend(self) -> bool:
        """Have every request sent again that was read and not replied to, by us or a server before.

        Returns False when the kernel cannot do it (before 6.9).
        """
        try:
            return self.notify(abi.Notify.RESEND)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False

    def _send(self, unique: int, error: int, buffers: tuple[abi.Buffer, ...]) -> bool:
        size = sum(len(buffer) for buffer in buffers)
        message = [abi.out_header(unique, error, size), *buffers]
        try:
            with self._ending:
                if self._closed:
                    return False
                os.writev(self._fd, message)
        except OSError as failure:
            # ENOENT: interrupted, or the connection is gone; the reader will see which.
            if failure.errno == errno.ENOENT or failure.errno in _GONE:
                return False
            raise
        return True

    # --- from the kernel ---

    def release(self, request: abi.Request) -> None:
        """Give back the buffer of a WRITE: its body and all views of it must not be used again."""
        buffer = self._lent.pop(request.unique, None)
        if buffer is None:
            return
        self._recycle(request, buffer)
        if len(self._lent) < _MAX_LENT:
            self._watch(True)

    def _recycle(self, request: abi.Request, buffer: _Buffer) -> None:
        request.body.release()  # whoever kept the body meets a ValueError, not another's data
        if len(self._free) < _KEPT:
            self._free.append(buffer)

    def _watch(self, on: bool) -> None:
        if on == self._reading or self._closed:
            return
        self._reading = on
        if on:
            self._loop.add_reader(self._fd, self._readable)
        else:
            self._loop.remove_reader(self._fd)

    def _readable(self) -> None:
        for _ in range(BATCH):
            if not self._reading or not self._read_one():
                return

    def _read_one(self) -> bool:
        """Read and dispatch one request; False when there is none."""
        buffer = self._free.pop() if self._free else _Buffer()
        try:
            count = os.readv(self._fd, [buffer.view])
        except OSError as error:
            self._free.append(buffer)
            return self._read_failed(error)
        try:
            request = abi.Request.parse(buffer.view[:count])
        except abi.AbiError as error:  # no kernel does that; going on would be guessing
            _log.error("reading /dev/fuse: %s", error)
            self._end()
            return False
        if request.opcode == abi.Opcode.WRITE:
            self._lent[request.unique] = buffer
            if len(self._lent) >= _MAX_LENT:
                self._watch(False)
            self._dispatch(request)
        else:
            self._dispatch(request)
            self._recycle(request, buffer)
        return True

    def _dispatch(self, request: abi.Request) -> None:
        try:
            self._handler(request)
        except Exception:
            _log.exception("request %d (opcode %d) failed", request.unique, request.opcode)
            if request.opcode not in abi.UNANSWERED:
                self.error(request.unique, errno.EIO)
            self.release(request)

    def _read_failed(self, error: OSError) -> bool:
        """Tell whether to go on reading after ``error``."""
        if error.errno == errno.EAGAIN:
            return False
        if error.errno in (errno.ENOENT, errno.EINTR):  # aborted while it was being read
            return True
        if error.errno not in _GONE:
            _log.error("reading /dev/fuse: %s", error)
        self._end()
        return False

    def _end(self) -> None:
        self.close()
        if self._on_close is not None:
            self._on_close()
