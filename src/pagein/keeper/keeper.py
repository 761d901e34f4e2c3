"""The keeper itself: what is held, and the two halves that are kept running over it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys

from pagein.keeper.half import START_TIMEOUT, Half
from pagein.keeper.held import Held, Runtime


class AnyKeeper:
    """Everything that is held, and the two halves; which those are is up to the front end."""

    def __init__(self, options: argparse.Namespace, held: Runtime) -> None:
        self.options = options
        self.held = held

    def kernel_half(self) -> Half:
        """What is mounted; with it everything ends."""
        raise NotImplementedError

    async def user_half(self) -> Half:
        """What fetches."""
        raise NotImplementedError

    async def run(self) -> None:
        """Start both halves and keep them until the kernel half is done. Raises GivenUp."""
        halves = [self.kernel_half()]
        tasks: list[asyncio.Task[None]] = []
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        try:
            await halves[0].start()
            if not self.options.no_daemon:
                # From here on the kernel half may die: opening the device would wait for ever.
                tasks.append(loop.create_task(halves[0].watch()))
                halves.append(await self.user_half())
                await halves[1].start()
                tasks.append(loop.create_task(halves[1].watch()))
            else:
                tasks.append(loop.create_task(halves[0].watch()))
            tasks.append(loop.create_task(_wait(stopped)))
            say(self.options, "ok")
            if self.options.announce:
                print(self.options.announce, flush=True)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await halves[0].stop()
            for half in halves[1:]:
                half.terminate()
            # Without a server a call on the device would wait for ever: end the connections.
            self.held.connections.close()
            for half in halves[1:]:
                await half.stop()


class Keeper(AnyKeeper):
    """The keeper of the front end `fuse`: both halves are ours."""

    held: Held

    def __init__(self, options: argparse.Namespace) -> None:
        """Take everything that is to be held. Raises OSError."""
        super().__init__(options, Held(options.state_dir, daemon_control=not options.no_daemon))

    def kernel_half(self) -> Half:
        """The kernel half, on what is held."""
        held = self.held
        command = [sys.executable, "-P", "-m", "pagein.kernelhalf"]
        command += ["--device-fd", str(held.device_fd), "--blob-fd", str(held.blob_fd)]
        command += ["--control-fd", str(held.control), "--state", held.path("kernel-half.json")]
        command += ["--blob-dir", held.path("blobs"), "--timeout", str(self.options.timeout)]
        command += ["--linger", str(self.options.linger)]
        fds = [held.device_fd, held.blob_fd, held.control]
        return Half("kernel half", command, fds, replaceable=held.resend)

    async def user_half(self) -> Half:
        """The user half, with the device's fd, which the keeper holds: see `restore`."""
        held, loop = self.held, asyncio.get_running_loop()
        device = held.path("dev/cachefiles")
        opening = loop.run_in_executor(None, os.open, device, os.O_RDWR | os.O_CLOEXEC)
        fd = await asyncio.wait_for(opening, START_TIMEOUT)
        held.stack.callback(os.close, fd)
        directory = os.open(held.path("dev"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        held.stack.callback(os.close, directory)
        command = [sys.executable, "-P", "-m", "pagein.daemon", "--device", device]
        command += ["--device-fd", str(fd), "--dir-fd", str(directory)]
        command += ["--control-fd", str(held.daemon_control), "--cache", self.options.cache]
        command += ["--state-dir", self.options.state_dir]
        command += ["--timeout", str(self.options.timeout), "--user", self.options.daemon_user]
        return Half("user half", command, [fd, directory, held.daemon_control])


def say(options: argparse.Namespace, text: str) -> None:
    """Tell whoever started the keeper: `ok`, or what went wrong; once."""
    if options.ready_fd >= 0:
        with contextlib.suppress(BrokenPipeError):
            os.write(options.ready_fd, text.encode() + b"\n")
        os.close(options.ready_fd)
        options.ready_fd = -1


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
