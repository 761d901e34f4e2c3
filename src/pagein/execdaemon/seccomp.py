"""Seccomp user notifications (seccomp_unotify(2)): the filter, and the supervisor's end of it.

A filter sees numbers only, no memory. So every open is notified, since the path cannot be seen, and
most are told to go on; of the calls on fds only those whose fd lies in a window of numbers, in
which the supervisor puts the device. All others run without a detour.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pagein.protocol.messages import IOC_READ_COMPLETE

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Architecture:
    """Numbers of <asm/unistd.h>, and the AUDIT_ARCH_ value that filters see."""

    audit: int
    calls: dict[str, int]


_COMMON = {"openat2": 437}
ARCHITECTURES: Final = {
    "x86_64": Architecture(
        0xC000003E,
        {
            "read": 0,
            "open": 2,
            "ioctl": 16,
            "pread64": 17,
            "readv": 19,
            "dup": 32,
            "dup2": 33,
            "fcntl": 72,
            "mount": 165,
            "openat": 257,
            "dup3": 292,
            "preadv": 295,
            "seccomp": 317,
            "preadv2": 327,
            **_COMMON,
        },
    ),
    "aarch64": Architecture(
        0xC00000B7,
        {
            "dup": 23,
            "dup3": 24,
            "fcntl": 25,
            "ioctl": 29,
            "mount": 40,
            "openat": 56,
            "read": 63,
            "readv": 65,
            "pread64": 67,
            "preadv": 69,
            "seccomp": 277,
            "preadv2": 286,
            **_COMMON,
        },
    ),
}

EVERY: Final = range(1 << 31)
"""The window that has every fd."""
READS: Final = frozenset({"read", "readv", "pread64", "preadv", "preadv2"})
DUPS: Final = frozenset({"dup", "dup2", "dup3"})
_ALWAYS: Final = frozenset({"open", "openat", "openat2", "mount"})
_F_DUPFDS: Final = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC)

# ---- the filter: classic BPF over struct seccomp_data --------------------------------------------

_LD, _JEQ, _JGE, _RET = 0x20, 0x15, 0x35, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, k."""


def program(machine: Architecture, window: range) -> list[Instruction]:
    """The filter; calls that read or duplicate an fd are notified if it lies in `window`."""
    in_window: list[Instruction] = [
        (_LD, 0, 0, _ARGS),
        (_JGE, 0, 2, window.start),
        (_JGE, 1, 0, window.stop),
        (_RET, 0, 0, _NOTIFY),
        (_RET, 0, 0, _ALLOW),
    ]
    cread: list[Instruction] = [
        (_LD, 0, 0, _ARGS + 8),
        (_JEQ, 0, 1, IOC_READ_COMPLETE),
        (_RET, 0, 0, _NOTIFY),
        (_RET, 0, 0, _ALLOW),
    ]
    duplicating: list[Instruction] = [
        (_LD, 0, 0, _ARGS + 8),
        (_JEQ, 2, 0, _F_DUPFDS[0]),
        (_JEQ, 1, 0, _F_DUPFDS[1]),
        (_RET, 0, 0, _ALLOW),
        *in_window,
    ]
    what = dict.fromkeys(sorted(READS), in_window) | {"ioctl": cread}
    if window != EVERY:
        what |= dict.fromkeys(sorted(DUPS), in_window) | {"fcntl": duplicating}
    what |= {name: [(_RET, 0, 0, _NOTIFY)] for name in sorted(_ALWAYS)}
    filter_: list[Instruction] = [
        (_LD, 0, 0, _ARCH),
        (_JEQ, 1, 0, machine.audit),
        (_RET, 0, 0, _ALLOW),
        (_LD, 0, 0, _NR),
    ]
    for name, body in what.items():
        if name in machine.calls:
            filter_ += [(_JEQ, 0, len(body), machine.calls[name]), *body]
    return [*filter_, (_RET, 0, 0, _ALLOW)]


_SET_MODE_FILTER, _NEW_LISTENER, _WAIT_KILLABLE_RECV = 1, 1 << 3, 1 << 5


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def this_machine() -> Architecture:
    """Raises OSError ENOTSUP for a processor whose system calls are not known here."""
    machine = ARCHITECTURES.get(platform.machine())
    if machine is None:
        known = " and ".join(sorted(ARCHITECTURES))
        raise OSError(errno.ENOTSUP, f"exec-daemon is for {known}, not for {platform.machine()}")
    return machine


def install(machine: Architecture, filter_: Sequence[Instruction]) -> int:
    """Put the calling thread, and all that it starts, under `filter_`; the supervisor's fd.

    Needs CAP_SYS_ADMIN, and so no no_new_privs, which would take set-uid bits from the command.
    Once received, a call is interrupted by fatal signals only (Linux 5.19): what has been read for
    a daemon must not be lost with EINTR. Raises OSError.
    """
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in filter_)
    flags = _NEW_LISTENER | _WAIT_KILLABLE_RECV
    made = _Program(len(filter_), code)
    fd: int = _libc.syscall(
        ctypes.c_long(machine.calls["seccomp"]),
        ctypes.c_long(_SET_MODE_FILTER),
        ctypes.c_long(flags),
        ctypes.byref(made),
    )
    if fd < 0:
        number = ctypes.get_errno()
        text = os.strerror(number)
        if number == errno.EINVAL:
            text = "this kernel's seccomp cannot do it (it needs Linux 5.19)"
        elif number == errno.EBUSY:
            text = "this process is under another supervisor of this kind already"
        raise OSError(number, text)
    return fd


# ---- the supervisor's end ------------------------------------------------------------------------

_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, nr, arch, ip, args
_RESPONSE: Final = struct.Struct("=QqiI")  # id, val, error, flags
_ADDFD: Final = struct.Struct("=QIIII")  # id, flags, srcfd, newfd, newfd_flags
_RECV, _SEND, _IS_VALID, _ADD = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103
_SET_FLAGS, _SYNC_WAKE_UP = 0x40082104, 1
_CONTINUE = 1
_ADDFD_SETFD, _ADDFD_SEND = 1, 2


@dataclass(frozen=True, slots=True)
class Notification:
    """A system call that waits for its answer."""

    id: int
    tid: int
    name: str
    args: tuple[int, ...]


class Listener:
    """The fd on which the calls of everybody under the filter arrive; owns it."""

    def __init__(self, fd: int, machine: Architecture) -> None:
        os.set_inheritable(fd, False)
        self._fd = fd
        self._names = {number: name for name, number in machine.calls.items()}
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        with contextlib.suppress(OSError):  # Linux 6.6: who waits and who answers, on one CPU
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)

    def close(self) -> None:
        """From here on notified calls fail ENOSYS."""
        os.close(self._fd)

    def receive(self) -> Notification | None:
        """The next call; None when nobody is under the filter any more."""
        while True:
            # RECV alone would wait for ever when the last one has gone.
            ((_, events),) = self._poll.poll()
            if not events & select.POLLIN:
                return None
            buffer = bytearray(_NOTIFICATION.size)
            try:
                fcntl.ioctl(self._fd, _RECV, buffer)
            except OSError as problem:
                if problem.errno in (errno.ENOENT, errno.EINTR):  # killed meanwhile
                    continue
                raise
            id_, tid, _, number, _, _, *args = _NOTIFICATION.unpack(buffer)
            return Notification(id_, tid, self._names[number], tuple(args))

    def go_on(self, call: Notification) -> None:
        """Have the kernel do the call as if there were no filter."""
        self._send(_RESPONSE.pack(call.id, 0, 0, _CONTINUE))

    def answer(self, call: Notification, value: int) -> None:
        """Return `value` from the call."""
        self._send(_RESPONSE.pack(call.id, value, 0, 0))

    def fail(self, call: Notification, number: int) -> None:
        """Fail the call with an errno."""
        self._send(_RESPONSE.pack(call.id, 0, -number, 0))

    def valid(self, call: Notification) -> bool:
        """Whether its caller still waits: before anything is done to the process of that id."""
        try:
            fcntl.ioctl(self._fd, _IS_VALID, struct.pack("=Q", call.id))
        except OSError:
            return False
        return True

    def add_fd(
        self, call: Notification, fd: int, *, at: int = -1, cloexec: bool, finish: bool = False
    ) -> int:
        """Give the caller an fd of the same open file, its number `at` or the lowest; the number.

        `finish`: the call returns that number at once. Raises OSError: EMFILE, EBADF for an `at`
        that its limits do not allow, ENOENT when it was killed.
        """
        flags = (_ADDFD_SETFD if at >= 0 else 0) | (_ADDFD_SEND if finish else 0)
        number = max(at, 0)
        request = _ADDFD.pack(call.id, flags, fd, number, os.O_CLOEXEC if cloexec else 0)
        # ioctl() returns the number only if it may write to what it is given.
        added: int = fcntl.ioctl(self._fd, _ADD, bytearray(request))
        return added

    def _send(self, response: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):  # its caller was killed
            fcntl.ioctl(self._fd, _SEND, response)
