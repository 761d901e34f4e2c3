"""An image's files, looked up in the indexes of its layers: where in the blobs they lie."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import NamedTuple

from pagein.erofs.inode import Inode
from pagein.erofs.merged import MergedImage, MergedInode
from pagein.erofs.reader import Image
from pagein.erofs.superblock import Read
from pagein.images.layers.errors import LayerError
from pagein.images.layers.index import Index
from pagein.images.layers.names import Named


class Place(NamedTuple):
    """A file: the layer's number, and where in its data blob it begins; `length` in bytes."""

    layer: int
    start: int
    length: int


class Tree:
    """The merged tree of layers, lowest first. For one thread at a time; waits for the disk.

    ErofsError and LayerError when an index is damaged.
    """

    def __init__(self, indexes: Sequence[Index]) -> None:
        images = [Image(index.metadata, _no_data(index)) for index in indexes]
        implied = [frozenset(index.implied()) for index in indexes]
        self._indexes = indexes
        self._merged = MergedImage(images, implied)
        self._names: dict[bytes, dict[bytes, Inode]] = {}

    def file(self, path: bytes) -> tuple[Place | None, bytes]:
        """The regular file at `path`, links followed, and its own path; None if there is none.

        Nor for one that has no data, or has it in several places.
        """
        inode = self._look_up(path)
        if inode is None:
            return None, b""
        return self.place(inode), inode.path

    def names(self, directory: bytes) -> dict[bytes, Inode]:
        """What is in the directory at `directory`; nothing if there is none."""
        found = self._names.get(directory)
        if found is None:
            inode = self._look_up(directory)
            listed = inode is not None and inode.is_dir
            found = dict(self._merged.scandir(inode)) if inode is not None and listed else {}
            self._names[directory] = found
        return found

    def place(self, inode: Inode) -> Place | None:
        """Where a file lies."""
        if not stat.S_ISREG(inode.mode) or not isinstance(inode, MergedInode):
            return None
        start = end = None
        for extent in self._merged.extents(inode):
            if not extent.device or (end is not None and extent.position != end):
                return None
            start = extent.position if start is None else start
            end = extent.position + extent.length
        return None if start is None or end is None else Place(inode.shown[0], start, end - start)

    def named(self, place: Place) -> Named | None:
        """What a file names, if its layer's index says."""
        return self._indexes[place.layer].names(place.start)

    def _look_up(self, path: bytes) -> Inode | None:
        parent, _, name = path.rpartition(b"/")
        listed = self._names.get(parent) if name else None
        if listed is not None:
            found = listed.get(name)
            if found is None or not stat.S_ISLNK(found.mode):
                return found
        try:
            return self._merged.lookup(path, follow=True)
        except OSError:
            return None


def _no_data(index: Index) -> list[Read]:
    def read(offset: int, length: int) -> bytes:
        raise LayerError(f"{index.path}: metadata that wants data to be read")

    return [read] if index.header.blob_size else []
