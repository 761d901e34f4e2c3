"""A tree written as an EROFS image: a stream, and the same bytes for the same tree.

Uncompressed, blocks of 4096 bytes. What Linux 5.16 and newer mount: chunk-based files (5.15), a
device table (5.16). Format: `pagein.erofs.format`; the order of things: `pagein.erofs.placing`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from pagein.erofs import directories
from pagein.erofs.chunks import bits_of, indexes
from pagein.erofs.format import (
    BLOCK_BITS,
    BLOCK_SIZE,
    CHUNK_INDEX,
    CHUNK_INDEXES,
    COMPACT,
    COMPAT_MTIME,
    COMPAT_SB_CHKSUM,
    DEVICE,
    EXTENDED,
    EXTENDED_BIT,
    FILE_TYPES,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE,
    LAYOUT_CHUNKED,
    LAYOUT_INLINE,
    LAYOUT_SHIFT,
    MAGIC,
    NANOSECONDS,
    SLOT_SIZE,
    SUPER_OFFSET,
    SUPERBLOCK,
    XATTR_HEADER,
    align,
    crc32c,
    encode_device,
)
from pagein.erofs.placing import DEVICE_TABLE, FIRST_SLOT, NO_DEVICE, Places, place
from pagein.erofs.survey import Survey
from pagein.erofs.tree import Device, Node

_PIECE = 1 << 20  # bytes of one write
_COMPACT, _EXTENDED = (
    struct.Struct(inode.format + CHUNK_INDEX.format.removeprefix("<"))
    for inode in (COMPACT, EXTENDED)
)
_KIND = 0o170000  # S_IFMT
_VOLUME_NAME_MAX = 15  # the kernel wants a NUL after it


def write(
    root: Node,
    out: BinaryIO,
    *,
    uuid: bytes | None = None,
    devices: Sequence[Device] = (),
    volume_name: bytes = b"",
    build_time_ns: int = 0,
) -> int:
    """Write the image of `root` and return its length in bytes, a multiple of 4096.

    Without a `uuid` (16 bytes) it is made from the content, and `out` has to be seekable; with one,
    it is only ever written to. A file with the mtime `build_time_ns` takes 32 bytes less. Where
    extents of device 0 lie beyond the image, the caller appends those bytes.

    Raises ValueError, naming the path, for what EROFS cannot hold, before the first byte.
    """
    if uuid is not None:
        pieces = stream(
            root, uuid=uuid, devices=devices, volume_name=volume_name, build_time_ns=build_time_ns
        )
        return _copy(pieces, out)
    places, head = _plan(root, devices, volume_name, build_time_ns)
    start = out.tell()
    blank = head.pack(bytes(16))
    digest = hashlib.sha256()
    length = _copy(_pieces(blank, places), out, digest)
    out.seek(start)
    out.write(head.pack(_uuid8(digest.digest())))
    out.seek(start + length)
    return length


def stream(
    root: Node,
    *,
    uuid: bytes,
    devices: Sequence[Device] = (),
    volume_name: bytes = b"",
    build_time_ns: int = 0,
) -> Iterator[bytes]:
    """What `write` writes, in pieces of any size. The ValueError is raised here, not later."""
    if len(uuid) != 16:
        raise ValueError(f"a UUID of {len(uuid)} bytes")
    places, head = _plan(root, devices, volume_name, build_time_ns)
    return _pieces(head.pack(uuid), places)


def _plan(
    root: Node, devices: Sequence[Device], volume_name: bytes, build_time_ns: int
) -> tuple[Places, _Head]:
    if len(volume_name) > _VOLUME_NAME_MAX or b"\0" in volume_name:
        raise ValueError(f"{volume_name!r} as a volume name: at most {_VOLUME_NAME_MAX} bytes fit")
    if not -(1 << 63) <= build_time_ns // NANOSECONDS < 1 << 63:
        raise ValueError(f"a build time of {build_time_ns} ns is beyond 64 bits of seconds")
    places = place(Survey(root), devices, build_time_ns)
    return places, _Head(places, volume_name)


def _uuid8(digest: bytes) -> bytes:
    """The first 128 bits of a digest as a UUID of version 8 (RFC 9562 5.8)."""
    made = bytearray(digest[:16])
    made[6] = made[6] & 0x0F | 0x80
    made[8] = made[8] & 0x3F | 0x80
    return bytes(made)


def _copy(pieces: Iterable[bytes], out: BinaryIO, digest: hashlib._Hash | None = None) -> int:
    """Write the pieces, a megabyte at a time; the length of all."""
    waiting = bytearray()
    length = 0
    for piece in pieces:
        waiting += piece
        if len(waiting) >= _PIECE:
            length += len(waiting)
            _put(waiting, out, digest)
            waiting = bytearray()
    _put(waiting, out, digest)
    return length + len(waiting)


def _put(data: bytearray, out: BinaryIO, digest: hashlib._Hash | None) -> None:
    out.write(data)
    if digest is not None:
        digest.update(data)


class _Head:
    """Superblock and device table, all but the UUID."""

    def __init__(self, places: Places, volume_name: bytes) -> None:
        self._places = places
        self._volume_name = volume_name

    def pack(self, uuid: bytes) -> bytes:
        """The blocks before the shared attributes."""
        places = self._places
        image = bytearray(places.shared_block << BLOCK_BITS)
        SUPERBLOCK.pack_into(image, SUPER_OFFSET, *self._fields(uuid, 0))
        for index, device in enumerate(places.devices):
            at = DEVICE_TABLE + index * DEVICE.size
            DEVICE.pack_into(image, at, device.tag, device.blocks, 0)
        checksum = crc32c(image[SUPER_OFFSET:BLOCK_SIZE])
        SUPERBLOCK.pack_into(image, SUPER_OFFSET, *self._fields(uuid, checksum))
        return bytes(image)

    def _fields(self, uuid: bytes, checksum: int) -> tuple[int | bytes, ...]:
        places = self._places
        seconds, nanoseconds = divmod(places.build_time_ns, NANOSECONDS)
        incompat = INCOMPAT_CHUNKED_FILE * places.chunked
        incompat |= INCOMPAT_DEVICE_TABLE * bool(places.devices)
        return (
            MAGIC,
            checksum,
            COMPAT_SB_CHKSUM | COMPAT_MTIME,
            BLOCK_BITS,
            0,
            places.nid(0),
            len(places.survey.nodes),
            seconds,
            nanoseconds,
            max(places.blocks, places.appended),
            places.meta_block,
            places.shared_block if places.survey.shared.size else 0,
            uuid,
            self._volume_name,
            incompat,
            0,
            len(places.devices),
            DEVICE_TABLE // DEVICE.size if places.devices else 0,
            0,
            0,
            0,
            0,
            0,
        )


def _pieces(head: bytes, places: Places) -> Iterator[bytes]:
    """The image, in pieces of any size."""
    yield head
    yield from places.survey.shared.area()
    yield bytes(-places.survey.shared.size % BLOCK_SIZE)
    yield from _inodes(places)
    yield from _content(places)


def _inodes(places: Places) -> Iterator[bytes]:
    at = FIRST_SLOT
    body = places.survey.shared.body
    position, devices = places.position, places.device
    for number, node in enumerate(places.survey.nodes):
        start = position[number]
        gap = bytes(start - at)
        if devices[number] != NO_DEVICE and not node.xattrs:  # nearly all files
            inode = _one_chunk(places, number, node)
            yield gap + inode
            at = start + len(inode)
            continue
        xattrs = body(node.xattrs) if node.xattrs else b""
        layout, size = places.layout[number], places.size[number]
        icount = (len(xattrs) - XATTR_HEADER.size) // 4 + 1 if xattrs else 0
        if layout != LAYOUT_CHUNKED:
            tail = _tail(places, number, node) if layout == LAYOUT_INLINE else b""
            inode = _inode(places, number, node, icount, _union(places, number, node))
            yield gap + inode + xattrs + tail
            at = start + len(inode) + len(xattrs) + len(tail)
            continue
        device = places.device[number]
        chunks = places.chunks(node) if device == NO_DEVICE else None
        bits = bits_of(-(-size // BLOCK_SIZE)) if chunks is None else chunks.bits
        inode = _inode(places, number, node, icount, bits | CHUNK_INDEXES)
        at = start + len(inode) + len(xattrs)
        padding = -at % CHUNK_INDEX.size
        head = gap + inode + xattrs + bytes(padding)
        if chunks is None:
            yield head + CHUNK_INDEX.pack(0, device, places.address[number])
            at += padding + CHUNK_INDEX.size
        else:
            yield head
            yield from indexes(chunks)
            at += padding + CHUNK_INDEX.size * chunks.total
    yield bytes(-at % BLOCK_SIZE)


def _one_chunk(places: Places, number: int, node: Node) -> bytes:
    """The inode of a file that is one chunk, and its index."""
    size, links = places.size[number], places.survey.links[number]
    bits = CHUNK_INDEXES | bits_of(-(-size >> BLOCK_BITS))
    index = 0, places.device[number], places.address[number]
    mode, uid, gid, ino = node.mode, node.uid, node.gid, number + 1
    if not places.extended[number]:
        form = LAYOUT_CHUNKED << LAYOUT_SHIFT
        return _COMPACT.pack(form, 0, mode, links, size, 0, bits, ino, uid, gid, 0, *index)
    form = LAYOUT_CHUNKED << LAYOUT_SHIFT | EXTENDED_BIT
    time = divmod(node.mtime_ns, NANOSECONDS)
    return _EXTENDED.pack(form, 0, mode, 0, size, bits, ino, uid, gid, *time, links, *index)


def _inode(places: Places, number: int, node: Node, icount: int, union: int) -> bytes:
    layout, extended = places.layout[number], places.extended[number]
    form = layout << LAYOUT_SHIFT | EXTENDED_BIT * extended
    size, links = places.size[number], places.survey.links[number]
    if not extended:
        owner = (node.uid, node.gid)
        return COMPACT.pack(form, icount, node.mode, links, size, 0, union, number + 1, *owner, 0)
    owner_and_time = (node.uid, node.gid, *divmod(node.mtime_ns, NANOSECONDS))
    return EXTENDED.pack(
        form, icount, node.mode, 0, size, union, number + 1, *owner_and_time, links
    )


def _union(places: Places, number: int, node: Node) -> int:
    """i_u of an inode without chunks: what it means depends on the type."""
    if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
        return encode_device(os.major(node.rdev), os.minor(node.rdev))
    if places.size[number] == 0:
        return 0
    return places.content_block + places.address[number]


def _tail(places: Places, number: int, node: Node) -> bytes:
    """The end of the content, where it lies beside the inode."""
    if node.children is None:
        data = node.target or node.data or b""
        return data[len(data) - len(data) % BLOCK_SIZE :]
    *_, tail = _directory(places, number, node)
    return tail


def _content(places: Places) -> Iterator[bytes]:
    for number, node in enumerate(places.survey.nodes):
        layout, size = places.layout[number], places.size[number]
        inline = layout == LAYOUT_INLINE
        if layout == LAYOUT_CHUNKED or size == 0 or (inline and size < BLOCK_SIZE):
            continue
        kept = size % BLOCK_SIZE if inline else 0
        if node.children is None:
            data = node.target or node.data or b""
            yield data[: size - kept]
        else:
            blocks = list(_directory(places, number, node))
            yield from blocks[: len(blocks) - inline]
        yield bytes(align(size - kept, BLOCK_SIZE) - (size - kept))


def _directory(places: Places, number: int, node: Node) -> Iterator[bytes]:
    """The blocks of a directory, full ones but for the last, which ends with its last name."""
    entries = _entries(places, number, node)
    done = 0
    for count in directories.split([name for name, _, _ in entries]):
        block = directories.pack(entries[done : done + count])
        done += count
        yield block if done == len(entries) else block.ljust(BLOCK_SIZE, b"\0")


def _entries(places: Places, number: int, node: Node) -> list[directories.Entry]:
    """Sorted, with ``.`` and ``..``."""
    assert node.children is not None
    numbers, position = places.survey.numbers, places.position
    found = [
        (name, position[numbers[child]] // SLOT_SIZE, FILE_TYPES[child.mode & _KIND])
        for name, child in node.children.items()
    ]
    for name, above in ((b".", number), (b"..", places.survey.parents[number])):
        found.append((name, places.nid(above), FILE_TYPES[stat.S_IFDIR]))
    return sorted(found)
