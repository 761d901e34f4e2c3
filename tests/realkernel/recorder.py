"""A daemon of raw system calls that writes down each of them with its result.

It knows nothing of ours but the protocol's numbers and layouts. It serves local files, and it can
die: its anonymous fds close, the device stays open.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import time
from collections.abc import Callable
from pathlib import Path

from tests.protocol.recording import Entry, Kind, closed, cread, written

from pagein.protocol import commands
from pagein.protocol.messages import (
    IOC_READ_COMPLETE,
    MSG_MAX_SIZE,
    PAGE_SIZE,
    Message,
    Open,
    Read,
    decode,
)

DEVICE = "/dev/cachefiles"
DEADLINE = 60.0
"""Seconds after which a step is hanging."""


class Recorder:
    """The device, opened, and a daemon that writes down what it does."""

    def __init__(self, files: dict[str, Path]) -> None:
        """Open the device; `files` are served by the cookie keys they stand under."""
        self.entries: list[Entry] = []
        self._files = files
        self._fds: dict[int, tuple[int, Path]] = {}
        """By object_id: the anonymous fd and what is written through it."""
        self._device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the device."""
        self.die()
        os.close(self._device)

    # ---- calls, each with its entry

    def mark(self, text: str) -> None:
        """Say what comes next."""
        self.entries.append(Entry(Kind.MARK, 0, text.encode()))

    def command(self, data: bytes) -> int:
        """Write a command; what write(2) returned, or the negative errno."""
        result = _result(lambda: os.write(self._device, data))
        self.entries.append(Entry(Kind.COMMAND, result, data))
        return result

    def must(self, data: bytes) -> None:
        """Write a command that has to succeed."""
        result = self.command(data)
        assert result == len(data), f"{data!r}: {result}"

    def read(self, size: int = MSG_MAX_SIZE) -> bytes:
        """Read the device."""
        said = b""

        def call() -> int:
            nonlocal said
            said = os.read(self._device, size)
            return len(said)

        self.entries.append(Entry(Kind.READ, _result(call), said))
        return said

    def poll(self, seconds: float) -> bool:
        """Wait for a request; only a poll that found something is written down."""
        waiting = select.poll()
        waiting.register(self._device, select.POLLIN)
        found = waiting.poll(seconds * 1000)
        if found:
            self.entries.append(Entry(Kind.POLL, found[0][1]))
        return bool(found)

    def cread(self, object_id: int, msg_id: int) -> None:
        """Complete a READ, whatever the answer."""
        fd, _ = self._fds[object_id]
        result = _result(lambda: fcntl.ioctl(fd, IOC_READ_COMPLETE, msg_id))
        self.entries.append(cread(fd, msg_id, result))

    def fill(self, message: Read) -> None:
        """Write what a READ asks for, in whole pages."""
        fd, path = self._fds[message.object_id]
        start = message.off // PAGE_SIZE * PAGE_SIZE
        length = -(-(message.off + message.len - start) // PAGE_SIZE) * PAGE_SIZE
        with mmap.mmap(-1, length) as pages, path.open("rb") as file:
            file.seek(start)
            file.readinto(pages)
            result = _result(lambda: os.pwrite(fd, pages, start))
        self.entries.append(written(fd, start, length, result))

    def forget(self, object_id: int) -> None:
        """Close an anonymous fd."""
        fd, _ = self._fds.pop(object_id)
        os.close(fd)
        self.entries.append(closed(fd))

    # ---- a daemon

    def bind(self, cache: Path) -> None:
        """Bring a cache on line."""
        cache.mkdir()
        self.must(commands.dir_(str(cache)))
        self.must(commands.tag("recorded"))
        self.must(commands.bind())

    def next(self) -> Message:
        """The next request; the fd of an OPEN is kept."""
        give_up = time.monotonic() + DEADLINE
        while not (self.poll(max(give_up - time.monotonic(), 0)) and (said := self.read())):
            assert time.monotonic() < give_up, "no request came"
        return self._taken(said)

    def _taken(self, said: bytes) -> Message:
        message = decode(said)
        if isinstance(message, Open):
            os.set_inheritable(message.fd, False)
            path = self._files[message.cookie_key.decode()]
            self._fds[message.object_id] = message.fd, path
        return message

    def answer(self, message: Message) -> None:
        """Do what a request asks for."""
        if isinstance(message, Open):
            size = self._fds[message.object_id][1].stat().st_size
            self.must(commands.copen(message.msg_id, size))
        elif isinstance(message, Read):
            self.fill(message)
            self.cread(message.object_id, message.msg_id)
        else:
            self.forget(message.object_id)

    def serve(self, done: Callable[[], bool]) -> None:
        """Answer everything until `done`, and what is there then."""
        give_up = time.monotonic() + DEADLINE
        while not done():
            assert time.monotonic() < give_up, "this takes too long"
            if self.poll(0.02) and (said := self.read()):
                self.answer(self._taken(said))

    def die(self) -> None:
        """Close every anonymous fd, as the end of a process does."""
        for object_id in list(self._fds):
            self.forget(object_id)

    @property
    def idle(self) -> bool:
        """Whether no object is open."""
        return not self._fds


def _result(call: Callable[[], int]) -> int:
    try:
        return call()
    except OSError as problem:
        assert problem.errno is not None
        return -problem.errno
