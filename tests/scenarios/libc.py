"""System calls as Python does not make them: bad addresses, and no look at the arguments."""

from __future__ import annotations

import ctypes
import mmap as memory
import os
from typing import Final

PAGE: Final = 4096
_NOWHERE: Final = ctypes.c_void_p(8)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.read.restype = _libc.write.restype = ctypes.c_ssize_t


def _check(failed: bool) -> None:
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def read_to_nowhere(fd: int, size: int) -> None:
    """read(2) to a bad address."""
    _check(_libc.read(fd, _NOWHERE, ctypes.c_size_t(size)) < 0)


def write_from_nowhere(fd: int, size: int) -> None:
    """write(2) from a bad address."""
    _check(_libc.write(fd, _NOWHERE, ctypes.c_size_t(size)) < 0)


def ioctl(fd: int, request: int, value: int) -> None:
    """ioctl(2) whose argument is a number: the whole word, where fcntl.ioctl has an int."""
    _check(_libc.ioctl(fd, ctypes.c_ulong(request), ctypes.c_ulong(value)) < 0)


def map_page(fd: int, protection: int) -> None:
    """mmap(2) of one page, shared, and unmapped at once; mmap.mmap looks at the size first."""
    found = _libc.mmap(None, PAGE, protection, memory.MAP_SHARED, fd, 0)
    _check(found == ctypes.c_void_p(-1).value)
    _libc.munmap(found, PAGE)
