"""Looking into a container's root directory without being led out of it.

A path of an image may be a symbolic link to anywhere; openat2(2) with RESOLVE_IN_ROOT (Linux 5.6)
takes the image's root for `/`, as the container will. This reads a mount of pagein, which the
command line may do and neither half ever does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import Final

_SYS_OPENAT2: Final = 437
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_IN_ROOT: Final = 0x10
_OPEN_HOW: Final = struct.Struct("=QQQ")  # flags, mode, resolve

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

MAX_FILE: Final = 4 << 20
"""Bytes of /etc/passwd or /etc/group that are looked at; more is refused."""


def open_in(root: str, path: str, flags: int = os.O_RDONLY) -> int:
    """Open `path` as a process would whose root directory is `root`. Raises OSError."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _OPEN_HOW.pack(
            flags | os.O_CLOEXEC | os.O_NONBLOCK, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS
        )
        fd: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), directory, os.fsencode(path), how, len(how)
        )
    finally:
        os.close(directory)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def exists(root: str, path: str) -> bool:
    """Whether there is such a path below `root`."""
    try:
        os.close(open_in(root, path, os.O_PATH))
    except OSError:
        return False
    return True


def lines_of(root: str, path: str) -> list[str]:
    """The lines of a text file below `root`, none when it is not there.

    Raises OSError: EFBIG for more than `MAX_FILE` bytes, EIO when it could not be fetched.
    """
    try:
        fd = open_in(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise OSError(errno.EFBIG, f"more than {MAX_FILE} bytes", path)
    return data.decode(errors="surrogateescape").splitlines()
