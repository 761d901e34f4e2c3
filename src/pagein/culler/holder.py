"""The daemon of the original mode: holds the device, and culls when it says so.

What cachefilesd does for netfs that fetch by themselves, NFS and 9p among them: bind the cache,
wait for POLLOUT, make room, begin again.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
from types import FrameType

from pagein.culler.culling import Outcome, cull
from pagein.culler.evict import Commands
from pagein.protocol import commands
from pagein.protocol.space import LIMITS, State

log = logging.getLogger("pagein.culler")

PATIENCE = 30.0
"""Seconds until the next try when all that is left is in use, or the room goes to others."""
_LINE = 256


def hold(device: str, directory: str, run: int) -> None:
    """Open `device`, bind the cache in `directory`, and make room until SIGTERM or SIGINT.

    `run` is the per cent that culling ends at; it begins at 2 less, as the kernel's own limits.
    Raises OSError: EBUSY when somebody has the device.
    """
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        bind(fd, os.fsencode(directory), run)
        log.warning("%s: holding %s, SIGTERM ends it", directory, device)
        with _Signals() as ended:
            _serve(fd, os.fsencode(directory), ended)
    finally:
        os.close(fd)


def bind(fd: int, directory: bytes, run: int) -> None:
    """Bind a cache in the original mode. Raises OSError that names the directory."""
    cull_at = max(run - (LIMITS["brun"] - LIMITS["bcull"]), 1)
    stop_at = min(LIMITS["bstop"], cull_at - 1)
    for kind in ("b", "f"):
        if run > LIMITS["bcull"]:  # each is checked against the others: the outer one first
            order = [("run", run), ("stop", stop_at), ("cull", cull_at)]
        else:
            order = [("stop", stop_at), ("cull", cull_at), ("run", run)]
        for name, percent in order:
            os.write(fd, f"{kind}{name} {percent}%".encode())
    try:
        os.write(fd, commands.dir_(directory))
        os.write(fd, commands.bind(ondemand=False))
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror, os.fsdecode(directory)) from None


def make_room(fd: int, directory: bytes) -> Outcome:
    """Cull until the device does not ask for it any more."""
    return cull(directory, Commands(fd, directory), lambda _: not state(fd).culling)


def state(fd: int) -> State:
    """The state of the cache. Raises OSError; EIO when the cache is dead."""
    line = os.read(fd, _LINE)
    if not line:
        raise OSError(errno.EIO, "the cache is dead: unmount what uses it, and begin again")
    return State.decode(line)


def _serve(fd: int, directory: bytes, ended: int) -> None:
    poller = select.poll()
    poller.register(ended, select.POLLIN)
    poller.register(fd, select.POLLIN)
    pause: float | None = None
    while True:
        ready = dict(poller.poll(None if pause is None else pause * 1000))
        if ended in ready:
            return
        pause = None
        if state(fd).culling:
            outcome = make_room(fd, directory)
            log.warning(
                "culled %d blobs, %d KiB; %d were in use",
                *(len(outcome.culled), outcome.freed >> 10, len(outcome.in_use)),
            )
            # POLLOUT stays as long as room is short: waiting for it would be no waiting.
            pause = PATIENCE if state(fd).culling else None


class _Signals:
    """A pipe that is readable once the process shall end."""

    def __enter__(self) -> int:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before = {
            number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self._read

    def _take(self, _: int, __: FrameType | None) -> None:
        os.write(self._write, b"x")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)
