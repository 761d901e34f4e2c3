"""Into the process whose system call is under supervision: its memory, its fds, who it is."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from typing import Final

PATH_MAX: Final = 4096
"""Bytes of a path with its NUL."""
_PAGE: Final = 4096
_CAP_SYS_ADMIN: Final = 21
_PIDFD_GETFD: Final = 438
"""Number of the system call, the same on every architecture."""
_PIDFD_THREAD: Final = os.O_EXCL

_libc = ctypes.CDLL(None, use_errno=True)


class _Range(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _failed() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def read_memory(tid: int, address: int, length: int) -> bytes:
    """`length` bytes at `address`, or fewer where memory ends. Raises OSError EFAULT."""
    buffer = ctypes.create_string_buffer(length)
    ours = _Range(ctypes.addressof(buffer), length)
    theirs = _Range(address, length)
    count: int = _libc.process_vm_readv(
        tid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, ctypes.c_ulong(0)
    )
    if count < 0:
        raise _failed()
    return buffer.raw[:count]


def read_string(tid: int, address: int, most: int = PATH_MAX) -> bytes:
    """The C string at `address`. Raises OSError: EFAULT, ENAMETOOLONG without an end."""
    found = bytearray()
    while len(found) < most:
        # Not beyond a page, since the next one need not be there.
        step = min(_PAGE - (address + len(found)) % _PAGE, most - len(found))
        piece = read_memory(tid, address + len(found), step)
        end = piece.find(0)
        if end >= 0:
            return bytes(found + piece[:end])
        found += piece
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def write_memory(tid: int, address: int, data: bytes) -> None:
    """Write all of `data` at `address`. Raises OSError EFAULT."""
    ours = _Range(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value, len(data))
    theirs = _Range(address, len(data))
    count: int = _libc.process_vm_writev(
        tid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, ctypes.c_ulong(0)
    )
    if count < 0:
        raise _failed()
    if count != len(data):
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def take_fd(tid: int, fd: int) -> int:
    """An fd of ours of the same open file; the caller closes it. Raises OSError EBADF."""
    process = _pidfd(tid)
    try:
        taken: int = _libc.syscall(
            ctypes.c_long(_PIDFD_GETFD),
            ctypes.c_int(process),
            ctypes.c_int(fd),
            ctypes.c_uint(0),
        )
        if taken < 0:
            raise _failed()
        return taken  # it is close-on-exec already
    finally:
        os.close(process)


def _pidfd(tid: int) -> int:
    with contextlib.suppress(OSError):  # before Linux 6.9 of a process only, not of a thread
        return os.pidfd_open(tid, _PIDFD_THREAD)
    return os.pidfd_open(process_of(tid))


def process_of(tid: int) -> int:
    """The process that a thread is of."""
    return int(_status(tid, b"Tgid"))


def may_administer(tid: int) -> bool:
    """Whether it has CAP_SYS_ADMIN."""
    return bool(int(_status(tid, b"CapEff"), 16) >> _CAP_SYS_ADMIN & 1)


def check_may_open(tid: int) -> None:
    """Raise OSError as an open of /dev/cachefiles does, a file of root's with mode 0600 (facts 1).

    EACCES by that, EPERM without CAP_SYS_ADMIN.
    """
    if not may_administer(tid):
        *_, user = _status(tid, b"Uid").split()
        number = errno.EACCES if int(user) else errno.EPERM
        raise OSError(number, os.strerror(number))


def _status(tid: int, field: bytes) -> bytes:
    with open(f"/proc/{tid}/status", "rb") as file:
        for line in file:
            name, _, value = line.partition(b":")
            if name == field:
                return value.strip()
    raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))


def uses(tid: int, fd: int) -> bool:
    """Whether the number `fd` is an open file of it."""
    return os.path.lexists(f"/proc/{tid}/fd/{fd}")


def same_mounts(tid: int) -> bool:
    """Whether its mount namespace and root directory are ours."""
    return all(
        os.readlink(f"/proc/{tid}/{what}") == os.readlink(f"/proc/self/{what}")
        for what in ("ns/mnt", "root")
    )


def absolute(tid: int, directory: int, path: bytes) -> bytes:
    """A path of it without `.` and `..`; links on the way are not followed. Raises OSError."""
    if not path.startswith(b"/"):
        at_cwd = ctypes.c_int32(directory).value == -100  # AT_FDCWD
        base = b"cwd" if at_cwd else b"fd/%d" % directory
        path = os.readlink(b"/proc/%d/%s" % (tid, base)) + b"/" + path
    return os.path.normpath(path)
