"""Mode, owner and time of inodes changed in place, as a list of what to write where.

For an image that is one of several layers: see `images.implied`.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable

from pagein.erofs.format import (
    BLOCK_BITS,
    COMPACT,
    COMPAT_SB_CHKSUM,
    EXTENDED,
    NANOSECONDS,
    SUPER_OFFSET,
    SUPERBLOCK,
    crc32c,
)
from pagein.erofs.inode import Inode
from pagein.erofs.superblock import Read

Patch = tuple[int, bytes]
"""An offset in bytes, and the bytes that stand there instead."""

_MODE = 4
_CHECKSUM = SUPER_OFFSET + 4
_OWNERS, _TIME = 24, 32  # of an extended inode
_SHORT_OWNERS = 24  # of a compact one


def change(read: Read, changes: Iterable[tuple[Inode, Inode]]) -> list[Patch]:
    """What makes each first inode, of the image that `read` reads, look like the second.

    A compact inode has no time of its own, and owners up to 65,535: what it cannot hold stays.
    Of images of 4 KiB blocks, as our writer makes them. Raises what `read` raises.
    """
    patches = [patch for of, like in changes for patch in _inode(of, like)]
    return patches + _checksum(read, patches) if patches else []


def apply(patches: Iterable[Patch], offset: int, data: bytes) -> bytes:
    """`data`, read at `offset`, as the patches have it."""
    changed = bytearray(data)
    for at, new in patches:
        first, last = max(at, offset), min(at + len(new), offset + len(data))
        if first < last:
            changed[first - offset : last - offset] = new[first - at : last - at]
    return bytes(changed)


def _inode(of: Inode, like: Inode) -> list[Patch]:
    extended = of.extended
    begin = of.after - (EXTENDED.size if extended else COMPACT.size)
    mode = stat.S_IFMT(of.mode) | stat.S_IMODE(like.mode)
    patches = [(begin + _MODE, struct.pack("<H", mode))]
    if extended:
        patches.append((begin + _OWNERS, struct.pack("<II", like.uid, like.gid)))
        seconds, rest = divmod(like.mtime_ns, NANOSECONDS)
        patches.append((begin + _TIME, struct.pack("<qI", seconds, rest)))
    elif max(like.uid, like.gid) <= 0xFFFF:
        patches.append((begin + _SHORT_OWNERS, struct.pack("<HH", like.uid, like.gid)))
    return patches


def _checksum(read: Read, patches: Iterable[Patch]) -> list[Patch]:
    """That of the superblock covers its whole block, inodes in it too."""
    fields = SUPERBLOCK.unpack(read(SUPER_OFFSET, SUPERBLOCK.size))
    if not fields[2] & COMPAT_SB_CHKSUM:
        return []
    block = bytearray(apply(patches, 0, read(0, 1 << BLOCK_BITS)))
    block[_CHECKSUM : _CHECKSUM + 4] = bytes(4)
    return [(_CHECKSUM, struct.pack("<I", crc32c(block[SUPER_OFFSET:])))]
