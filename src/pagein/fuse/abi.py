"""The FUSE kernel interface as values, as far as pagein speaks it. No I/O; import this module.

Requests are parsed by ``XxxIn.parse(body)`` (module ``requests``), replies are built by
``xxx_out(...)`` here, and every structure behind them is a `Layout` (module ``layout``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pagein.fuse import layout as wire
from pagein.fuse.constants import (
    GETATTR_FH,
    IOCTL_COMPAT,
    KERNEL_MINOR,
    KERNEL_VERSION,
    MIN_READ_BUFFER,
    POLL_SCHEDULE_NOTIFY,
    RELEASE_FLUSH,
    ROOT_ID,
    UNANSWERED,
    UNIQUE_RESEND,
    WRITE_CACHE,
    Fattr,
    Fopen,
    Init,
    Notify,
    Opcode,
)
from pagein.fuse.layout import IN_HEADER_SIZE, LAYOUTS, WRITE_DATA_OFFSET, AbiError, Buffer, Layout
from pagein.fuse.requests import (
    AccessIn,
    FallocateIn,
    FlushIn,
    FsyncIn,
    GetattrIn,
    GetxattrIn,
    InitIn,
    InterruptIn,
    IoctlIn,
    LseekIn,
    OpenIn,
    PollIn,
    ReadIn,
    ReleaseIn,
    Request,
    SetattrIn,
    WriteIn,
    forget,
    forgets,
    name,
)

__all__ = [
    "FOREVER",
    "GETATTR_FH",
    "IN_HEADER_SIZE",
    "IOCTL_COMPAT",
    "KERNEL_MINOR",
    "KERNEL_VERSION",
    "LAYOUTS",
    "MIN_READ_BUFFER",
    "OUT_HEADER_SIZE",
    "POLL_SCHEDULE_NOTIFY",
    "RELEASE_FLUSH",
    "ROOT_ID",
    "UNANSWERED",
    "UNIQUE_RESEND",
    "WRITE_CACHE",
    "WRITE_DATA_OFFSET",
    "AbiError",
    "AccessIn",
    "Attr",
    "Buffer",
    "DirEntry",
    "FallocateIn",
    "Fattr",
    "FlushIn",
    "Fopen",
    "FsyncIn",
    "GetattrIn",
    "GetxattrIn",
    "Init",
    "InitIn",
    "InterruptIn",
    "IoctlIn",
    "Layout",
    "LseekIn",
    "Notify",
    "Opcode",
    "OpenIn",
    "PollIn",
    "ReadIn",
    "ReleaseIn",
    "Request",
    "SetattrIn",
    "WriteIn",
    "attr_out",
    "dirents",
    "entry_out",
    "forget",
    "forgets",
    "getxattr_out",
    "init_out",
    "ioctl_out",
    "lseek_out",
    "name",
    "notify_poll_out",
    "open_out",
    "out_header",
    "poll_out",
    "statfs_out",
    "write_out",
]

OUT_HEADER_SIZE: Final = wire.OUT.size
FOREVER: Final = float(1 << 32)
"""A validity in seconds that outlives every mount."""


@dataclass(frozen=True, slots=True)
class Attr:
    """Attributes of an inode: ``size`` in bytes, ``mode`` with type bits, times in nanoseconds."""

    ino: int
    mode: int
    size: int = 0
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    blksize: int = 4096
    mtime_ns: int = 0

    def encode(self) -> bytes:
        """Return ``struct fuse_attr``; one time serves as atime, mtime and ctime."""
        seconds, nanos = divmod(self.mtime_ns, 1_000_000_000)
        blocks = -(-self.size // 512)  # st_blocks counts 512-byte units whatever blksize says
        times = (seconds, seconds, seconds, nanos, nanos, nanos)
        owner = (self.mode, self.nlink, self.uid, self.gid, self.rdev, self.blksize, 0)
        return wire.ATTR.pack(self.ino, self.size, blocks, *times, *owner)


def out_header(unique: int, error: int, payload: int) -> bytes:
    """Return the header of a reply: ``error`` is 0, -errno, or (with unique 0) a notify code.

    ``payload`` is the number of bytes that follow.
    """
    return wire.OUT.pack(OUT_HEADER_SIZE + payload, error, unique)


def init_out(
    *,
    minor: int,
    flags: int,
    max_readahead: int,
    max_write: int,
    max_pages: int,
    max_background: int,
    congestion_threshold: int,
) -> bytes:
    """Return the answer to INIT; sizes in bytes, ``max_pages`` in pages, the rest in requests."""
    low, high = flags & 0xFFFFFFFF, flags >> 32
    granularity = 1  # time_gran: timestamps are exact to one nanosecond
    return wire.INIT_OUT.pack(
        KERNEL_VERSION,
        minor,
        max_readahead,
        low,
        max_background,
        congestion_threshold,
        max_write,
        granularity,
        max_pages,
        0,
        high,
    )


def _validity(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, int((seconds - whole) * 1_000_000_000)


def entry_out(
    attr: Attr, *, entry_valid: float = 0.0, attr_valid: float = 0.0, generation: int = 0
) -> bytes:
    """Return the answer to LOOKUP; nodeid is ``attr.ino``, validities are in seconds."""
    entry_s, entry_ns = _validity(entry_valid)
    attr_s, attr_ns = _validity(attr_valid)
    head = wire.ENTRY_OUT.pack(attr.ino, generation, entry_s, attr_s, entry_ns, attr_ns)
    return head[: wire.ENTRY_OUT.offsets["attr"]] + attr.encode()


def attr_out(attr: Attr, *, valid: float = 0.0) -> bytes:
    """Return the answer to GETATTR and SETATTR; ``valid`` in seconds."""
    head = wire.ATTR_OUT.pack(*_validity(valid))
    return head[: wire.ATTR_OUT.offsets["attr"]] + attr.encode()


def open_out(fh: int, flags: int = 0) -> bytes:
    """Return the answer to OPEN and OPENDIR: our handle and `Fopen` flags."""
    return wire.OPEN_OUT.pack(fh, flags)


def write_out(size: int) -> bytes:
    """Return the answer to WRITE: how many bytes were taken."""
    return wire.WRITE_OUT.pack(size)


def poll_out(revents: int) -> bytes:
    """Return the answer to POLL: the mask of poll(2)."""
    return wire.POLL_OUT.pack(revents)


def notify_poll_out(kh: int) -> bytes:
    """Return the payload of Notify.POLL; ``kh`` is the one of the POLL request."""
    return wire.POLL_WAKEUP_OUT.pack(kh)


def lseek_out(offset: int) -> bytes:
    """Return the answer to LSEEK: the offset found, in bytes."""
    return wire.LSEEK_OUT.pack(offset)


def ioctl_out(result: int) -> bytes:
    """Return the answer to IOCTL: what ioctl(2) returns; data for the caller may follow."""
    return wire.IOCTL_OUT.pack(result)


def getxattr_out(size: int) -> bytes:
    """Return the answer to GETXATTR and LISTXATTR of size 0: the length of the value, in bytes."""
    return wire.GETXATTR_OUT.pack(size)


def statfs_out(
    *, blocks: int = 0, free: int = 0, files: int = 0, bsize: int = 4096, namelen: int = 255
) -> bytes:
    """Return the answer to STATFS; ``blocks`` and ``free`` in units of ``bsize`` bytes."""
    return wire.STATFS_OUT.pack(blocks, free, free, files, 0, bsize, namelen, bsize)


DirEntry = tuple[int, int, bytes]
"""(inode number, type bits of the mode, name)."""


def dirents(entries: Sequence[DirEntry], offset: int, size: int) -> bytes:
    """Return the answer to READDIR: the entries from ``offset`` on that fit ``size`` bytes."""
    out = bytearray()
    for index in range(offset, len(entries)):
        ino, mode, label = entries[index]
        # An entry's `off` is where to go on after it; its type is that of dirent (mode >> 12).
        entry = wire.DIRENT.pack(ino, index + 1, len(label), (mode & 0o170000) >> 12) + label
        entry += bytes(-len(entry) % 8)
        if len(out) + len(entry) > size:
            break
        out += entry
    return bytes(out)
