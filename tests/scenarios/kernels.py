"""The two kernels that a scenario runs on, and the two places where their devices differ."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias

from tests.cachefiles.served import fuse_mount
from tests.scenarios import libc
from tests.scenarios.netfs import NetfsProcess

from pagein.protocol.messages import IOC_READ_COMPLETE, Open


class Kernel(ABC):
    """What is the same for all scenarios of a run."""

    def __init__(self, device: Path, netfs: NetfsProcess) -> None:
        self.device = device
        self.netfs = netfs
        self.broken = False
        """Whether a scenario left something behind: the next one needs a new kernel."""

    @abstractmethod
    def abort(self) -> None:
        """Fail every system call that waits for the kernel: a scenario hangs."""

    @abstractmethod
    def anonymous_fd(self, message: Open) -> int:
        """The anonymous fd of an OPEN that was just read."""

    @abstractmethod
    def cread(self, fd: int, msg_id: int) -> None:
        """CACHEFILES_IOC_CREAD."""


class Linux(Kernel):
    """The real one."""

    def abort(self) -> None:
        """None of its calls waits, apart from those of the netfs."""
        self.netfs.kill()

    def anonymous_fd(self, message: Open) -> int:
        """It is in the message."""
        os.set_inheritable(message.fd, False)
        return message.fd

    def cread(self, fd: int, msg_id: int) -> None:
        """With the id by value."""
        libc.ioctl(fd, IOC_READ_COMPLETE, msg_id)


class Ours(Kernel):
    """Our kernel half in a process of its own, on the FUSE connection `fuse`."""

    def __init__(self, device: Path, netfs: NetfsProcess, fuse: int) -> None:
        super().__init__(device, netfs)
        self._fuse = fuse

    def abort(self) -> None:
        """End the connection: nobody holds it any more."""
        self.netfs.kill()
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nothing, self._fuse, inheritable=False)
        os.close(nothing)

    def anonymous_fd(self, message: Open) -> int:
        """A file beside the device."""
        path = self.device.parent / "anon" / str(message.object_id)
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def cread(self, fd: int, msg_id: int) -> None:
        """With the id by pointer."""
        fcntl.ioctl(fd, IOC_READ_COMPLETE, struct.pack("=I", msg_id))


@contextlib.contextmanager
def linux(directory: Path) -> Iterator[Kernel]:
    """The kernel that this runs on, which must have the device; mounts are below `directory`."""
    mounts = directory / "mounts"
    mounts.mkdir()
    netfs = NetfsProcess("tests.scenarios.netfs_linux", str(mounts))
    try:
        yield Linux(Path("/dev/cachefiles"), netfs)
    finally:
        netfs.end()


@contextlib.contextmanager
def ours(directory: Path) -> Iterator[Kernel]:
    """Our kernel half, its device below `directory`."""
    with fuse_mount(directory / "dev") as fd:
        netfs = NetfsProcess("tests.scenarios.netfs_ours", str(fd), pass_fds=(fd,))
        try:
            yield Ours(directory / "dev" / "cachefiles", netfs, fd)
        finally:
            netfs.end()


Make: TypeAlias = Callable[[Path], AbstractContextManager[Kernel]]


class Running:
    """A kernel for one scenario after the other; a new one after a scenario that broke it."""

    def __init__(self, make: Make, directory: Path) -> None:
        self._make = make
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._kernel: Kernel | None = None

    def kernel(self) -> Kernel:
        """The kernel that runs, or another one."""
        if self._kernel is not None and self._kernel.broken:
            self.close()
        if self._kernel is None:
            place = Path(tempfile.mkdtemp(dir=self._directory, prefix="kernel-"))
            self._kernel = self._stack.enter_context(self._make(place))
        return self._kernel

    def close(self) -> None:
        """End it."""
        self._kernel = None
        self._stack.close()


KERNELS: dict[str, Make] = {"linux": linux, "ours": ours}
