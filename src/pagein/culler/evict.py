"""Two ways to take a file out of a cache, each of which leaves alone what is in use."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod

from pagein.cachefiles.inuse import claimed

IN_USE = frozenset({errno.EBUSY, errno.EAGAIN})
GONE = frozenset({errno.ENOENT, errno.ESTALE})


class Evictor(ABC):
    """Takes files away, by their paths relative to the cache directory. Methods block."""

    @abstractmethod
    def evict(self, path: bytes) -> None:
        """Remove a file. Raises OSError with a number of IN_USE or GONE, or what is wrong."""

    @abstractmethod
    def check(self, path: bytes) -> None:
        """Raise what `evict` would raise, and do nothing."""


class Leases(Evictor):
    """By write leases: no device is needed, whoever serves the cache, or nobody.

    The lease is granted only while nobody has the file open: not a kernel half, ours or Linux, not
    a library process, not a mount made directly on the file. It is held until the file has gone,
    so that who looks it up meanwhile finds it before, or not at all.
    """

    def __init__(self, directory: bytes) -> None:
        """For the cache in `directory`."""
        self._directory = directory

    def evict(self, path: bytes) -> None:
        whole = os.path.join(self._directory, path)
        with claimed(whole, os.O_RDONLY):
            os.unlink(whole)

    def check(self, path: bytes) -> None:
        with claimed(os.path.join(self._directory, path), os.O_RDONLY):
            pass


class Commands(Evictor):
    """By `cull` and `inuse`, for who holds the device. They act in the working directory.

    So this changes the working directory of the process, and puts it back.
    """

    def __init__(self, device: int, directory: bytes) -> None:
        """For the cache that is bound on the fd `device`, in `directory`."""
        self._device = device
        self._directory = directory

    def evict(self, path: bytes) -> None:
        self._say(b"cull ", path)

    def check(self, path: bytes) -> None:
        self._say(b"inuse ", path)

    def _say(self, verb: bytes, path: bytes) -> None:
        place, name = os.path.split(path)
        before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chdir(os.path.join(self._directory, place))
            os.write(self._device, verb + name)
        finally:
            os.fchdir(before)
            os.close(before)
