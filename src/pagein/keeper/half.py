"""One half as a child process: started, watched, started again, stopped.

A half begins to run (`spawn`) before there is an event loop, and may be told later what it needs:
it has a quarter of a second of imports to do, and the device that it is to serve comes meanwhile.
The first one may have done them already (`standby`).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

from pagein import standby

log = logging.getLogger("pagein.keeper")

START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0
_LONG_LIFE = 2.0
"""Seconds of life after which a death counts as the first again."""
_PAUSES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds before the first, second ... restart in a row."""
HOPELESS = 30.0
"""Seconds of starting in vain after which the keeper gives up: readers wait that long for EIO."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # loaded before any fork


Process = subprocess.Popen[bytes] | standby.Child


class GivenUp(Exception):
    """A half cannot be started; the message is for the user."""


def die_with_parent() -> None:
    """In a child before exec: be killed when the keeper goes."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Half:
    """One child process: its command, and the last process that ran it.

    The command gets `--ready-fd N`, a socket: on it the process says with one byte that it is
    ready, and before that finds there what was handed over (`hand`).
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        fds: list[int],
        *,
        replaceable: bool = True,
        hopeless: int | None = None,
    ) -> None:
        """`hopeless`: the exit status that says that the device is beyond repair."""
        self.name = name
        self.replaceable = replaceable
        self.hopeless = hopeless
        self.command = command
        self.fds = fds
        self.process: Process | None = None
        self._line: socket.socket | None = None
        """To a process that has not been waited for to be ready."""
        self._handed: Sequence[int] = ()
        self._told = False

    def spawn(self) -> None:
        """Run it, and do not wait; `start` does."""
        ours, its = socket.socketpair()
        with its:
            self._line = ours
            command = [*self.command, "--ready-fd", str(its.fileno())]
            fds = [*self.fds, its.fileno()]
            self.process = standby.ordered(command, fds) or subprocess.Popen(
                command,
                pass_fds=fds,
                preexec_fn=die_with_parent,  # noqa: PLW1509  one system call, no locks
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the keeper, which ends its halves in order
            )
        if self._handed:
            self._hand_over()

    def hand(self, fds: Sequence[int]) -> None:
        """Give it copies of `fds`, which stay the caller's, and each of its successors."""
        self._handed = fds
        if self._line is not None:
            self._hand_over()

    def _hand_over(self) -> None:
        assert self._line is not None
        with contextlib.suppress(OSError):  # it is dead already: `start` will say so
            socket.send_fds(self._line, [b"f"], list(self._handed))

    async def start(self) -> None:
        """Run it unless it does, and wait until it says that it is ready. Raises GivenUp."""
        import asyncio

        if self._line is None:
            self.spawn()
        line, self._line = self._line, None
        assert line is not None and self.process is not None
        with line:
            try:
                line.setblocking(False)
                said = asyncio.get_running_loop().sock_recv(line, 1)
                ready = bool(await asyncio.wait_for(said, START_TIMEOUT))
            except (TimeoutError, ConnectionError):
                self.process.kill()
                ready = False
        if not ready:
            await ended(self.process)
            raise GivenUp(f"the {self.name} did not start; see the log")

    async def watch(self) -> None:
        """Restart it whenever it dies; return when it ends well. Raises GivenUp."""
        deaths = 0
        while True:
            assert self.process is not None
            born = time.monotonic()
            status = await ended(self.process)
            if status == 0:
                return
            if status == self.hopeless:
                raise GivenUp(f"the {self.name} lost its device; see the log")
            if not self.replaceable:
                # What it had read would wait for ever; ending the connections fails it with EIO.
                raise GivenUp(f"the {self.name} died, and this kernel cannot replace it")
            now = time.monotonic()
            deaths = 1 if now - born > _LONG_LIFE else deaths + 1
            log.warning("the %s died (status %d), restarting it", self.name, status)
            deaths = await self._start_again(deaths, now + HOPELESS)

    async def _start_again(self, deaths: int, give_up: float) -> int:
        """Start it until it is ready; returns how often it died in a row. Raises GivenUp."""
        import asyncio

        while True:
            await asyncio.sleep(_PAUSES[min(deaths, len(_PAUSES)) - 1])
            try:
                await self.start()
            except GivenUp as problem:
                log.warning("%s", problem)
                if time.monotonic() > give_up:
                    raise
                deaths += 1
            else:
                return deaths

    def terminate(self) -> None:
        """Tell it to end, once: it may have given its signal handlers up by the second time."""
        if self.process is not None and not self._told:
            self._told = True
            self.process.terminate()  # nothing, if it has ended

    async def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL."""
        import asyncio

        if self._line is not None:
            self._line.close()
            self._line = None
        if self.process is None:
            return
        self.terminate()
        try:
            await asyncio.wait_for(ended(self.process), STOP_TIMEOUT)
        except TimeoutError:
            self.process.kill()
            await ended(self.process)

    def abandon(self) -> None:
        """Kill it, where there is no event loop to `stop` it on."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()


async def ended(process: Process) -> int:
    """Wait for a child's end; its exit status, -n for signal n."""
    import asyncio

    if (status := process.poll()) is not None:
        return status
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    fd = os.pidfd_open(process.pid)  # of a child that nobody has waited for: it is still that one
    try:
        loop.add_reader(fd, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(fd)
    finally:
        os.close(fd)
    return process.wait()
