"""A device that is a file: the real /dev/cachefiles, or the one our kernel half serves over FUSE.

There are two differences between them, and this module hides both (facts half-to-half 1):

* the real device installs the fd of an OPEN in the process that read it; of ours, the daemon opens
  `anon/<object_id>` beside the device;
* the real CREAD takes the id of the request by value; over FUSE an ioctl has a pointer.

No call is made on the event loop: each of them may wait for the server of the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import mmap
import os
import stat
import struct
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from pagein.daemon.device import AnonFd, Device, Served
from pagein.daemon.poller import Poller
from pagein.daemon.threads import Workers
from pagein.origins.sharedfd import SharedFd
from pagein.protocol.messages import IOC_READ_COMPLETE, PAGE_SIZE, Message, Open
from pagein.protocol.serving import DATA_MOST, SIZE_MOST, Serve, decode_answer, ioc_serve

T = TypeVar("T")

CALL_TIMEOUT: Final = 30.0
"""Seconds a system call on the device or an anonymous fd may take."""

_libc = ctypes.CDLL(None, use_errno=True)

_WRITERS = 4
_CALLERS = 3


class FileDevice(Device):
    """The device at a path, or on an fd that a keeper holds as well."""

    def __init__(self, fd: int, dirfd: int | None, *, timeout: float = CALL_TIMEOUT) -> None:
        """Take `fd` over, and `dirfd`, the directory of our device; None: it is the real one."""
        for number in (fd, dirfd):
            if number is not None:
                os.set_inheritable(number, False)
        self._fd = fd
        self._dirfd = dirfd
        self._timeout = timeout
        self.argument = memoryview(bytearray(SIZE_MOST))
        """Memory for the reading thread's SERVEs."""
        self._poller = Poller(fd, real=dirfd is None)
        self._calls = Workers(_CALLERS, "pagein-device")
        self._writes = Workers(_WRITERS, "pagein-write")
        self._closed = False

    @classmethod
    async def open(cls, path: str, *, timeout: float = CALL_TIMEOUT) -> FileDevice:
        """Open the device at `path`; OSError EBUSY if somebody holds it already."""
        opener = Workers(1, "pagein-open")
        try:
            fd, dirfd = await opener.run(lambda: _open_device(path), timeout, discard=_close_both)
        finally:
            opener.close()
        return cls(fd, dirfd, timeout=timeout)

    @classmethod
    def from_fd(
        cls, fd: int, dirfd: int | None = None, *, timeout: float = CALL_TIMEOUT
    ) -> FileDevice:
        """A device opened by somebody else; with `dirfd` it is one of our kernel half."""
        return cls(fd, dirfd, timeout=timeout)

    async def read(self) -> Message:
        """The next request; a thread of its own waits for them from the first call on."""
        self._poller.shortcut = self.shortcut
        return await self._poller.next()

    async def command(self, data: bytes) -> None:
        """Write one command (it must go in one write: facts cachefiles-kernel 2)."""
        await self._call(functools.partial(os.write, self._fd, data))

    async def open_anon(self, message: Open) -> AnonFd:
        """The fd from the message, or of `anon/<object_id>`."""
        if self._dirfd is None:
            self._poller.taken(message)
            return FileAnonFd(message.fd, self, real=True)
        path, flags = f"anon/{message.object_id}", os.O_WRONLY | os.O_CLOEXEC
        opened = functools.partial(os.open, path, flags, dir_fd=self._dirfd)
        fd = await self._call(opened, discard=os.close)
        return FileAnonFd(fd, self, real=False)

    async def close(self) -> None:
        """Stop reading and close the device; waits for the reading thread at most 2 s."""
        if self._closed:
            return
        self._closed = True
        unclaimed = await self._poller.close()
        fds = [*unclaimed, self._fd] if unclaimed is not None else []
        if self._dirfd is not None:
            fds.append(self._dirfd)
        for fd in fds:
            with contextlib.suppress(OSError):  # the number is free again, whatever it says
                await self._call(functools.partial(os.close, fd))
        self._calls.close()
        self._writes.close()

    @property
    def real(self) -> bool:
        """Whether it is the kernel's, not one of our kernel half."""
        return self._dirfd is None

    @property
    def closed(self) -> bool:
        """Whether calls are over."""
        return self._closed

    async def _call(self, call: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
        return await self._calls.run(call, self._timeout, discard=discard)

    async def anon_call(self, call: Callable[[], T], *, write: bool = False) -> T:
        """Run a system call of an anonymous fd; writes have threads of their own."""
        workers = self._writes if write else self._calls
        return await workers.run(call, self._timeout)


class FileAnonFd(AnonFd):
    """An anonymous fd of a `FileDevice`, open until no call uses it any more."""

    def __init__(self, fd: int, device: FileDevice, *, real: bool) -> None:
        os.set_inheritable(fd, False)
        self._fd = SharedFd(fd)
        self._device = device
        self._real = real

    async def pwrite(
        self, data: memoryview | bytes, offset: int, then: Callable[[], None] | None = None
    ) -> None:
        """Write all of `data`, in a thread; `data` must stay as it is even after a cancellation."""
        _check_pages(data, offset)
        whole = _aligned(data) if self._real else memoryview(data)

        def write(fd: int) -> None:
            _pwrite_all(fd, whole, offset)
            if then is not None:
                then()

        await self._use(write, write=True)

    async def cread(self, msg_id: int) -> None:
        """Complete a READ, by value or by pointer."""
        await self._use(lambda fd: self._complete(fd, msg_id))

    def complete(self, msg_id: int) -> None:
        """Complete a READ in the calling thread."""
        self._enter()
        try:
            self._complete(self._fd.number, msg_id)
        finally:
            self._fd.leave()

    def serve(self, data: memoryview, offset: int, msg_id: int) -> Served:
        """Write and complete; `data` is page-aligned memory."""
        _check_pages(data, offset)
        self._enter()
        try:
            if not self._real and len(data) <= DATA_MOST:
                return self._serve_at_once(Serve(msg_id, offset, data))
            _pwrite_all(self._fd.number, data, offset)
            if not self._real:
                return self._serve_at_once(Serve(msg_id, offset, b""))
            with contextlib.suppress(OSError):  # EINVAL: the reader was killed (8.3)
                self._complete(self._fd.number, msg_id)
        finally:
            self._fd.leave()
        return Served()

    def _serve_at_once(self, what: Serve) -> Served:
        argument = what.encode_into(self._device.argument)
        length = fcntl.ioctl(self._fd.number, ioc_serve(len(argument)), argument, True)
        return Served(*decode_answer(argument, length))

    async def lseek(self, offset: int, whence: int) -> int:
        """As lseek(2); of the real device it moves the cache file's position, not this fd's."""
        return await self._use(lambda fd: os.lseek(fd, offset, whence))

    def dup(self) -> AnonFd:
        """Another fd of the same description."""
        self._enter()
        try:
            return FileAnonFd(os.dup(self._fd.number), self._device, real=self._real)
        finally:
            self._fd.leave()

    def fileno(self) -> int:
        """The number of the fd."""
        return self._fd.number

    async def close(self) -> None:
        """Close the fd; while a call uses it, its end does that."""
        if self._fd.closed:
            return
        self._fd.shut()
        if self._device.closed:
            threading.Thread(target=self._fd.close, name="pagein-close", daemon=True).start()
        else:
            await self._device.anon_call(self._fd.close)

    async def _use(self, call: Callable[[int], T], *, write: bool = False) -> T:
        if self._device.closed:
            raise OSError(errno.EBADF, "the device is closed")
        self._enter()
        return await self._device.anon_call(lambda: self._calling(call), write=write)

    def _enter(self) -> None:
        if not self._fd.enter():
            raise OSError(errno.EBADF, "the anonymous fd is closed")

    def _calling(self, call: Callable[[int], T]) -> T:
        try:
            return call(self._fd.number)
        finally:
            self._fd.leave()

    def _complete(self, fd: int, msg_id: int) -> None:
        if self._real:
            _ioctl_by_value(fd, IOC_READ_COMPLETE, msg_id)
        else:
            fcntl.ioctl(fd, IOC_READ_COMPLETE, struct.pack("=I", msg_id))


def _ioctl_by_value(fd: int, request: int, value: int) -> None:
    """ioctl with the whole unsigned long: fcntl.ioctl has an int, and ids are 32 bits."""
    if _libc.ioctl(fd, ctypes.c_ulong(request), ctypes.c_ulong(value)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _open_device(path: str) -> tuple[int, int | None]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if stat.S_ISCHR(os.fstat(fd).st_mode):
            return fd, None
        directory = os.path.dirname(path) or "."
        return fd, os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except BaseException:
        os.close(fd)
        raise


def _close_both(fds: tuple[int, int | None]) -> None:
    for fd in fds:
        if fd is not None:
            os.close(fd)


def _check_pages(data: memoryview | bytes, offset: int) -> None:
    if offset % PAGE_SIZE or len(data) % PAGE_SIZE:
        # Linux 6.1 writes elsewhere and reports success (facts cachefiles-kernel 8.1).
        raise OSError(errno.EINVAL, f"{len(data)} bytes at {offset} are not whole pages")


def _pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data`, whole pages at a time; partial writes are possible (8.2)."""
    done = 0
    while done < len(data):
        try:
            count = os.pwrite(fd, data[done:], offset + done)
        except OSError as exc:
            if exc.errno == errno.ENOBUFS:
                cause = "no space left in the cache, or the object was withdrawn"
                raise OSError(errno.ENOBUFS, cause) from exc
            raise
        # A page that was written in part is written again: offsets must stay aligned.
        if not (whole := count // PAGE_SIZE * PAGE_SIZE):
            raise OSError(errno.EIO, f"only {count} of {len(data) - done} bytes were written")
        done += whole


def _aligned(data: memoryview | bytes) -> memoryview:
    """`data`, copied if need be to where O_DIRECT can take it (facts cachefiles-kernel 8.1)."""
    view = memoryview(data)
    if not view.readonly:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view)) if view else 0
        if address % PAGE_SIZE == 0:
            return view
    copy = mmap.mmap(-1, max(len(view), 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    aligned = memoryview(copy)
    aligned[: len(view)] = view
    return aligned[: len(view)]
