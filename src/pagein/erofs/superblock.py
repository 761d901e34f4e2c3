"""What an image says of itself, read with suspicion."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from pagein.erofs.errors import ErofsError
from pagein.erofs.format import (
    COMPAT_SB_CHKSUM,
    DEVICE,
    INCOMPAT_DEVICE_TABLE,
    INCOMPAT_KNOWN,
    MAGIC,
    SUPER_OFFSET,
    SUPERBLOCK,
    crc32c,
)
from pagein.erofs.tree import Device

_BLOCK_BITS = range(9, 17)  # 512 bytes to 64 KiB
_CHECKSUM = slice(4, 8)

Read = Callable[[int, int], bytes]
"""`read(offset, length)`: that many bytes of a file from there, fewer only where it ends."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """The fields that reading takes; addresses in bytes."""

    block_bits: int
    root_nid: int
    inodes: int
    build_time_ns: int
    length: int
    """Least length of the primary file; 0: not recorded."""
    meta: int
    shared_xattrs: int
    uuid: bytes
    volume_name: bytes
    devices: tuple[Device, ...]


def read_superblock(read: Read) -> Superblock:
    """Read superblock and device table. Raises ErofsError, and what `read` raises."""
    data = _exactly(read, SUPER_OFFSET, SUPERBLOCK.size, "it ends within the superblock")
    magic, checksum, compat, bits, _, root, inodes, *more = SUPERBLOCK.unpack(data)
    seconds, nanoseconds, blocks, meta, shared, uuid, name, incompat, *more = more
    _, extra, slot, directory_bits, *_ = more
    if magic != MAGIC:
        raise ErofsError(f"not an EROFS image: its magic is {magic:#010x}, not {MAGIC:#010x}")
    if bits not in _BLOCK_BITS or directory_bits:
        text = f"blocks of 1 << {bits} bytes, directory blocks of 1 << {directory_bits} more"
        raise ErofsError(f"superblock: {text}")
    if incompat & ~INCOMPAT_KNOWN:
        text = f"features {incompat & ~INCOMPAT_KNOWN:#x} are not known"
        raise ErofsError(f"superblock: {text}", errno.EOPNOTSUPP)
    if compat & COMPAT_SB_CHKSUM:
        _verify(read, 1 << bits, checksum)
    count = extra if incompat & INCOMPAT_DEVICE_TABLE else 0
    return Superblock(
        block_bits=bits,
        root_nid=root,
        inodes=inodes,
        build_time_ns=seconds * 1_000_000_000 + nanoseconds,
        length=blocks << bits,
        meta=meta << bits,
        shared_xattrs=shared << bits,
        uuid=uuid,
        volume_name=name.rstrip(b"\0"),
        devices=_devices(read, slot * DEVICE.size, count),
    )


def _verify(read: Read, block: int, expected: int) -> None:
    """The checksum is that of the rest of the block that the superblock is in."""
    length = block - SUPER_OFFSET if block > SUPER_OFFSET else block
    data = bytearray(_exactly(read, SUPER_OFFSET, length, "it ends within its first block"))
    data[_CHECKSUM] = bytes(4)
    found = crc32c(data)
    if found != expected:
        raise ErofsError(f"superblock: its checksum is {expected:#010x}, not {found:#010x}")


def _devices(read: Read, at: int, count: int) -> tuple[Device, ...]:
    if not count:
        return ()
    table = _exactly(read, at, count * DEVICE.size, "it ends within its device table")
    return tuple(Device(tag.rstrip(b"\0"), blocks) for tag, blocks, _ in DEVICE.iter_unpack(table))


def _exactly(read: Read, offset: int, length: int, problem: str) -> bytes:
    data = read(offset, length)
    if len(data) != length:
        raise ErofsError(f"not an EROFS image: {problem}")
    return data
