"""The daemon's side of a `Kernel`: its fd of the device, and its anonymous fds.

Each method is one system call of a daemon, with the errno of the real one, and is one `Step` at
which a fault may happen. Two things are not as on a real kernel: the fd of an OPEN is had by
`open_fd`, and a daemon dies by `kill`, or by a `Kill`, which raises `Killed` in it.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pagein.cachefiles.anonymous import AnonymousFile
from pagein.cachefiles.device import Session
from pagein.cachefiles.requests import error
from pagein.protocol.messages import MSG_MAX_SIZE, Open, decode
from pagein.testing.faults import Delay, Drop, Fail, Fault, Kill, Killed, Short, Step
from pagein.testing.recorder import outcome, shown

if TYPE_CHECKING:
    from pagein.testing.kernel import Kernel

T = TypeVar("T")


class Device:
    """An open device, in the hands of a daemon."""

    def __init__(self, kernel: Kernel, session: Session) -> None:
        """Made by `Kernel.open`."""
        self.alive = True
        """Whether the daemon is. Another one may follow, see `restart`."""
        self.fds: list[AnonFd] = []
        """The anonymous fds that the daemon has open."""
        self.kernel = kernel
        self._session = session
        self._closed = False
        self._handles = itertools.count(1)
        kernel.recorder.say("daemon", "open device")

    # ---- system calls ------------------------------------------------------------------------

    def read(self, size: int = MSG_MAX_SIZE) -> bytes:
        """One message, or b"" when there is none now. Raises EMSGSIZE, EEXIST, EMFILE (facts 4)."""

        def show(raw: bytes) -> str:
            return shown(decode(raw)) if raw else "nothing"

        return self.step(Step.READ, "read()", lambda fault: self._read(size, fault), show)

    def _read(self, size: int, fault: Fault | None) -> bytes:
        no_fd_left = isinstance(fault, Fail) and fault.errno in (errno.EMFILE, errno.ENFILE)
        if not no_fd_left:
            _refuse(fault)
        raw = self.kernel.cachefiles.read(size)
        if isinstance(fault, Fail) and raw and isinstance(opening := decode(raw), Open):
            self._session.requests.copen(b"%d,-%d" % (opening.msg_id, fault.errno))
            _refuse(fault)
        return b"" if isinstance(fault, Drop) else raw

    def write(self, command: bytes) -> int:
        """One command; its length. Raises what the kernel's write does (facts 2)."""
        said = f"write({command.decode('ascii', errors='backslashreplace')!r})"
        return self.step(Step.COMMAND, said, lambda fault: self._command(command, fault), str)

    def _command(self, command: bytes, fault: Fault | None) -> int:
        _refuse(fault)
        if isinstance(fault, Drop):
            return len(command)
        return self.kernel.loop.complete(self.kernel.cachefiles.write(command))

    def poll(self) -> int:
        """The poll mask: POLLIN when a read would be of use (facts 5)."""
        return self.kernel.cachefiles.poll()

    def open_fd(self, object_id: int) -> AnonFd:
        """The anonymous fd of an OPEN that was read. Raises ENOENT for an id not in use."""

        def work(fault: Fault | None) -> AnonFd:
            _refuse(fault)
            file = AnonymousFile(self.kernel.cachefiles, object_id, next(self._handles))
            self.fds.append(AnonFd(self, file))
            return self.fds[-1]

        return self.step(Step.OPEN_FD, f"open_fd({object_id})", work, lambda fd: f"fd {fd.number}")

    # ---- the daemon's life -------------------------------------------------------------------

    def kill(self) -> None:
        """The daemon dies: its anonymous fds are closed. Who started it keeps the device open."""
        self.alive = False
        self.kernel.recorder.say("daemon", "killed")
        self._close_fds()

    def restart(self) -> None:
        """Another daemon is given the device. The first thing it has to do is `restore`."""
        self.alive = True
        self.kernel.recorder.say("daemon", "started")

    def close(self) -> None:
        """The last close of the device and of its fds: what waits fails with EIO (facts 7.5)."""
        if not self._closed:
            self._closed = True
            self.kernel.recorder.say("daemon", "close device")
            with self.kernel.loop.running():
                self.kernel.cachefiles.release()
            self._close_fds()

    def _close_fds(self) -> None:
        with self.kernel.loop.running():
            for fd in list(self.fds):
                fd.release()
        self.kernel.settle()

    # ---- a step ------------------------------------------------------------------------------

    def step(
        self,
        step: Step,
        said: str,
        work: Callable[[Fault | None], T],
        show: Callable[[T], str] = lambda result: "ok",
    ) -> T:
        """Take a step; `work` is given the fault that happens to it, and has to heed it."""
        recorder = self.kernel.recorder
        fault = self._before(step, said)
        try:
            with self.kernel.loop.running():
                result = work(fault)
        except OSError as problem:
            recorder.say("daemon", f"{said} = {outcome(problem)}")
            self.kernel.settle()
            raise
        if recorder.on:
            recorder.say("daemon", f"{said} = {show(result)}")
        if isinstance(fault, Kill):
            self.kill()
            raise Killed(said)
        self.kernel.settle()
        return result

    def _before(self, step: Step, said: str) -> Fault | None:
        if not self.alive:
            raise Killed(said)
        if self._closed and step is not Step.CLOSE_FD:
            raise error(errno.EBADF)
        fault = self.kernel.faults.take(step)
        if fault is not None:
            self.kernel.recorder.say("fault", f"{said}: {fault}")
        if isinstance(fault, Delay):
            self.kernel.advance(fault.seconds)
        elif isinstance(fault, Kill) and not fault.after:
            self.kill()
            raise Killed(said)
        return fault


class AnonFd:
    """An anonymous fd of the daemon's."""

    def __init__(self, device: Device, file: AnonymousFile) -> None:
        """Made by `Device.open_fd`."""
        self.object_id = file.object_id
        self.object = file.object
        """The object as the kernel half sees it."""
        self.number = file.handle
        self._device = device
        self._file: AnonymousFile | None = file

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        """Write at a page multiple; how many bytes were. Raises ENOBUFS, EINVAL (facts 8.1)."""

        def work(fault: Fault | None) -> int:
            _refuse(fault)
            view = memoryview(data)
            if isinstance(fault, Drop):
                return len(view)
            if isinstance(fault, Short):
                view = view[: fault.length]
            return self._device.kernel.loop.complete(self._open().pwrite(view, offset))

        said = f"pwrite(fd {self.number}, {len(data)} bytes, {offset})"
        return self._device.step(Step.PWRITE, said, work, str)

    def cread(self, msg_id: int) -> None:
        """CREAD. Raises EINVAL unless it is a pending READ of this object (facts 8.3)."""

        def work(fault: Fault | None) -> None:
            _refuse(fault)
            if not isinstance(fault, Drop):
                self._open().cread(msg_id)

        self._device.step(Step.CREAD, f"cread(fd {self.number}, {msg_id})", work)

    def lseek(self, offset: int, whence: int) -> int:
        """SEEK_SET, END, DATA and HOLE on the cache file. Raises ENOBUFS, ENXIO (facts 8.1)."""
        return self._open().lseek(offset, whence)

    def close(self) -> None:
        """Close it; the last close of an object's fds is a fact of its own (facts 8.4)."""
        self._device.step(Step.CLOSE_FD, f"close(fd {self.number})", lambda fault: self.release())

    def release(self) -> None:
        """Close it whatever happens, as the end of its process does."""
        file, self._file = self._open(), None
        self._device.fds.remove(self)
        file.release()

    def _open(self) -> AnonymousFile:
        if self._file is None:
            raise error(errno.EBADF)
        return self._file


def _refuse(fault: Fault | None) -> None:
    if isinstance(fault, Fail):
        raise error(fault.errno)
