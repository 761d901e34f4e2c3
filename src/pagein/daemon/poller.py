"""The thread that waits for requests.

Rules of the device (facts cachefiles-kernel 3 to 5, 15): POLLIN only and level-triggered; read
until 0, and 0 is not the end of the file; POLLIN may be followed by a read of 0, which reopened
an object; a dead cache is silent, only a failing write tells.

Of our own kernel half an end shows in poll, as the end of its FUSE connection. So there the thread
sleeps until something happens: a daemon with nothing to do costs nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import threading
import time
from collections import deque
from typing import Final

from pagein.daemon.device import DeviceDead, Shortcut
from pagein.protocol.messages import MSG_MAX_SIZE, Message, Open, ProtocolError, Read, decode

log = logging.getLogger("pagein.daemon")

PROBE: Final = 10.0
"""Seconds of silence after which the real device is asked whether it is alive."""

QUIET: Final = 0.005
"""Seconds without a request after which the loop hears of what the shortcut has served."""

JOIN: Final = 2.0
"""Seconds that `Poller.close` waits for the thread."""

_BUFFER_MOST = 64 << 10
_ERRORS_MOST = 100  # in a row, of kinds that concern one request only
# Of these the device does not come back; others end with the request they belong to (4.4).
_DEADLY = {
    errno.EIO,
    errno.EBADF,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
}


class Poller:
    """Reads requests from `fd` in a thread and hands them to the loop of the first `next`."""

    def __init__(self, fd: int, *, real: bool) -> None:
        """`real`: OPENs bring fds, which are ours until `taken`."""
        self.shortcut: Shortcut | None = None
        self._fd = fd
        self._real = real
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[Message] = deque()
        self._arrived: asyncio.Event = asyncio.Event()
        self._dead: str | None = None
        self._ended = asyncio.Event()
        self._fds: set[int] = set()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self._size = MSG_MAX_SIZE
        self._errors = 0
        self._empty = 0
        self._unreported = False

    async def next(self) -> Message:
        """The next request; DeviceDead when there will be none."""
        if self._loop is None and not self._closed:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._run, name="pagein-poll", daemon=True).start()
        while not self._closed:
            if self._queue:
                return self._queue.popleft()
            if self._dead is not None:
                break
            self._arrived.clear()
            await self._arrived.wait()
        raise DeviceDead(self._dead or "the device was closed")

    def taken(self, message: Open) -> None:
        """The fd of `message` has an owner now."""
        self._fds.discard(message.fd)

    async def close(self) -> list[int] | None:
        """End the thread; returns the fds that OPENs brought and nobody took.

        None: the thread hangs in a call, and the device must stay open.
        """
        self._closed = True
        self._arrived.set()
        if self._loop is not None:
            os.eventfd_write(self._wake, 1)
            try:
                async with asyncio.timeout(JOIN):
                    await self._ended.wait()
            except TimeoutError:
                log.warning("the device does not answer; its reading thread is left behind")
                return None
        os.close(self._wake)
        fds, self._fds = self._fds, set()
        return list(fds)

    # ---- in the thread

    def _run(self) -> None:
        cause = None
        try:
            self._poll()
        except OSError as exc:
            cause = f"the device is gone: {exc.strerror}"
        except BaseException as exc:
            log.exception("the reading thread failed")
            cause = f"the reading thread failed: {exc}"
        self._tell([], cause, ended=True)

    def _poll(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        patience = PROBE * 1000 if self._real else None
        while not self._closed:
            ready = dict(poll.poll(QUIET * 1000 if self._unreported else patience))
            if self._fd in ready:
                self._drain()
                if ready[self._fd] & select.POLLNVAL:
                    raise OSError(errno.EBADF, "it is not open")
            elif self._unreported:
                self._tell([], None)
            elif not ready:
                self._probe()

    def _drain(self) -> None:
        coming = self._round(b"")
        while coming and not self._closed:
            coming = self._round(coming)

    def _round(self, coming: bytes) -> bytes:
        """Read until there is nothing more, or the shortcut took a READ; what came with that.

        `coming` is a message that is here already, or b"".
        """
        messages: list[Message] = []
        while not self._closed and len(messages) < 64:
            raw, coming = coming or self._read(), b""
            if raw is None:
                continue
            if not raw:
                break
            try:
                messages.append(self._decode(raw))
            except ProtocolError as exc:
                log.error("the device sent what is no request: %s", exc)
                continue
            if len(messages) > 1:
                continue
            if (served := self._served(messages[0], alone=False)) is not None:
                self._empty = 0
                return served  # what else there is, poll tells
        self._empty = 0 if messages else self._empty + 1
        if self._empty > 16:
            time.sleep(0.01)  # ready again and again without a request: do not burn a processor
        if len(messages) == 1 and (served := self._served(messages[0], alone=True)) is not None:
            return served
        if messages:
            self._tell(messages, None)
        return b""

    def _served(self, message: Message, *, alone: bool) -> bytes | None:
        """None, or the shortcut took a READ, and this is the next message, if any came with it."""
        if self.shortcut is None or not isinstance(message, Read):
            return None
        coming = self.shortcut.serve(message, alone=alone)
        if coming is not None:
            self._unreported = True
            if self.shortcut.due:
                self._tell([], None)
        return coming

    def _read(self) -> bytes | None:
        """One request; b"" if there is none, None if one was lost or needs a larger buffer."""
        try:
            raw = os.read(self._fd, self._size)
        except BlockingIOError:  # a device never says so, a socket in its place does
            return b""
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                log.error("an OPEN failed: no file descriptor left (raise RLIMIT_NOFILE)")
                return None  # the kernel has failed that OPEN, however many of them
            self._errors += 1
            if exc.errno in _DEADLY or self._errors > _ERRORS_MOST:
                raise
            if exc.errno == errno.EMSGSIZE and self._size < _BUFFER_MOST:
                self._size *= 2
            else:
                log.error("a request was lost: %s", exc.strerror)
            return None
        self._errors = 0
        return raw

    def _decode(self, raw: bytes) -> Message:
        message = decode(raw)
        if self._real and isinstance(message, Open):
            # It comes without close-on-exec, and a copy in a child would pin the whole cache.
            os.set_inheritable(message.fd, False)
            self._fds.add(message.fd)
        return message

    def _probe(self) -> None:
        """A dead cache refuses every command with EIO before it looks at it (2, 7.6)."""
        try:
            os.write(self._fd, b"alive?")
        except OSError as exc:
            if exc.errno in _DEADLY:
                raise

    def _tell(self, messages: list[Message], dead: str | None, *, ended: bool = False) -> None:
        assert self._loop is not None
        self._unreported = False
        try:
            self._loop.call_soon_threadsafe(self._receive, messages, dead, ended)
        except RuntimeError:
            self._closed = True  # the loop is gone, and with it everybody who could ask

    # ---- on the loop

    def _receive(self, messages: list[Message], dead: str | None, ended: bool) -> None:
        self._queue.extend(messages)
        self._dead = self._dead or dead
        if ended:
            self._ended.set()
        self._arrived.set()
        if self.shortcut is not None:
            self.shortcut.report()  # before `next` returns any of the messages
