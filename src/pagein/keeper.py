"""The keeper: parent of both halves. Holds what must outlive them, restarts what dies.

It holds the two /dev/fuse fds, the device's fd and the listening sockets. As long as it lives a
half may be killed at any moment: readers wait, its successor goes on. When the keeper itself dies
the FUSE connections end and every reader gets EIO, never zeros. It does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import sys
import time

from pagein.control import listen, message_of
from pagein.fuse.connection import handshake
from pagein.mounts.syscalls import mount_fuse, mounts, umount

log = logging.getLogger("pagein.keeper")

START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0
_LONG_LIFE = 2.0
"""Seconds of life after which a death counts as the first again."""
_PAUSES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)
_HOPELESS = 8
"""Deaths in a row before becoming ready after which the keeper gives up."""
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1


class GivenUp(Exception):
    """A half cannot be started; the message is for the user."""


def die_with_parent() -> None:
    """In a child before exec: be killed when the keeper goes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Half:
    """One child process: its command, and the last process that ran it."""

    def __init__(
        self, name: str, command: list[str], fds: list[int], *, replaceable: bool = True
    ) -> None:
        self.name = name
        self.replaceable = replaceable
        self.command = command
        self.fds = fds
        self.process: asyncio.subprocess.Process | None = None

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
        deaths = failures = 0
        while True:
            assert self.process is not None
            born = time.monotonic()
            status = await self.process.wait()
            if status == 0:
                return
            if not self.replaceable:
                # What it had read would wait for ever; ending the connections fails it with EIO.
                raise GivenUp(f"the {self.name} died, and this kernel cannot replace it")
            deaths = 1 if time.monotonic() - born > _LONG_LIFE else deaths + 1
            log.warning("the %s died (status %d), restarting it", self.name, status)
            while True:
                await asyncio.sleep(_PAUSES[min(deaths, len(_PAUSES)) - 1])
                try:
                    await self.start()
                except GivenUp:
                    deaths, failures = deaths + 1, failures + 1
                    if failures >= _HOPELESS:
                        raise
                else:
                    failures = 0
                    break

    def terminate(self) -> None:
        """Tell it to end."""
        if self.process is not None and self.process.returncode is None:
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


class Keeper:
    """Everything that is held, and the two halves."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.stack = contextlib.ExitStack()
        self.connections = contextlib.ExitStack()
        """The /dev/fuse fds: closed before anything that would ask their server."""
        self.resend = True
        """Whether the kernel sends lost requests again (6.9 and newer)."""

    def path(self, name: str) -> str:
        return os.path.join(self.options.state_dir, name)

    def hold(self) -> None:
        """Take the state directory, mount the two FUSE directories, listen. Raises OSError."""
        os.makedirs(self.options.state_dir, 0o700, exist_ok=True)
        os.chmod(self.options.state_dir, 0o700)
        lock = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Never closed: whoever gets the lock after us finds nothing of us left, no process either.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path("kernel-half.json"))
        self.device_fd = self._fuse("dev")
        self.blob_fd = self._fuse("blobs")
        for name in ("control.sock", "daemon.sock"):  # the last one also when it is not ours
            self.stack.callback(_remove, self.path(name))
        self.control = self._listen("control.sock")
        self.daemon_control = -1 if self.options.no_daemon else self._listen("daemon.sock")

    def _listen(self, name: str) -> int:
        sock = self.stack.enter_context(listen(self.path(name)))
        return sock.fileno()

    def _fuse(self, name: str) -> int:
        """Mount a FUSE directory and do its INIT, so that halves come and go without one."""
        target = os.path.join(os.path.realpath(self.options.state_dir), name)
        for entry in mounts():
            if entry.target == target:  # of a keeper that was killed: its connection is dead
                umount(target, _MNT_DETACH)
        os.makedirs(target, 0o700, exist_ok=True)
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            mount_fuse(fd, target, name="pagein")
        except BaseException:
            os.close(fd)
            raise
        # At the end the connection is closed first: nobody would answer what umount asks.
        self.stack.callback(_umount_dead, target)
        self.connections.callback(os.close, fd)
        self.resend &= handshake(fd, timeout=START_TIMEOUT).resend
        return fd

    def kernel_half(self) -> Half:
        command = [sys.executable, "-P", "-m", "pagein.kernelhalf"]
        command += ["--device-fd", str(self.device_fd), "--blob-fd", str(self.blob_fd)]
        command += ["--control-fd", str(self.control), "--state", self.path("kernel-half.json")]
        command += ["--blob-dir", self.path("blobs"), "--timeout", str(self.options.timeout)]
        command += ["--linger", str(self.options.linger)]
        fds = [self.device_fd, self.blob_fd, self.control]
        return Half("kernel half", command, fds, replaceable=self.resend)

    async def user_half(self) -> Half:
        """The user half, with the device's fd, which the keeper holds: see `restore`."""
        loop = asyncio.get_running_loop()
        device = self.path("dev/cachefiles")
        opening = loop.run_in_executor(None, os.open, device, os.O_RDWR | os.O_CLOEXEC)
        fd = await asyncio.wait_for(opening, START_TIMEOUT)
        self.stack.callback(os.close, fd)
        directory = os.open(self.path("dev"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.stack.callback(os.close, directory)
        command = [sys.executable, "-P", "-m", "pagein.daemon", "--device", device]
        command += ["--device-fd", str(fd), "--dir-fd", str(directory)]
        command += ["--control-fd", str(self.daemon_control), "--cache", self.options.cache]
        command += ["--timeout", str(self.options.timeout), "--user", self.options.daemon_user]
        return Half("user half", command, [fd, directory, self.daemon_control])

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
            self.say("ok")
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
            self.connections.close()
            for half in halves[1:]:
                await half.stop()

    def say(self, text: str) -> None:
        """Tell whoever started the keeper: `ok`, or what went wrong."""
        if self.options.ready_fd >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self.options.ready_fd, text.encode() + b"\n")
            os.close(self.options.ready_fd)
            self.options.ready_fd = -1


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _umount_dead(target: str) -> None:
    """Unmount a FUSE directory whose server is gone; detach it if a mount still stands on it."""
    try:
        umount(target)
    except OSError:
        umount(target, _MNT_DETACH)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the keeper's command line."""
    parser = argparse.ArgumentParser(prog="pagein.keeper")
    parser.add_argument("--state-dir", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--linger", type=float, default=3.0)
    parser.add_argument("--daemon-user", default="nobody")
    parser.add_argument("--no-daemon", action="store_true")
    parser.add_argument("--ready-fd", type=int, default=-1)
    return parser.parse_args(argv)


def main() -> int:
    """Run the keeper; its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper %(message)s")
    keeper = Keeper(arguments())
    try:
        with keeper.stack, keeper.connections:
            keeper.hold()
            asyncio.run(keeper.run())
    except (OSError, GivenUp) as problem:
        log.error("%s", message_of(problem))
        keeper.say(message_of(problem))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
