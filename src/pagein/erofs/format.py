"""The on-disk format as numbers: ``fs/erofs/erofs_fs.h`` and ``erofs.rst`` of Linux 6.12.

All of it is little-endian. An inode is named by its *nid*: 32-byte slots from the first block of
the metadata area.
"""

from __future__ import annotations

import stat
import struct
from typing import Final

MAGIC: Final = 0xE0F5E1E2
SUPER_OFFSET: Final = 1024
"""Where the superblock begins, in bytes."""
SLOT_SIZE: Final = 32
"""Bytes of an inode slot, which nids count."""

# What our writer makes; the reader takes other block sizes too.
BLOCK_BITS: Final = 12
BLOCK_SIZE: Final = 1 << BLOCK_BITS

COMPAT_SB_CHKSUM: Final = 0x1
COMPAT_MTIME: Final = 0x2
INCOMPAT_CHUNKED_FILE: Final = 0x4
INCOMPAT_DEVICE_TABLE: Final = 0x8
INCOMPAT_KNOWN: Final = 0x7F
"""Those of Linux 6.12; later ones (48-bit addresses, metabox) change the structures below."""

# magic, checksum, compat, blkszbits, sb_extslots, root_nid, inos, build_time, build_time_nsec,
# blocks, meta_blkaddr, xattr_blkaddr, uuid, volume_name, incompat, compression, extra_devices,
# devt_slotoff, dirblkbits, xattr_prefix_count, xattr_prefix_start, packed_nid, filter_reserved
SUPERBLOCK: Final = struct.Struct("<IIIBBHQqIIII16s16sIHHHBBIQB23x")
DEVICE: Final = struct.Struct("<64sII56x")  # tag, blocks, mapped_blkaddr

LAYOUT_PLAIN: Final = 0
LAYOUT_COMPRESSED_FULL: Final = 1
LAYOUT_INLINE: Final = 2
LAYOUT_COMPRESSED_COMPACT: Final = 3
LAYOUT_CHUNKED: Final = 4

# i_format, i_xattr_icount, i_mode, i_nlink, i_size, -, i_u, i_ino, i_uid, i_gid, -
COMPACT: Final = struct.Struct("<HHHHIIIIHHI")
# i_format, i_xattr_icount, i_mode, -, i_size, i_u, i_ino, i_uid, i_gid, i_mtime, nsec, i_nlink
EXTENDED: Final = struct.Struct("<HHHHQIIIIqII16x")
EXTENDED_BIT: Final = 0x1
LAYOUT_SHIFT: Final = 1
LAYOUT_MASK: Final = 0x7
FORMAT_KNOWN: Final = 0xF

CHUNK_BITS_MASK: Final = 0x1F
CHUNK_INDEXES: Final = 0x20
CHUNK_INDEX: Final = struct.Struct("<HHI")  # advise, device_id, blkaddr
NULL_ADDRESS: Final = 0xFFFFFFFF
"""The block address of a hole."""

DIRENT: Final = struct.Struct("<QHBx")  # nid, nameoff, file_type
NAME_MAX: Final = 255

XATTR_HEADER: Final = struct.Struct("<IB7x")  # h_name_filter, h_shared_count
XATTR_ENTRY: Final = struct.Struct("<BBH")  # e_name_len, e_name_index, e_value_size
XATTR_PREFIXES: Final = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    5: b"lustre.",
    6: b"security.",
}

FILE_TYPES: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
"""File type of a directory entry, by the type bits of st_mode."""

NANOSECONDS: Final = 1_000_000_000


def align(value: int, unit: int) -> int:
    """`value` rounded up to a multiple of `unit`, a power of two."""
    return (value + unit - 1) & -unit


def xattr_size(icount: int) -> int:
    """Bytes of the xattrs that follow an inode, by its i_xattr_icount."""
    return XATTR_HEADER.size + 4 * (icount - 1) if icount else 0


def encode_device(major: int, minor: int) -> int:
    """The kernel's 32-bit device number (new_encode_dev); ValueError for what it cannot hold."""
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise ValueError(f"no device {major}:{minor} in Linux: 12 and 20 bits are what it has")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_device(number: int) -> tuple[int, int]:
    """Major and minor of `encode_device`."""
    return number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C: Final = _crc32c_table()


def crc32c(data: bytes | bytearray, crc: int = 0xFFFFFFFF) -> int:
    """CRC-32C without the final inversion, as the superblock has it (RFC 3720 B.4 inverts)."""
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc
