"""Where each inode of an image lies, before a byte of it is written.

The image is: superblock and device table; shared extended attributes; inodes, each with its
attributes, chunk indexes and the tail of its content; blocks of content. Every number is known
before the first byte, so that the image can be written as a stream.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pagein.erofs import directories
from pagein.erofs.chunks import Chunks, Run, chunks_of, whole
from pagein.erofs.format import (
    BLOCK_BITS,
    BLOCK_SIZE,
    CHUNK_INDEX,
    COMPACT,
    DEVICE,
    EXTENDED,
    LAYOUT_CHUNKED,
    LAYOUT_INLINE,
    LAYOUT_PLAIN,
    NULL_ADDRESS,
    SLOT_SIZE,
    SUPER_OFFSET,
    SUPERBLOCK,
    align,
)
from pagein.erofs.survey import Survey
from pagein.erofs.tree import Device, Node

FIRST_SLOT: Final = BLOCK_SIZE
"""Bytes of the metadata area before the first inode: nid 0 would be an inode number of 0, which
readdir(3) hides."""
DEVICE_TABLE: Final = SUPER_OFFSET + SUPERBLOCK.size
NO_DEVICE: Final = 0xFFFF
_DEVICES_MAX = NO_DEVICE - 1
_INDEX: Final = CHUNK_INDEX.size
_16_BITS = 0xFFFF
_32_BITS = 0xFFFFFFFF


@dataclass(slots=True)
class Places:
    """The plan: by an inode's number, where it is and how it is laid out. Bytes, and blocks.

    `position` counts from the beginning of the metadata area, `address` (of the first block of
    content) from that of the content area.
    """

    survey: Survey
    devices: Sequence[Device]
    build_time_ns: int
    position: array[int]
    address: array[int]
    size: array[int]
    layout: bytearray
    extended: bytearray
    device: array[int]
    """Of a file that is one chunk, whose place in the device `address` says then; else 0xFFFF."""
    inode_bytes: int = 0
    content_blocks: int = 0
    chunked: bool = False
    appended: int = 0
    """Blocks that extents of device 0 want of the image: the caller adds what is missing."""

    @property
    def shared_block(self) -> int:
        """First block of the shared attributes."""
        return align(DEVICE_TABLE + DEVICE.size * len(self.devices), BLOCK_SIZE) >> BLOCK_BITS

    @property
    def inode_block(self) -> int:
        """First block that holds an inode."""
        return self.shared_block + (align(self.survey.shared.size, BLOCK_SIZE) >> BLOCK_BITS)

    @property
    def meta_block(self) -> int:
        """First block of the metadata area, where nids count from."""
        return self.inode_block - (FIRST_SLOT >> BLOCK_BITS)

    @property
    def content_block(self) -> int:
        """First block of content."""
        return self.meta_block + (align(self.inode_bytes, BLOCK_SIZE) >> BLOCK_BITS)

    @property
    def blocks(self) -> int:
        """Of the image."""
        return self.content_block + self.content_blocks

    def chunks(self, node: Node) -> Chunks:
        """The map of a chunk-based file."""
        return chunks_of(node.size, node.extents, self.devices)

    def nid(self, number: int) -> int:
        """The nid of an inode."""
        return self.position[number] // SLOT_SIZE


def place(survey: Survey, devices: Sequence[Device], build_time_ns: int) -> Places:
    """Plan the image. Raises ValueError for what EROFS cannot hold."""
    if len(devices) > _DEVICES_MAX or any(
        len(device.tag) > 64 or not 0 <= device.blocks <= _32_BITS for device in devices
    ):
        raise ValueError("a device table that EROFS cannot hold")
    count = len(survey.nodes)
    places = Places(
        survey,
        devices,
        build_time_ns,
        position=array("Q", bytes(8 * count)),
        address=array("Q", bytes(8 * count)),
        size=array("Q", bytes(8 * count)),
        layout=bytearray(count),
        extended=bytearray(count),
        device=array("H", [NO_DEVICE]) * count,
    )
    _Placer(places).run()
    if places.blocks >= NULL_ADDRESS:
        raise ValueError("an image of more than 16 TiB")
    return places


class _Placer:
    """Walks the inodes once, in order."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._at = FIRST_SLOT

    def run(self) -> None:
        places = self._places
        for number, node in enumerate(places.survey.nodes):
            try:
                self._place(number, node)
            except ValueError as problem:
                raise ValueError(f"{places.survey.path_of(number)}: {problem}") from None
        places.inode_bytes = self._at

    def _place(self, number: int, node: Node) -> None:
        places = self._places
        size = node.size if node.extents else self._size(number, node)
        places.size[number] = size
        extended = (
            node.mtime_ns != places.build_time_ns
            or size > _32_BITS
            or places.survey.links[number] > _16_BITS
            or node.uid > _16_BITS
            or node.gid > _16_BITS
        )
        places.extended[number] = extended
        head = EXTENDED.size if extended else COMPACT.size
        if node.xattrs:
            head += len(places.survey.shared.body(node.xattrs))
        if stat.S_ISREG(node.mode) and node.data is None and size:
            self._place_chunked(number, node, head)
        else:
            self._place_flat(number, size, head)

    def _size(self, number: int, node: Node) -> int:
        if node.children is None:
            return len(node.target) if stat.S_ISLNK(node.mode) else node.size
        names = self._places.survey.entries(number)
        return directories.size_of(names, directories.split(names))

    def _start(self, head: int, tail: int, extended: bool) -> int:
        """A slot after which `head` bytes, and then `tail` bytes within one block, have room."""
        start = (self._at + SLOT_SIZE - 1) & -SLOT_SIZE
        room = BLOCK_SIZE - start % BLOCK_SIZE
        if extended and room < EXTENDED.size:
            return start + room  # not forbidden, but no mkfs makes an inode across two blocks
        if tail and (start + head) % BLOCK_SIZE + tail > BLOCK_SIZE:
            return start + room
        return start

    def _place_flat(self, number: int, size: int, head: int) -> None:
        places = self._places
        tail = size % BLOCK_SIZE
        inline = 0 < tail <= BLOCK_SIZE - head
        places.layout[number] = LAYOUT_INLINE if inline else LAYOUT_PLAIN
        kept = tail if inline else 0
        start = self._start(head, kept, bool(places.extended[number]))
        places.position[number] = start
        self._at = start + head + kept
        blocks = align(size - kept, BLOCK_SIZE) >> BLOCK_BITS
        places.address[number] = places.content_blocks
        places.content_blocks += blocks

    def _place_chunked(self, number: int, node: Node, head: int) -> None:
        places = self._places
        places.chunked = True
        places.layout[number] = LAYOUT_CHUNKED
        start = self._start(head, 0, bool(places.extended[number]))
        places.position[number] = start
        run = whole(node.size, node.extents, places.devices)
        indexes = align(start + head, _INDEX)
        if run is not None:  # nearly all files
            places.device[number], places.address[number] = run.device, run.address
            self._at = indexes + _INDEX
            self._append(run)
            return
        chunks = places.chunks(node)
        self._at = indexes + _INDEX * chunks.total
        for run in chunks.runs:
            self._append(run)

    def _append(self, run: Run) -> None:
        if run.device == 0:
            self._places.appended = max(self._places.appended, run.address + run.blocks)
