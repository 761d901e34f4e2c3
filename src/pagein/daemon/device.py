"""The device and the anonymous fds, as a daemon sees them.

A daemon written against `Device` and `AnonFd` serves a real /dev/cachefiles, the device of our
kernel half and a kernel half in the same process. `FileDevice` (in `filedevice`) is the first two.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

from pagein.protocol.messages import Message, Open, Read

DEVICE_LOST = 3
"""Exit status of the user half: the device is gone, and no successor could do better."""


class DeviceDead(OSError):
    """The device is gone, or its cache is dead: nothing will be answered any more (EIO)."""

    def __init__(self, cause: str) -> None:
        super().__init__(errno.EIO, cause)


class Served(NamedTuple):
    """What a call says that has served a READ."""

    coming: bytes = b""
    """The device's next message, if it came with that."""
    waited: float = 0.0
    """Seconds of the call that it waited for it."""


class AnonFd(ABC):
    """One open file description's fd of an object's cache file (seed: The OPEN Request)."""

    @abstractmethod
    async def pwrite(
        self, data: memoryview | bytes, offset: int, then: Callable[[], None] | None = None
    ) -> None:
        """Write all of `data`; its length and `offset` are multiples of 4096 bytes.

        `then` is called as soon as all is written, in the thread that did so; where no thread does,
        it may be left out.

        A caller that is cancelled, or gets an error, must leave the memory of `data` as it is: a
        write that was given up may still be reading it.

        Raises:
            OSError: ENOBUFS for no space in the cache or a withdrawn object, EINVAL for what is
                not aligned (facts cachefiles-kernel 8.1), and what the file system says.
        """

    @abstractmethod
    async def cread(self, msg_id: int) -> None:
        """Complete the READ request `msg_id` of this object.

        Raises:
            OSError: EINVAL if there is no such request any more: its reader may have been killed.
        """

    def complete(self, msg_id: int) -> None:
        """As `cread`, but in the calling thread, which may have to wait."""
        raise NotImplementedError

    def serve(self, data: memoryview, offset: int, msg_id: int) -> Served:
        """Write as `pwrite`, then complete a READ, all in the calling thread: see `Shortcut`.

        Raises:
            OSError: nothing was completed. What `cread` says of a READ that is gone is not told.
        """
        raise NotImplementedError

    @abstractmethod
    async def lseek(self, offset: int, whence: int) -> int:
        """As lseek(2) of the cache file: SEEK_DATA and SEEK_HOLE tell what is present."""

    @abstractmethod
    def dup(self) -> AnonFd:
        """Another fd of the same description; the object's last close counts, not each."""

    @abstractmethod
    def fileno(self) -> int:
        """The number of the fd."""

    @abstractmethod
    async def close(self) -> None:
        """Close this fd, once calls that use it have ended. Twice is fine."""


class Shortcut(Protocol):
    """Serves a READ in the thread that heard of it, where that takes hardly any time."""

    @property
    def due(self) -> bool:
        """Whether the loop should hear of what was served; else it may wait until it is quiet."""

    def serve(self, message: Read, *, alone: bool) -> bytes | None:
        """Complete `message` now, in the calling thread; None leaves it to the loop.

        Returns the device's next message if that came with it, else b"".

        Asked twice: before it is known whether other requests wait, and when none do (`alone`).
        """

    def report(self) -> None:
        """On the loop: account for what `serve` did. Comes before any later message."""


class Device(ABC):
    """Where requests come from and commands go."""

    shortcut: Shortcut | None = None
    """To be set before the first `read`; only of use to a device that has a thread of its own."""

    @abstractmethod
    async def read(self) -> Message:
        """The next request, however long that takes.

        Raises:
            DeviceDead: there will be none.
        """

    @abstractmethod
    async def command(self, data: bytes) -> None:
        """Write one command; OSError with the errno that the device answers."""

    @abstractmethod
    async def open_anon(self, message: Open) -> AnonFd:
        """The anonymous fd of an OPEN; OSError (EMFILE) if it cannot be had."""

    @abstractmethod
    async def close(self) -> None:
        """Close the device and the anonymous fds nobody asked for. Twice is fine."""
