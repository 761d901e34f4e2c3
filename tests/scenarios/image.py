"""A small EROFS image made by hand, so that what a mount asks for is known to the page.

All its metadata lies in page 0, so that a mount reads that page and no other. File `data` begins at
page 1. With a device there is a second file, `more`, whose pages are those of the device. Each page
of data holds one letter only (`letter`), so that a transcript can say what was read.
"""

from __future__ import annotations

import struct
from typing import Final

PAGE: Final = 4096
DATA_PAGES: Final = 15
"""Pages of file `data`, which are pages 1 to 15 of the image."""
SIZE: Final = PAGE * (1 + DATA_PAGES)
DEVICE_PAGES: Final = 8
DEVICE_SIZE: Final = PAGE * DEVICE_PAGES
FILES: Final = {"data": (0, 1, DATA_PAGES), "more": (1, 0, DEVICE_PAGES)}
"""File: number of its blob (0 is the primary), first page in it, pages."""

MAGIC: Final = 0xE0F5E1E2
_SUPER_OFFSET, _SLOT = 1024, 128
_ROOT_AT, _DATA_AT, _MORE_AT, _DEVICE_TABLE_AT = 1280, 2048, 2112, 3072
_CHUNKED_FILE, _DEVICE_TABLE = 4, 8  # feature_incompat
_PLAIN, _INLINE, _CHUNKED = 0, 2, 4  # data layouts
_INDEXES = 0x20  # chunk format: with an array of (device, block)
_CHUNK_BITS = 3  # a chunk has 8 blocks
_DIR, _REG = 0o040755, 0o100644


def letter(page: int, device: int = 0) -> bytes:
    """What page `page` of a blob is filled with: capitals, or small letters on the device."""
    return bytes([(ord("a") if device else ord("A")) + page % 26])


def pages(first: int, count: int, device: int = 0) -> bytes:
    """The bytes of so many pages of a blob; page 0 of the primary is the metadata."""
    return b"".join(page(number, device) for number in range(first, first + count))


def page(number: int, device: int = 0, *, devices: int = 0) -> bytes:
    """One page of a blob."""
    return metadata(devices) if not number and not device else letter(number, device) * PAGE


def metadata(devices: int = 0) -> bytes:
    """Page 0 of an image with so many (0 or 1) extra devices."""
    block = bytearray(PAGE)
    names = [(b".", _ROOT_AT, 2), (b"..", _ROOT_AT, 2), (b"data", _DATA_AT, 1)]
    if devices:
        names.append((b"more", _MORE_AT, 1))
    directory = _directory(names)
    _put(block, _SUPER_OFFSET, _superblock(devices))
    _put(block, _ROOT_AT, _inode(_INLINE, _DIR, 2, len(directory), 0, 1) + directory)
    _put(block, _DATA_AT, _inode(_PLAIN, _REG, 1, DATA_PAGES * PAGE, 1, 2))
    if devices:
        chunked = _inode(_CHUNKED, _REG, 1, DEVICE_PAGES * PAGE, _INDEXES | _CHUNK_BITS, 3)
        _put(block, _MORE_AT, chunked + struct.pack("<HHI", 0, 1, 0))
        _put(block, _DEVICE_TABLE_AT, struct.pack("<64sI", b"dev", DEVICE_PAGES))
    return bytes(block)


def devices_of(block: bytes | bytearray | memoryview) -> int:
    """How many extra devices the image with this page 0 has; ValueError if it is no image."""
    if struct.unpack_from("<I", block, _SUPER_OFFSET)[0] != MAGIC:
        raise ValueError("not EROFS")
    found: int = struct.unpack_from("<H", block, _SUPER_OFFSET + 86)[0]
    return found


def _put(block: bytearray, at: int, data: bytes) -> None:
    block[at : at + len(data)] = data


def _superblock(devices: int) -> bytes:
    features = _CHUNKED_FILE | _DEVICE_TABLE if devices else 0
    start = struct.pack(
        "<IIIBBHQQIIII16s16sI", MAGIC, 0, 0, 12, 0, _ROOT_AT // 32, 3, 0, 0,
        1 + DATA_PAGES, 0, 0, b"", b"", features,
    )  # fmt: skip
    return start + struct.pack("<HHHB", 0, devices, _DEVICE_TABLE_AT // _SLOT, 0)


def _inode(layout: int, mode: int, links: int, size: int, start: int, number: int) -> bytes:
    """The compact inode; `start` is the first block, or the chunk format."""
    form = layout << 1
    return struct.pack("<HHHHIIIIHHI", form, 0, mode, links, size, 0, start, number, 0, 0, 0)


def _directory(names: list[tuple[bytes, int, int]]) -> bytes:
    at, entries = 12 * len(names), b""
    for name, inode_at, kind in names:
        entries += struct.pack("<QHBB", inode_at // 32, at, kind, 0)
        at += len(name)
    return entries + b"".join(name for name, _, _ in names)
