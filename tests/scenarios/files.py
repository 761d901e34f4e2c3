"""The device and its anonymous fds as a daemon has them: raw system calls, each of them written
into the transcript.

The two places where our device differs (facts half-to-half 1) are in `kernels`: how an anonymous
fd is come by, and how CREAD is told its id.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from tests.scenarios import image, libc
from tests.scenarios.transcript import Transcript, errno_name, ok

from pagein.protocol.messages import MSG_MAX_SIZE, Close, Message, Open, Read, decode

if TYPE_CHECKING:
    from tests.scenarios.kernels import Kernel

M = TypeVar("M", Open, Read, Close)

PAGE = image.PAGE
DEADLINE = 20.0
"""Seconds within which anything that a scenario waits for must have happened."""
QUIET = 0.15
"""Seconds without a sign that count as nothing going to happen."""
_BITS = {
    select.POLLIN: "POLLIN",
    select.POLLPRI: "POLLPRI",
    select.POLLOUT: "POLLOUT",
    select.POLLERR: "POLLERR",
    select.POLLHUP: "POLLHUP",
    select.POLLRDNORM: "POLLRDNORM",
}
_ASKED = select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDNORM
_WHENCE = {0: "SET", 1: "CUR", 2: "END", os.SEEK_DATA: "DATA", os.SEEK_HOLE: "HOLE"}


def bits(mask: int) -> str:
    """The names of poll bits."""
    return "|".join(name for bit, name in _BITS.items() if mask & bit) or "nothing"


def poll_mask(fd: int, timeout: float, asked: int = _ASKED) -> int:
    """What poll(2) says of one fd within `timeout` seconds."""
    poller = select.poll()
    poller.register(fd, asked)
    found = poller.poll(int(timeout * 1000))
    return found[0][1] if found else 0


def show(message: Message) -> str:
    """A message in one line. Not the fd of an OPEN: that is whatever number was free."""
    head = f"{message.opcode.name} id={message.msg_id} object={message.object_id}"
    if isinstance(message, Open):
        keys = f"{message.volume_key.decode('latin-1')!r} {message.cookie_key.decode('latin-1')!r}"
        return f"{head} len={len(message.encode())} flags={message.flags} {keys}"
    return f"{head} {message.off}+{message.len}" if isinstance(message, Read) else head


@contextlib.contextmanager
def aligned(data: bytes, shift: int = 0) -> Iterator[memoryview]:
    """`data` in memory that begins `shift` bytes after a page boundary."""
    with mmap.mmap(-1, max(len(data) + shift, 1)) as memory:
        memory[shift : shift + len(data)] = data
        whole = memoryview(memory)
        view = whole[shift : shift + len(data)]
        try:
            yield view
        finally:
            view.release()
            whole.release()


class Fd:
    """An open file whose calls stand in the transcript."""

    def __init__(self, number: int, name: str, log: Transcript) -> None:
        self.number = number
        self.name = name
        self.log = log

    def fileno(self) -> int:
        """The fd."""
        return self.number

    @property
    def closed(self) -> bool:
        """Whether this program has closed it."""
        return self.number < 0

    def close(self) -> None:
        """Close this fd; others of the same file may be left."""
        number, self.number = self.number, -1
        self.log.call(f"{self.name}: close", lambda: os.close(number), ok)

    def drop(self) -> None:
        """Close it, at the end of the scenario, without a word."""
        if not self.closed:
            number, self.number = self.number, -1
            os.close(number)

    def poll(self) -> int:
        """What poll(2) says now."""
        mask = poll_mask(self.number, 0)
        self.log.say(f"{self.name}: poll: {bits(mask)}")
        return mask

    def lseek(self, offset: int, whence: int) -> int | None:
        """Do lseek(2)."""
        what = f"{self.name}: lseek {_WHENCE[whence]} {offset}"
        return self.log.call(what, lambda: os.lseek(self.number, offset, whence))

    def ioctl(self, request: int, argument: int | bytes = 0) -> None:
        """Do ioctl(2)."""
        what = f"{self.name}: ioctl {request:#x}"
        self.log.call(what, lambda: fcntl.ioctl(self.number, request, argument), ok)

    def mmap(self, protection: int) -> None:
        """Try mmap(2) of a page, shared."""
        self.log.call(f"{self.name}: mmap", lambda: libc.map_page(self.number, protection), ok)

    def fstat(self) -> None:
        """Write mode and size."""
        self.log.call(f"{self.name}: fstat", lambda: os.fstat(self.number), _show_stat)


def _show_stat(found: os.stat_result) -> str:
    return f"mode {found.st_mode & 0o7777:o} size {found.st_size}"


class Anon(Fd):
    """An anonymous fd."""

    def __init__(self, number: int, name: str, log: Transcript, kernel: Kernel) -> None:
        super().__init__(number, name, log)
        self._kernel = kernel
        self._dups: list[Anon] = []

    def drop(self) -> None:
        """Close it, and what `dup` made of it."""
        super().drop()
        for each in self._dups:
            each.drop()

    def pwrite(self, data: bytes, offset: int, *, shift: int = 0) -> int | None:
        """Do pwrite(2) from memory that lies `shift` bytes after a page boundary."""
        what = f"{self.name}: pwrite {len(data)} at {offset}"
        if shift:
            what += f", memory at {shift}"
        with aligned(data, shift) as view:
            return self.log.call(what, lambda: os.pwrite(self.number, view, offset))

    def write(self, data: bytes) -> int | None:
        """Do write(2), from aligned memory."""
        with aligned(data) as view:
            what = f"{self.name}: write {len(data)}"
            return self.log.call(what, lambda: os.write(self.number, view))

    def fill(self, first: int, count: int = 1, *, device: int = 0, devices: int = 0) -> None:
        """Write pages `first` ... of the test image where they belong."""
        data = b"".join(image.page(n, device, devices=devices) for n in range(first, first + count))
        self.pwrite(data, first * PAGE)

    def cread(self, msg_id: int) -> None:
        """Complete the READ of that id (CACHEFILES_IOC_CREAD)."""
        what = f"{self.name}: cread {msg_id}"
        self.log.call(what, lambda: self._kernel.cread(self.number, msg_id), ok)

    def answer(self, message: Read, *, device: int = 0, devices: int = 0) -> None:
        """Write what a READ asks for and complete it."""
        self.fill(message.off // PAGE, message.len // PAGE, device=device, devices=devices)
        self.cread(message.msg_id)

    def dup(self) -> Anon:
        """Another fd of the same file description."""
        made = Anon(os.dup(self.number), f"{self.name}'", self.log, self._kernel)
        self._dups.append(made)
        return made


class Device(Fd):
    """The device, open."""

    def __init__(self, number: int, name: str, log: Transcript, kernel: Kernel) -> None:
        super().__init__(number, name, log)
        self._kernel = kernel
        self.anonymous: dict[int, Anon] = {}
        """The anonymous fd of each OPEN that was read, by object_id."""
        self.last = b""
        """The last message, as it came."""

    def write(self, command: bytes) -> int | None:
        """Write a command."""
        text = command.decode("latin-1")
        what = repr(text) if len(text) < 300 else f"{text[:20]!r}... of {len(text)} bytes"
        return self.log.call(
            f"{self.name}: {what}",
            lambda: os.write(self.number, command),
            lambda done: "ok" if done == len(command) else done,
        )

    def copen(self, message: Open, size: int = image.SIZE) -> int | None:
        """Answer an OPEN with a size or a negative errno."""
        return self.write(b"copen %d,%d" % (message.msg_id, size))

    def read(self, size: int = MSG_MAX_SIZE, *, at: int | None = None) -> Message | None:
        """Read once, by pread(2) if `at` is given; None when there was nothing, or an error."""
        what = f"{self.name}: read" + ("" if size == MSG_MAX_SIZE else f" of {size}")
        what += "" if at is None else f" at {at}"
        raw = self.log.call(
            what,
            lambda: os.read(self.number, size) if at is None else os.pread(self.number, size, at),
            lambda raw: show(decode(raw)) if raw else 0,
        )
        if not raw:
            return None
        self.last = raw
        message = decode(raw)
        if isinstance(message, Open):
            self._take_fd(message)
        return message

    def _take_fd(self, message: Open) -> None:
        name = f"object {message.object_id}"
        try:
            number = self._kernel.anonymous_fd(message)
        except OSError as problem:  # of ours it is another system call
            self.log.say(f"{name}: open: {errno_name(problem.errno)}")
            return
        self.anonymous[message.object_id] = Anon(number, name, self.log, self._kernel)

    def take(self, kind: type[M]) -> M:
        """Wait for the next message, which must be one of that kind."""
        for _ in range(20):
            if not poll_mask(self.number, DEADLINE, select.POLLIN):
                break
            if (message := self.read()) is not None:
                if isinstance(message, kind):
                    return message
                break
        raise AssertionError("\n".join([*self.log.lines, f"there should be a {kind.__name__} now"]))

    def take_open(self) -> tuple[Open, Anon]:
        """Wait for an OPEN; returns its anonymous fd as well."""
        message = self.take(Open)
        return message, self.anonymous[message.object_id]

    def wait(self) -> int:
        """Wait until poll(2) says something."""
        mask = poll_mask(self.number, DEADLINE)
        self.log.say(f"{self.name}: poll: {bits(mask)}")
        return mask

    def nothing(self) -> None:
        """See that nothing comes to be read for a while."""
        self.log.say(f"{self.name}: poll for a while: {bits(poll_mask(self.number, QUIET))}")

    def read_nothing_left(self) -> list[Message]:
        """Read until there is nothing."""
        found: list[Message] = []
        while (message := self.read()) is not None:
            found.append(message)
        return found
