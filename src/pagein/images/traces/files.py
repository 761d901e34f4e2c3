"""Between a layer's data blob and its files: which file lies where, and where a file lies.

All of it is what the layer's EROFS metadata says, read without mounting it. Nothing here waits for
more than the disk.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from pagein.erofs.inode import Inode
from pagein.erofs.reader import Image
from pagein.images.layers.blob import DEVICE
from pagein.images.layers.errors import LayerError
from pagein.images.layers.index import Index


class Part(NamedTuple):
    """`length` bytes at `offset` of the file at `path` lie at `position` of the data blob."""

    position: int
    length: int
    path: bytes
    offset: int


class Files:
    """The regular files of the layer of `index`, which stays its opener's."""

    def __init__(self, index: Index) -> None:
        """ErofsError or LayerError when the metadata is damaged."""
        devices = [_no_data] if index.header.blob_size else []
        self._image = Image(index.metadata, devices)
        self._parts: list[Part] | None = None

    def at(self, position: int, length: int) -> Iterator[Part]:
        """The parts of files in [position, position + length) of the blob, in order.

        The first call looks at every file of the layer.
        """
        if self._parts is None:
            self._parts = sorted(self._all())
        end = position + length
        number = max(0, bisect_right(self._parts, position, key=lambda part: part.position) - 1)
        for part in self._parts[number:]:
            if part.position >= end:
                return
            low, high = max(position, part.position), min(end, part.position + part.length)
            if low < high:
                yield Part(low, high - low, part.path, part.offset + low - part.position)

    def find(self, path: bytes) -> list[Part]:
        """Where the file at `path` lies, in the order of its content.

        Raises OSError (ENOENT, ENOTDIR) for what is not there, or is no regular file.
        """
        inode = self._image.lookup(path)
        if not stat.S_ISREG(inode.mode):
            raise OSError(errno.ENOENT, "not a regular file", os.fsdecode(path))
        return list(self._parts_of(inode))

    def _all(self) -> Iterator[Part]:
        seen = set()
        for inode in self._image.walk():
            if stat.S_ISREG(inode.mode) and inode.nid not in seen:
                seen.add(inode.nid)
                yield from self._parts_of(inode)

    def _parts_of(self, inode: Inode) -> Iterator[Part]:
        """What of a file lies in the blob; pieces that touch are joined."""
        last: Part | None = None
        for extent in self._image.extents(inode):
            if extent.device != DEVICE:
                continue
            part = Part(extent.position, extent.length, inode.path, extent.offset)
            if last is not None and _touch(last, part):
                part = last._replace(length=last.length + part.length)
            elif last is not None:
                yield last
            last = part
        if last is not None:
            yield last


def _touch(one: Part, other: Part) -> bool:
    """Whether two parts of a file are one."""
    gap = one.position + one.length - other.position
    return gap == 0 and one.offset + one.length == other.offset


def _no_data(offset: int, length: int) -> bytes:
    raise LayerError("metadata that wants data to be read")
