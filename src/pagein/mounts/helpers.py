"""A helper that is there already: the owner's end of `helper.serve`.

Who mounts much has one (`CURRENT`), and so each mount costs a fork instead of a Python interpreter.
It ends when it was idle for a while, and the next job starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from pagein import standby
from pagein.mounts.helper import MAX_JOB, PIDFD

_GRACE: Final = 1.0  # seconds that a killed job gets to be gone
_SOURCE_ROOT: Final = str(Path(__file__).resolve().parents[2])


Process = subprocess.Popen[bytes] | standby.Child


class NotBegun(OSError):
    """No helper has taken the job."""


def command(*arguments: str) -> list[str]:
    """The command line of a helper."""
    return [*standby.command_of("pagein.mounts.helper"), *arguments]


def environment() -> dict[str, str]:
    """Its environment: it finds this package wherever it lies."""
    search = os.pathsep.join(filter(None, [_SOURCE_ROOT, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": search}


class Helpers:
    """One helper process at a time, and the jobs it does; made and closed on one event loop."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._forget: Callable[[], None] = lambda: None
        self._line: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The helper's, if there is one."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Have one, unless there is. Raises OSError."""
        if self._process is not None:
            return
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with its:
            try:
                serve = command("--serve", str(its.fileno()))
                self._process = standby.ordered(serve, [its.fileno()]) or subprocess.Popen(
                    serve,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[its.fileno()],
                    start_new_session=True,  # an interrupt from the terminal is for us
                )
            except BaseException:
                ours.close()
                raise
        self._line = ours
        self._watch(self._process, ours)

    def _watch(self, process: Process, line: socket.socket) -> None:
        """Notice its end, whenever that is."""
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(process.pid)

        def forget() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            line.close()
            process.wait()
            if self._process is process:
                self._process = self._line = None
                self._forget = lambda: None

        self._forget = forget
        loop.add_reader(pidfd, forget)

    async def close(self) -> None:
        """End the helper; jobs under way lose whoever waits for them, and undo themselves."""
        process, line = self._process, self._line
        if process is None or line is None:
            return
        line.close()
        ended = asyncio.to_thread(process.wait, _GRACE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await ended
        process.kill()
        self._forget()

    async def ask(self, job: dict[str, Any], timeout: float) -> bytes:
        """What the job's process answers; nothing if it ended without a word.

        Raises TimeoutError when it had to be killed, NotBegun.
        """
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with ours:
            with its:
                self._send(job, its)
            return await self._follow(ours, timeout)

    def _send(self, job: dict[str, Any], its: socket.socket) -> None:
        try:
            self.start()
            assert self._line is not None
            socket.send_fds(self._line, [json.dumps(job).encode()], [its.fileno()])
        except OSError as problem:
            raise NotBegun(problem.errno, problem.strerror) from None

    async def _follow(self, ours: socket.socket, timeout: float) -> bytes:
        answer = b""
        pidfd = -1
        try:
            async with asyncio.timeout(timeout):
                while True:
                    data, fds = await _receive(ours)
                    if fds:
                        pidfd = fds[0]
                    if not data:
                        break
                    if data != PIDFD:
                        answer = data
        except BaseException:
            await self._kill(pidfd, ours)
            raise
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        if pidfd < 0 and not answer:
            raise NotBegun(errno.ECONNRESET, "the mount helper ended before it began")
        return answer

    async def _kill(self, pidfd: int, ours: socket.socket) -> None:
        """Kill a job, and wait a moment for its end; the helper, if it did not come to begin."""
        if pidfd < 0:
            if self._process is not None:
                self._process.kill()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                while (await _receive(ours))[0]:
                    pass


async def _receive(line: socket.socket) -> tuple[bytes, list[int]]:
    """The next message and the fds that come with it; nothing at the end."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(line, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(line)
    try:
        data, fds, _, _ = socket.recv_fds(line, MAX_JOB, 1, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:  # it ended without having taken the job
        return b"", []
    return data, fds


CURRENT: ContextVar[Helpers | None] = ContextVar("CURRENT", default=None)
"""Whose helper makes the mounts of this context; None: each mount starts one of its own."""
