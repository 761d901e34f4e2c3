"""Answers the calls of a daemon in which our device is not the kernel's.

* open of /dev/cachefiles opens the device of our kernel half instead;
* read of an OPEN opens `anon/<object_id>`, and puts it into the daemon and into the message;
* CREAD gets its argument by pointer;
* mount(2) of EROFS by fsid is made on our kernel half;
* dup of the device stays among the numbers whose reads are seen.

Everything else of the device and its anonymous fds goes straight to the kernel half: poll, write,
lseek, close. One thread answers, since every call that it makes itself is short; mounts wait for
the daemon, and have a thread each.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import struct
import threading
from collections.abc import Callable
from typing import Any, Final

from pagein.execdaemon import caller, fsid
from pagein.execdaemon.seccomp import DUPS, EVERY, READS, Listener, Notification
from pagein.mounts import syscalls
from pagein.protocol import commands
from pagein.protocol.messages import (
    HEADER_SIZE,
    IOC_READ_COMPLETE,
    Message,
    Open,
    ProtocolError,
    Read,
    decode,
)

log = logging.getLogger("pagein.execdaemon")

AT_FDCWD: Final = -100
DEVICE: Final = b"/dev/cachefiles"
_MOST = 1 << 16
"""Bytes that a read of the device returns at most; messages have 543 (facts 4)."""
_IOVEC = struct.Struct("=QQ")
_IOV_MAX = 1024
_FD_AT = HEADER_SIZE + 8
"""Where in an OPEN its fd stands."""
# Of the flags of an open what makes sense for a device; O_CREAT and O_TRUNC do nothing there.
_OPEN_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_DIRECTORY | os.O_EXCL
_OTHER_MOUNTS = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_MOVE | syscalls.MS_PROPAGATION
_MAGIC, _MAGIC_MASK = 0xC0ED0000, 0xFFFF0000
"""What mount(2) wanted in its flags once, and mount(8) says still."""

MountBy = Callable[[dict[str, Any]], None]
"""Asks the kernel half for a mount; raises OSError."""


class Supervisor:
    """Answers one tree of processes, for one device."""

    def __init__(self, listener: Listener, directory: str, window: range, mount_by: MountBy):
        """`directory` has our device; its fds are given the numbers of `window` in the daemon."""
        self._listener = listener
        self._directory = os.path.realpath(directory)
        self._device = os.path.join(self._directory, "cachefiles")
        self._window = window
        self._mount_by = mount_by
        self._told = False
        handlers: dict[str, Callable[[Notification], None]] = {
            "open": lambda call: self._open(call, AT_FDCWD, call.args[0], call.args[1]),
            "openat": lambda call: self._open(call, *call.args[:3]),
            "openat2": self._openat2,
            "ioctl": self._cread,
            "fcntl": self._duplicate,
            "mount": self._mount,
        }
        handlers |= dict.fromkeys(READS, self._read) | dict.fromkeys(DUPS, self._duplicate)
        self._handlers = handlers

    def run(self) -> None:
        """Answer until nobody is left to be answered."""
        while (call := self._listener.receive()) is not None:
            self._answer(call, self._handlers[call.name])

    def _answer(self, call: Notification, handler: Callable[[Notification], None]) -> None:
        try:
            handler(call)
        except OSError as problem:
            self._listener.fail(call, problem.errno or errno.EIO)
        except Exception:
            log.exception("exec-daemon: %s could not be answered", call.name)
            self._listener.fail(call, errno.EIO)

    # ---- the device --------------------------------------------------------------------------

    def _openat2(self, call: Notification) -> None:
        directory, path, how, _, *_ = call.args
        try:
            (flags,) = struct.unpack("=Q", caller.read_memory(call.tid, how, 8))
        except (OSError, struct.error):
            self._listener.go_on(call)
            return
        self._open(call, directory, path, flags)

    def _open(self, call: Notification, directory: int, path: int, flags: int) -> None:
        if flags & os.O_PATH or not self._is_device(call.tid, directory, path):
            self._listener.go_on(call)
            return
        caller.check_may_open(call.tid)
        fd = os.open(self._device, flags & _OPEN_FLAGS | os.O_CLOEXEC)
        try:
            self._give(call, fd, 0, cloexec=bool(flags & os.O_CLOEXEC))
        finally:
            os.close(fd)

    def _is_device(self, tid: int, directory: int, path: int) -> bool:
        try:
            name = caller.read_string(tid, path)
            return name.endswith(b"cachefiles") and caller.absolute(tid, directory, name) == DEVICE
        except OSError:
            return False  # the kernel will say what is wrong with it

    def _give(self, call: Notification, fd: int, least: int, *, cloexec: bool) -> None:
        """Return from the call with a number of the window, at or above `least`."""
        at = -1
        if self._window != EVERY:
            free = (n for n in self._window if n >= least and not caller.uses(call.tid, n))
            at = next(free, -1)
            if at < 0:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        try:
            self._listener.add_fd(call, fd, at=at, cloexec=cloexec, finish=True)
        except OSError as problem:
            # EBADF: the daemon has lowered its limit below the window since.
            raise OSError(
                errno.EMFILE if problem.errno == errno.EBADF else problem.errno, ""
            ) from None

    def _duplicate(self, call: Notification) -> None:
        fd = call.args[0]
        with self._ours(call, fd) as taken:
            if taken is None or not self._is_the_device(taken):
                self._listener.go_on(call)
            elif call.name in ("dup", "fcntl"):
                least = call.args[2] if call.name == "fcntl" else 0
                cloexec = call.name == "fcntl" and call.args[1] == fcntl.F_DUPFD_CLOEXEC
                self._give(call, taken, least, cloexec=cloexec)
            else:
                if call.args[1] not in self._window and not self._told:
                    self._told = True
                    text = "the device was duplicated to fd %d, of which reads are not seen"
                    log.warning(f"exec-daemon: {text}; use --every-read", call.args[1])
                self._listener.go_on(call)

    @contextlib.contextmanager
    def _ours(self, call: Notification, fd: int) -> Any:
        """The caller's `fd` as one of ours, if it is of our device; else None."""
        try:
            taken = caller.take_fd(call.tid, ctypes.c_int32(fd).value)
        except OSError:
            yield None  # the kernel will say that there is none
            return
        try:
            # By its name: fstat would ask the kernel half.
            is_ours = os.readlink(f"/proc/self/fd/{taken}").startswith(self._directory + "/")
            yield taken if is_ours else None
        finally:
            os.close(taken)

    def _is_the_device(self, fd: int) -> bool:
        return os.readlink(f"/proc/self/fd/{fd}") == self._device

    # ---- requests ----------------------------------------------------------------------------

    def _read(self, call: Notification) -> None:
        with self._ours(call, call.args[0]) as taken:
            if taken is None:
                self._listener.go_on(call)
                return
            count = 0
            for address, length in self._buffers(call):
                try:
                    data = os.read(taken, min(length, _MOST))
                    if data:
                        self._deliver(call, taken, address, data)
                except OSError:
                    if not count:
                        raise
                    break
                count += len(data)
                if len(data) < length:
                    break
            self._listener.answer(call, count)

    def _buffers(self, call: Notification) -> list[tuple[int, int]]:
        """Addresses and lengths; the device is read into each by itself, like a terminal."""
        _, address, length, *_ = call.args
        if not call.name.endswith(("v", "v2")):
            return [(address, length)]
        if length > _IOV_MAX:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        table = caller.read_memory(call.tid, address, length * _IOVEC.size)
        return [(base, size) for base, size in _IOVEC.iter_unpack(table) if size]

    def _deliver(self, call: Notification, device: int, address: int, data: bytes) -> None:
        """Write what was read into the daemon, an OPEN with an fd of it.

        What cannot be delivered is failed, as the kernel does (facts 4.4).
        """
        try:
            message = decode(data)
        except ProtocolError:  # the state line of the original mode
            caller.write_memory(call.tid, address, data)
            return
        try:
            caller.write_memory(call.tid, address, data)
            if isinstance(message, Open):
                number = self._anonymous(call, message.object_id)
                caller.write_memory(call.tid, address + _FD_AT, struct.pack("=I", number))
        except OSError as problem:
            with contextlib.suppress(OSError):
                self._lose(device, message, problem.errno or errno.EIO)
            raise

    def _anonymous(self, call: Notification, object_id: int) -> int:
        """Open an object's anonymous file in the daemon: not close-on-exec (facts 8.1)."""
        fd = os.open(f"{self._directory}/anon/{object_id}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            return self._listener.add_fd(call, fd, cloexec=False)
        finally:
            os.close(fd)

    def _lose(self, device: int, message: Message, number: int) -> None:
        if isinstance(message, Open):
            os.write(device, commands.copen(message.msg_id, -number))
        elif isinstance(message, Read):
            path = f"{self._directory}/anon/{message.object_id}"
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                _complete(fd, message.msg_id)
            finally:
                os.close(fd)

    def _cread(self, call: Notification) -> None:
        with self._ours(call, call.args[0]) as taken:
            if taken is None:
                self._listener.go_on(call)
            else:
                _complete(taken, call.args[2] & 0xFFFFFFFF)
                self._listener.answer(call, 0)

    # ---- mounts ------------------------------------------------------------------------------

    def _mount(self, call: Notification) -> None:
        found = self._mount_wanted(call)
        if found is None:
            self._listener.go_on(call)
            return
        if not caller.may_administer(call.tid):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        wanted, target = found

        def make(call: Notification) -> None:
            try:
                self._mount_by(wanted.question(target))
            except OSError as problem:
                log.warning("exec-daemon: mount: %s", problem.strerror)
                raise
            self._listener.answer(call, 0)

        threading.Thread(target=self._answer, args=(call, make), daemon=True).start()

    def _mount_wanted(self, call: Notification) -> tuple[fsid.FsidMount, str] | None:
        _, target, kind, flags, data, _ = call.args
        if flags & _MAGIC_MASK == _MAGIC:
            flags &= ~_MAGIC_MASK
        if flags & _OTHER_MOUNTS or not kind or not data:
            return None
        tid = call.tid
        try:
            if caller.read_string(tid, kind) != b"erofs" or not caller.same_mounts(tid):
                return None
            options = os.fsdecode(caller.read_string(tid, data))
            where = caller.absolute(tid, AT_FDCWD, caller.read_string(tid, target))
        except OSError:
            return None
        wanted = fsid.parse_options(options)
        return (wanted, os.fsdecode(os.path.realpath(where))) if wanted else None


def _complete(fd: int, msg_id: int) -> None:
    fcntl.ioctl(fd, IOC_READ_COMPLETE, struct.pack("=I", msg_id))
