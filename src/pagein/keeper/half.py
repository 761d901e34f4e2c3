"""One half as a child process: started, watched, started again, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time

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


class GivenUp(Exception):
    """A half cannot be started; the message is for the user."""


def die_with_parent() -> None:
    """In a child before exec: be killed when the keeper goes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Half:
    """One child process: its command, and the last process that ran it."""

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
        self.process: asyncio.subprocess.Process | None = None
        self._told = False

    async def start(self) -> None:
        """Run it and wait until it says that it is ready. Raises GivenUp."""
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                "--ready-fd",
                str(write),
                pass_fds=[*self.fds, write],
                preexec_fn=die_with_parent,
                stdin=asyncio.subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the keeper, which ends its halves in order
            )
        finally:
            os.close(write)
        try:
            ready = await asyncio.wait_for(_read_byte(read), START_TIMEOUT)
        except TimeoutError:
            self.process.kill()
            ready = False
        finally:
            os.close(read)
        if not ready:
            await self.process.wait()
            raise GivenUp(f"the {self.name} did not start; see the log")

    async def watch(self) -> None:
        """Restart it whenever it dies; return when it ends well. Raises GivenUp."""
        deaths = 0
        while True:
            assert self.process is not None
            born = time.monotonic()
            status = await self.process.wait()
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
        if self.process is not None and self.process.returncode is None and not self._told:
            self._told = True
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()

    async def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL."""
        if self.process is None:
            return
        self.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


async def _read_byte(fd: int) -> bool:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)
    return bool(os.read(fd, 1))
