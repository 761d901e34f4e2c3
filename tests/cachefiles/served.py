"""A served device directory, and a daemon made of raw system calls on it."""

import contextlib
import fcntl
import json
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from tests.cachefiles.rig import PAGE, pages
from tests.fuse.mounted import DEADLINE, Process

from pagein.fuse.handshake import handshake
from pagein.mounts import syscalls
from pagein.protocol.messages import IOC_READ_COMPLETE, Close, Message, Open, Read, decode

HALF = Path(__file__).with_name("devhalf.py")
M = TypeVar("M", Open, Read, Close)


@contextlib.contextmanager
def fuse_mount(directory: Path) -> Iterator[int]:
    """Mount FUSE on a new directory; yields its fd, of which the test is the keeper."""
    directory.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        syscalls.mount_fuse(fd, str(directory))
        handshake(fd, timeout=DEADLINE)
        yield fd
    finally:
        os.close(fd)  # the last holder: whoever still waits gets an error
        if syscalls.mount_at(str(directory)) is not None:
            syscalls.umount(str(directory))


class Served:
    """A kernel half in its process, and what a daemon does with its device."""

    def __init__(self, root: Path, process: Process) -> None:
        self.process = process
        self.directory = root / "dev"
        self.blobs = root / "blobs"
        self.path = self.directory / "cachefiles"
        self.cache = root / "cache"
        self.fds: list[int] = []
        self.fd = -1

    def keep(self, fd: int) -> int:
        """Close `fd` with the test, should that not do it."""
        self.fds.append(fd)
        return fd

    def close(self, fd: int) -> None:
        self.fds.remove(fd)
        os.close(fd)

    def open(self, bind: bool = True) -> int:
        """Open the device, and bind it."""
        self.fd = self.keep(os.open(self.path, os.O_RDWR | os.O_CLOEXEC))
        if bind:
            os.write(self.fd, b"dir " + os.fsencode(self.cache))
            os.write(self.fd, b"bind ondemand")
        return self.fd

    def take(self, kind: type[M]) -> M:
        """Wait for the next message, which must be one of that kind."""
        message = self.next_message()
        assert isinstance(message, kind), message
        return message

    def next_message(self) -> Message:
        with select.epoll() as epoll:
            epoll.register(self.fd, select.EPOLLIN)
            for _ in range(10):
                assert epoll.poll(DEADLINE), "no message"
                if raw := os.read(self.fd, 1024):
                    return decode(raw)
        raise AssertionError("POLLIN, and nothing to read")

    def anon(self, object_id: int, flags: int = os.O_WRONLY) -> int:
        path = self.directory / "anon" / str(object_id)
        return self.keep(os.open(path, flags | os.O_CLOEXEC))

    def serve_open(self, key: str, size: int) -> int:
        """Have a cookie acquired, answer its OPEN; returns an anonymous fd."""
        self.process.send(f"acquire {key}")
        message = self.take(Open)
        assert message.cookie_key == key.encode()
        fd = self.anon(message.object_id)
        os.write(self.fd, b"copen %d,%d" % (message.msg_id, size))
        assert self.process.wait_for("acquire", key=key)["size"] == size
        return fd

    def order(self, order: str) -> dict[str, Any]:
        """Give an order that waits for nobody; returns what it told."""
        self.process.send(order)
        return self.process.wait_for(order.split(maxsplit=1)[0])


def cread(fd: int, msg_id: int) -> int:
    """CACHEFILES_IOC_CREAD, with its id by pointer."""
    result: int = fcntl.ioctl(fd, IOC_READ_COMPLETE, bytearray(struct.pack("=I", msg_id)), True)
    return result


def fill(fd: int, message: Read, *numbers: int) -> None:
    """Answer a READ with pages of these numbers."""
    with pages(*numbers) as data:
        assert os.pwrite(fd, data, message.off) == len(data) == PAGE * len(numbers)
    cread(fd, message.msg_id)


@contextlib.contextmanager
def served(root: Path, *, blobs: bool = False) -> Iterator[Served]:
    """A kernel half over FUSE below `root`, with its cache in `root`/cache."""
    (root / "cache").mkdir()
    with contextlib.ExitStack() as stack:
        fds = {"device": stack.enter_context(fuse_mount(root / "dev"))}
        if blobs:
            fds["blobs"] = stack.enter_context(fuse_mount(root / "blobs"))
        process = Process([str(HALF), json.dumps(fds)], pass_fds=tuple(fds.values()))
        half = Served(root, process)
        try:
            process.wait_for("ready")
            yield half
            for fd in half.fds[::-1]:
                half.close(fd)
            assert process.end() == 0
        finally:
            process.kill()
            for fd in half.fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
