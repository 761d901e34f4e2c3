"""The user half as a process: the daemon, its records of sources, its control socket.

It parses what comes from the network, so it gives its privileges away before it reads the first
byte of that: what it needs open it has open by then.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures.thread  # noqa: F401  what is imported lazily, see below
import contextlib
import ctypes
import encodings.idna  # noqa: F401
import errno
import logging
import os
import pwd
import signal
import socket
from typing import Any

# All imports are done before the privileges go: afterwards the interpreter's files may be out of
# reach (a Python below a home directory), also for those that libraries import when first used.
import pagein.origins.file
import pagein.origins.http
from pagein.control import Answer, ControlServer, listen, message_of
from pagein.daemon.device import DEVICE_LOST, Device, DeviceDead
from pagein.daemon.filedevice import FileDevice
from pagein.daemon.loop import Daemon, raise_fd_limit
from pagein.daemon.records import Records
from pagein.origins import Origin, OriginError, open_origin, redact, resolve

log = logging.getLogger("pagein.daemon")

RECORDS = "origins"
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


class Process:
    """A `Daemon` whose origins are the sources that were resolved here or by a predecessor."""

    def __init__(self, device: Device | str, *, cache: str, timeout: float) -> None:
        self.timeout = timeout
        self.stopping = False
        self.records = Records(os.path.join(cache, RECORDS))
        self.session = pagein.origins.http.new_session()
        self.daemon = Daemon(device, self._origin, cache=cache, timeout=timeout)

    def stop(self) -> None:
        """Told to end: from now on the device may go at any moment."""
        self.stopping = True
        self.daemon.stop()

    async def _origin(self, volume: bytes, cookie: bytes) -> Origin:
        loop = asyncio.get_running_loop()
        identity = await loop.run_in_executor(None, self.records.find, cookie)
        return open_origin(identity, timeout=self.timeout, session=self.session)

    async def resolve(self, question: dict[str, Any]) -> Answer:
        """Look at a source; its key for the kernel half."""
        identity = await self._resolve(question["source"])
        loop = asyncio.get_running_loop()
        key = await loop.run_in_executor(None, self.records.keep, identity)
        return {"cookie": key.decode(), "size": identity.size, "source": redact(identity.source)}

    async def _resolve(self, source: str) -> Any:
        """Its identity now; when it cannot be reached, the last one that was seen."""
        try:
            return await resolve(source, timeout=self.timeout, session=self.session)
        except OriginError as problem:
            if not problem.retry:
                raise
            loop = asyncio.get_running_loop()
            known = await loop.run_in_executor(None, self.records.latest, source)
            if known is None:
                raise
            log.warning("%s; going on with what is known of it", problem.strerror)
            return known

    async def status(self, question: dict[str, Any]) -> Answer:
        """What was fetched, for `pagein status`."""
        blobs = self.daemon.stats()
        for blob in blobs:
            with contextlib.suppress(OSError):
                blob["source"] = redact(self.records.find(blob["cookie"].encode()).source)
        return {"pid": os.getpid(), "blobs": blobs}


async def _run(process: Process, control: socket.socket, ready_fd: int) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop)
    server = ControlServer(control, {"resolve": process.resolve, "status": process.status})
    await server.start()
    if ready_fd >= 0:
        os.write(ready_fd, b"r")
        os.close(ready_fd)
    try:
        await process.daemon.run()
    except OSError:
        if not process.stopping:
            raise
    finally:
        await server.close()
        await process.session.close()


def serve(path: str, *, control: str, cache: str, timeout: float, user: str) -> None:
    """Serve the device at `path` until SIGTERM or SIGINT. Raises OSError for the user.

    Answers on the Unix socket `control`; becomes `user` once the device is open.
    """

    async def run() -> None:
        raise_fd_limit()
        try:
            device = await FileDevice.open(path, timeout=timeout)
        except OSError as problem:
            if problem.errno == errno.EBUSY:
                raise OSError(errno.EBUSY, "another daemon holds this device", path) from None
            if problem.errno == errno.ENOENT:
                text = "no such device: does `pagein device` run?"
                raise OSError(errno.ENOENT, text, path) from None
            raise
        os.makedirs(os.path.dirname(control), 0o700, exist_ok=True)
        with listen(control) as sock:
            if os.geteuid() == 0:
                give_up_privileges(user, os.path.join(cache, RECORDS), with_parent=False)
            await _run(Process(device, cache=cache, timeout=timeout), sock, -1)

    logging.basicConfig(level=logging.INFO, format="%(asctime)s daemon %(message)s")
    asyncio.run(run())


def give_up_privileges(user: str, directory: str, *, with_parent: bool) -> None:
    """Become `user` for good; `directory` becomes theirs. Raises OSError.

    `with_parent`: be killed when the parent process ends.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise OSError(errno.EINVAL, f"no user is called {user}") from None
    os.makedirs(directory, 0o700, exist_ok=True)
    for name in ("", *os.listdir(directory)):
        os.chown(os.path.join(directory, name), entry.pw_uid, entry.pw_gid)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if with_parent:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user forgets it


def main() -> int:
    """The process that the keeper starts; its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s user-half %(message)s")
    parser = argparse.ArgumentParser(prog="pagein.daemon")
    parser.add_argument("--device", required=True)
    for name in ("device-fd", "dir-fd", "control-fd", "ready-fd"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--user", required=True)
    options = parser.parse_args()
    raise_fd_limit()

    async def run() -> None:
        dir_fd = None if options.dir_fd < 0 else options.dir_fd  # none: it is the real device
        device = FileDevice.from_fd(options.device_fd, dir_fd, timeout=options.timeout)
        if os.geteuid() == 0:
            give_up_privileges(options.user, os.path.join(options.cache, RECORDS), with_parent=True)
        process = Process(device, cache=options.cache, timeout=options.timeout)
        await _run(process, socket.socket(fileno=options.control_fd), options.ready_fd)

    try:
        asyncio.run(run())
    except DeviceDead as problem:
        log.error("%s", message_of(problem))
        return DEVICE_LOST
    except OSError as problem:
        log.error("%s", message_of(problem))
        return 1
    return 0
