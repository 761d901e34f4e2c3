"""The keeper itself: what is held, and the two halves that are kept running over it.

Both halves are started at once, the user half first, which takes longest to get ready: it imports
what it needs while the FUSE connections are made and the kernel half starts, answers on its socket
as soon as it can, and is given the device when there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pagein import standby
from pagein.keeper.half import START_TIMEOUT, Half
from pagein.keeper.held import Held, Runtime
from pagein.keeper.shown import SOCKET, Shown

if TYPE_CHECKING:
    import asyncio


class AnyKeeper:
    """Everything that is held, and the two halves; which those are is up to the front end."""

    def __init__(self, options: argparse.Namespace, held: Runtime) -> None:
        """Start both halves on what `held` comes to hold. Raises OSError."""
        self.options = options
        self.held = held
        self._user: Half | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(held.close)
            self.shown = self.show() if options.metrics else None
            if not options.no_daemon:
                self._user = self.user_half()
                undo.callback(self._user.abandon)
                self._user.spawn()
            say(options, "listening")  # what is asked from now on waits for the halves
            held.hold()
            self._kernel = self.kernel_half()
            undo.callback(self._kernel.abandon)
            self._kernel.spawn()
            standby.dismiss()
            undo.pop_all()

    def show(self) -> Shown:
        """What it takes to show metrics. Raises OSError."""
        held = self.held
        return Shown(held.stack, held.path(SOCKET), self.options.metrics_port)

    def kernel_half(self) -> Half:
        """What is mounted; with it everything ends."""
        raise NotImplementedError

    def user_half(self) -> Half:
        """What fetches."""
        raise NotImplementedError

    async def device(self) -> Sequence[int]:
        """The fds that the user half serves, once there is a kernel half; `held` closes them."""
        raise NotImplementedError

    async def run(self) -> None:
        """Keep both halves until the kernel half is done. Raises GivenUp."""
        import asyncio

        kernel, user = self._kernel, self._user
        tasks: list[asyncio.Task[None]] = []
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        try:
            await kernel.start()
            # From here on the kernel half may die: opening the device would wait for ever.
            tasks.append(loop.create_task(kernel.watch()))
            if user is not None:
                user.hand(await self.device())
                await user.start()
                tasks.append(loop.create_task(user.watch()))
            tasks.append(loop.create_task(_wait(stopped)))
            say(self.options, "ok", last=True)
            if self.options.announce:
                print(self.options.announce, flush=True)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await kernel.stop()
            if user is not None:
                user.terminate()
            # Without a server a call on the device would wait for ever: end the connections.
            self.held.connections.close()
            if user is not None:
                await user.stop()


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
        if self.shown is not None:
            command += ["--numbers-fd", str(self.shown.numbers)]
            fds.append(self.shown.numbers)
        return Half("kernel half", command, fds, replaceable=held.resend)

    def user_half(self) -> Half:
        """The user half, for the device that the kernel half will serve."""
        return user_half(self, self.held.path("dev/cachefiles"))

    async def device(self) -> Sequence[int]:
        """The device's fd, which the keeper holds: see `restore`; and its directory's."""
        import asyncio

        held, loop = self.held, asyncio.get_running_loop()
        device = held.path("dev/cachefiles")
        opening = loop.run_in_executor(None, os.open, device, os.O_RDWR | os.O_CLOEXEC)
        fd = await asyncio.wait_for(opening, START_TIMEOUT)
        held.stack.callback(os.close, fd)
        directory = os.open(held.path("dev"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        held.stack.callback(os.close, directory)
        return fd, directory


def user_half(keeper: AnyKeeper, device: str, hopeless: int | None = None) -> Half:
    """The user half for a `device`, which it is handed; `hopeless` as of `Half`."""
    held, options, shown = keeper.held, keeper.options, keeper.shown
    command = [sys.executable, "-P", "-m", "pagein.daemon", "--device", device]
    command += ["--control-fd", str(held.daemon_control), "--cache", options.cache]
    command += ["--state-dir", options.state_dir]
    command += ["--timeout", str(options.timeout), "--user", options.daemon_user]
    command += ["--fail-after", str(options.fail_after)]
    command += ["--background", options.background]
    fds = [held.daemon_control]
    if shown is not None:
        command += shown.user_half
        fds += shown.user_half_fds
    return Half("user half", command, fds, hopeless=hopeless)


def say(options: argparse.Namespace, text: str, *, last: bool = False) -> None:
    """Tell whoever started the keeper: `listening`, then `ok` or what went wrong, which is last."""
    if options.ready_fd >= 0:
        with contextlib.suppress(BrokenPipeError):
            os.write(options.ready_fd, text.encode() + b"\n")
        if last:
            os.close(options.ready_fd)
            options.ready_fd = -1


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
