"""What can go wrong, at each step that a daemon or the kernel half takes.

A *step* is one system call of the daemon's (`Step.READ` to `Step.CLOSE_FD`), or one of the kernel
half's on the cache's file system (`Step.LOOK_UP`, `Step.STORE`). Before a step is taken `Faults` is
asked; what it answers happens instead, or first. Not every fault has a meaning at every step:
`POSSIBLE` says which, and `Faults.add` refuses the others.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar

from pagein.cachefiles.backing import BackingFile
from pagein.cachefiles.cache import Cache
from pagein.cachefiles.requests import error
from pagein.cachefiles.writers import Writers

T = TypeVar("T")


class Step(Enum):
    """One system call."""

    READ = "read"
    """The daemon reads the device."""
    COMMAND = "command"
    """The daemon writes to the device."""
    OPEN_FD = "open fd"
    """The daemon gets the anonymous fd of an OPEN."""
    PWRITE = "pwrite"
    """The daemon writes to an anonymous fd."""
    CREAD = "cread"
    """The daemon says CREAD."""
    CLOSE_FD = "close fd"
    """The daemon closes an anonymous fd."""
    LOOK_UP = "look up"
    """The kernel half looks a cache file up, or makes it."""
    STORE = "store"
    """The kernel half writes to a cache file."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The step is lost: it seems to succeed and has no effect. A message read is nobody's."""


@dataclass(frozen=True, slots=True)
class Delay:
    """The step happens `seconds` later; all else goes on meanwhile."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Kill:
    """The daemon dies before the step, or after it; all its anonymous fds are closed."""

    after: bool = False


@dataclass(frozen=True, slots=True)
class Short:
    """Only the first `length` bytes are written, and the call says so."""

    length: int


@dataclass(frozen=True, slots=True)
class Fail:
    """The step fails with this errno.

    EMFILE of a READ is the full fd table of facts cachefiles-kernel 4.4: the OPEN that was to be
    delivered fails with it; a read that meets none is not touched.
    """

    errno: int


Fault: TypeAlias = Drop | Delay | Kill | Short | Fail

POSSIBLE: Final[Mapping[Step, tuple[type[Fault], ...]]] = MappingProxyType(
    {
        Step.READ: (Drop, Delay, Kill, Fail),
        Step.COMMAND: (Drop, Delay, Kill, Fail),
        Step.OPEN_FD: (Delay, Kill, Fail),
        Step.PWRITE: (Drop, Delay, Kill, Short, Fail),
        Step.CREAD: (Drop, Delay, Kill, Fail),
        Step.CLOSE_FD: (Delay, Kill),
        Step.LOOK_UP: (Fail,),
        Step.STORE: (Short, Fail),
    }
)
"""What can happen at which step. Nothing can keep an fd from being closed."""


class Killed(Exception):
    """The daemon was killed at this step; its fds are closed, and it does nothing any more."""


class Faults:
    """Which steps fail, and how."""

    def __init__(self) -> None:
        self.chooser: Callable[[Step], Fault | None] = lambda step: None
        """Asked at each step for which no fault was added: for random ones."""
        self.count = 0
        """How many faults have happened."""
        self._waiting: dict[Step, deque[Fault | None]] = {step: deque() for step in Step}

    def add(self, step: Step, fault: Fault, *, skip: int = 0, times: int = 1) -> None:
        """Have `fault` happen at the next steps of that kind, after `skip` undisturbed ones.

        What is added later comes after what was added before. Raises ValueError for a fault that
        has no meaning at that step (`POSSIBLE`).
        """
        if not isinstance(fault, POSSIBLE[step]):
            raise ValueError(f"{fault} cannot happen at {step.name}")
        self._waiting[step] += [None] * skip + [fault] * times

    def clear(self) -> None:
        """Nothing that was added happens any more."""
        for waiting in self._waiting.values():
            waiting.clear()

    def next(self, step: Step) -> Fault | None:
        """What was added for the next step of that kind."""
        return self._waiting[step][0] if self._waiting[step] else None

    def take(self, step: Step) -> Fault | None:
        """What is to happen at this step, which is about to be taken."""
        waiting = self._waiting[step]
        fault = waiting.popleft() if waiting else self.chooser(step)
        self.count += fault is not None
        return fault


class StepWriters(Writers):
    """Writes as steps of the loop, where there are no threads."""

    def start(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """What `call` will have returned, at a step of its own."""
        return asyncio.get_running_loop().run_in_executor(None, call)


class FaultyCache(Cache):
    """A cache directory whose file system fails when told."""

    def __init__(self, directory: bytes, *, faults: Faults, **options: Any) -> None:
        super().__init__(directory, **options)
        self._faults = faults
        self.writers = StepWriters(1)

    def look_up(self, relative: bytes, object_size: int, aux: bytes = b"") -> BackingFile:
        """As `Cache.look_up`, unless told to fail."""
        if isinstance(fault := self._faults.take(Step.LOOK_UP), Fail):
            raise error(fault.errno)
        return super().look_up(relative, object_size, aux)

    def store(self, fd: int, data: memoryview, offset: int) -> int:
        """pwrite, unless told to fail. A disk that fills up half-way is `Short`, then `Fail`."""
        fault = self._faults.take(Step.STORE)
        if isinstance(fault, Fail):
            raise error(fault.errno)
        if isinstance(fault, Short) and 0 < fault.length < len(data):
            return os.pwrite(fd, data[: fault.length], offset)
        return os.pwrite(fd, data, offset)
