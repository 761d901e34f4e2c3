"""Numbers of ``<linux/fuse.h>``: versions, opcodes, flags."""

import enum
from typing import Final

KERNEL_VERSION: Final = 7
KERNEL_MINOR: Final = 40
"""The newest minor version whose structures are used here: 7.40 brought FUSE_NOTIFY_RESEND."""
ROOT_ID: Final = 1
MIN_READ_BUFFER: Final = 8192
UNIQUE_RESEND: Final = 1 << 63
"""Bit of `Request.unique` that marks a request sent again; the reply must carry it too."""


class Opcode(enum.IntEnum):
    """What the kernel asks for (``enum fuse_opcode``)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51


UNANSWERED: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
"""Requests that take no reply (INTERRUPT takes one only to say EAGAIN)."""


class Init(enum.IntFlag):
    """Capabilities of INIT; bits from 32 on travel in ``flags2`` and need INIT_EXT."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    INIT_EXT = 1 << 30
    HAS_RESEND = 1 << 39


class Fopen(enum.IntFlag):
    """``open_flags`` of the reply to OPEN."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6


class Fattr(enum.IntFlag):
    """``valid`` of SETATTR: what the caller wants changed."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10


class Notify(enum.IntEnum):
    """Messages that the server sends unasked."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7


GETATTR_FH: Final = 1 << 0
POLL_SCHEDULE_NOTIFY: Final = 1 << 0
RELEASE_FLUSH: Final = 1 << 0
WRITE_CACHE: Final = 1 << 0
IOCTL_COMPAT: Final = 1 << 0
