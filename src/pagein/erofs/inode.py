"""An inode as it lies in an image."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from pagein.erofs.errors import ErofsError
from pagein.erofs.format import (
    COMPACT,
    EXTENDED,
    EXTENDED_BIT,
    FILE_TYPES,
    FORMAT_KNOWN,
    LAYOUT_CHUNKED,
    LAYOUT_COMPRESSED_COMPACT,
    LAYOUT_COMPRESSED_FULL,
    LAYOUT_MASK,
    LAYOUT_SHIFT,
    NANOSECONDS,
    decode_device,
    xattr_size,
)

INODE_SIZE = EXTENDED.size
"""Bytes that an inode takes at most, before what follows it."""


@dataclass(slots=True, eq=False)
class Inode:
    """What stat(2) would say, and where the rest lies. Bytes, and nanoseconds since the epoch."""

    path: bytes
    """The one it was found by, from the root; for errors. The same inode may have others."""
    nid: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int
    layout: int
    union: int
    """i_u: block address, or chunk format."""
    after: int
    """Position of what follows: extended attributes, and then indexes or the tail."""
    xattrs: int
    """Bytes of its extended attributes."""
    extended: bool
    """Whether it has the larger form."""

    @property
    def compressed(self) -> bool:
        """Whether its content is."""
        return self.layout in {LAYOUT_COMPRESSED_FULL, LAYOUT_COMPRESSED_COMPACT}

    @property
    def key(self) -> object:
        """The same for every name of the same file."""
        return self.nid

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


def parse(path: bytes, nid: int, position: int, data: bytes, build_time_ns: int) -> Inode:
    """The inode in `data`, which lies at `position`; a compact one has the time of the image.

    Raises ErofsError when it cannot be one.
    """
    if len(data) < COMPACT.size:
        raise ErofsError.at(path, f"inode {nid} is cut off")
    form = int.from_bytes(data[:2], "little")
    layout = form >> LAYOUT_SHIFT & LAYOUT_MASK
    if form & ~FORMAT_KNOWN or layout > LAYOUT_CHUNKED:
        raise ErofsError.at(path, f"inode {nid} has the unknown format {form:#x}", errno.EOPNOTSUPP)
    if form & EXTENDED_BIT:
        if len(data) < EXTENDED.size:
            raise ErofsError.at(path, f"inode {nid} is cut off")
        _, icount, mode, _, size, union, _, uid, gid, seconds, rest, links = EXTENDED.unpack(
            data[: EXTENDED.size]
        )
        time, length = seconds * NANOSECONDS + rest, EXTENDED.size
    else:
        _, icount, mode, links, size, _, union, _, uid, gid, _ = COMPACT.unpack(
            data[: COMPACT.size]
        )
        time, length = build_time_ns, COMPACT.size
    kind = stat.S_IFMT(mode)
    if kind not in FILE_TYPES or size >= 1 << 63:
        raise ErofsError.at(path, f"inode {nid} has mode {mode:#o} and {size} bytes")
    device = kind in {stat.S_IFCHR, stat.S_IFBLK}
    return Inode(
        path=path,
        nid=nid,
        mode=mode,
        nlink=links,
        uid=uid,
        gid=gid,
        size=size,
        mtime_ns=time,
        rdev=os.makedev(*decode_device(union)) if device else 0,
        layout=layout,
        union=union,
        after=position + length,
        xattrs=xattr_size(icount),
        extended=bool(form & EXTENDED_BIT),
    )
