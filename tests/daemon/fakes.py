"""A device in memory for the tests of the daemon: the kernel's answers, and what it was told."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from pagein.daemon.device import AnonFd, Device, DeviceDead
from pagein.protocol.messages import Close, Message, Open, Read
from pagein.rangeset import RangeSet


@dataclass
class File:
    """A cache file: its bytes, what is present, and every fd that is open."""

    data: bytearray = field(default_factory=bytearray)
    present: RangeSet = field(default_factory=RangeSet)
    open_fds: int = 0


@dataclass(eq=False)
class FakeAnonFd(AnonFd):
    device: FakeDevice
    object_id: int
    file: File
    is_open: bool = True

    def __post_init__(self) -> None:
        self.file.open_fds += 1

    def _check(self) -> None:
        if not self.is_open:
            raise OSError(errno.EBADF, "closed")

    async def pwrite(
        self, data: memoryview | bytes, offset: int, then: Callable[[], None] | None = None
    ) -> None:
        self._check()
        if self.object_id not in self.device.opened:
            raise OSError(errno.ENOBUFS, "before copen")
        await asyncio.sleep(0)
        grow = offset + len(data) - len(self.file.data)
        self.file.data.extend(bytes(max(0, grow)))
        self.file.data[offset : offset + len(data)] = data
        self.file.present.add(offset, offset + len(data))
        if then is not None:
            then()

    async def cread(self, msg_id: int) -> None:
        self.complete(msg_id)

    def complete(self, msg_id: int) -> None:
        self._check()
        if self.device.reads.get(msg_id) != self.object_id:
            raise OSError(errno.EINVAL, "no such request")
        del self.device.reads[msg_id]
        self.device.log.append(f"cread {msg_id}")
        self.device.changed.set()

    async def lseek(self, offset: int, whence: int) -> int:
        self._check()
        await asyncio.sleep(0)
        for start, end in self.file.present:
            if whence == os.SEEK_DATA and end > offset:
                return max(offset, start)
            if whence == os.SEEK_HOLE and start <= offset < end:
                return end
        if whence == os.SEEK_HOLE:
            return offset
        raise OSError(errno.ENXIO, "no data")

    def dup(self) -> AnonFd:
        self._check()
        return FakeAnonFd(self.device, self.object_id, self.file)

    def fileno(self) -> int:
        return -1

    async def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.file.open_fds -= 1


@dataclass(eq=False)
class FakeDevice(Device):
    """Sends what the test queues; `log` has every command and CREAD."""

    bound: bool = False
    command_errors: dict[str, int] = field(default_factory=dict)
    open_error: int = 0
    log: list[str] = field(default_factory=list)
    files: dict[int, File] = field(default_factory=dict)
    opened: dict[int, int] = field(default_factory=dict)  # object_id: size
    opens: dict[int, int] = field(default_factory=dict)  # msg_id: object_id
    reads: dict[int, int] = field(default_factory=dict)
    closed: bool = False

    def __post_init__(self) -> None:
        self.queue: asyncio.Queue[Message | None] = asyncio.Queue()
        self.changed = asyncio.Event()
        self.next_id = 0

    async def read(self) -> Message:
        message = await self.queue.get()
        if message is None:
            raise DeviceDead("the cache is dead")
        return message

    async def command(self, data: bytes) -> None:
        text = data.decode()
        verb = text.split()[0]
        self.log.append(text)
        if (number := self.command_errors.get(verb, 0)) != 0:
            raise OSError(number, os.strerror(number))
        if verb == "copen":
            msg_id, size = (int(part) for part in text.split(None, 1)[1].split(","))
            object_id = self.opens.pop(msg_id)
            if size >= 0:
                self.opened[object_id] = size
            self.changed.set()

    async def open_anon(self, message: Open) -> AnonFd:
        if self.open_error:
            raise OSError(self.open_error, os.strerror(self.open_error))
        file = self.files.setdefault(message.object_id, File())
        return FakeAnonFd(self, message.object_id, file)

    async def close(self) -> None:
        self.closed = True

    # ---- what a test does

    def send_open(
        self, object_id: int, cookie: bytes, *, volume: bytes = b"erofs,x", file: File | None = None
    ) -> int:
        self.next_id += 1
        self.opens[self.next_id] = object_id
        if file is not None:
            self.files[object_id] = file
        self.queue.put_nowait(Open(self.next_id, object_id, volume, cookie, 0))
        return self.next_id

    def send_read(self, object_id: int, off: int, length: int) -> int:
        self.next_id += 1
        self.reads[self.next_id] = object_id
        self.queue.put_nowait(Read(self.next_id, object_id, off, length))
        return self.next_id

    def send_close(self, object_id: int) -> None:
        self.next_id += 1
        self.queue.put_nowait(Close(self.next_id, object_id))

    async def answered(self, *msg_ids: int) -> None:
        """Until all of these OPENs and READs have been answered."""
        while any(each in self.reads or each in self.opens for each in msg_ids):
            self.changed.clear()
            await self.changed.wait()
