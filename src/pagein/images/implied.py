"""Directories that a layer has for what is in them, and does not describe (umoci's, Bazel's).

Who unpacks layers one over the other finds such a directory there, and leaves it as it is.
Overlayfs shows what the upper layer says. So in its metadata they are made to look like those
below: mode, owner and time; extended attributes are not carried over.
"""

from __future__ import annotations

from collections.abc import Sequence

from pagein.erofs.attributes import Patch, change
from pagein.erofs.inode import Inode
from pagein.erofs.merged import MergedImage
from pagein.erofs.reader import Image
from pagein.erofs.superblock import Read
from pagein.images.layers.errors import LayerError
from pagein.images.layers.index import Index


def restyle(indexes: Sequence[Index]) -> list[list[Patch]]:
    """For each layer, lowest first, what its metadata should say instead. Blocks.

    Raises LayerError, ErofsError for damaged indexes.
    """
    implied = [frozenset(index.implied()) for index in indexes]
    if not any(implied[1:]):
        return [[] for _ in indexes]
    images = [Image(index.metadata, _no_data(index)) for index in indexes]
    patches: list[list[Patch]] = [[]]
    for number in range(1, len(indexes)):
        below = MergedImage(images[:number], implied[:number])
        changes = []
        for path in sorted(implied[number]):
            like = _directory(below, path)
            if like is not None:
                changes.append((images[number].lookup(path), like))
        patches.append(change(indexes[number].metadata, changes))
    return patches


def _directory(below: MergedImage, path: bytes) -> Inode | None:
    try:
        found = below.lookup(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if found.is_dir else None


def _no_data(index: Index) -> list[Read]:
    """Only names are looked at: what directories hold is metadata."""

    def read(offset: int, length: int) -> bytes:
        raise LayerError(f"{index.path}: a directory that lies in the data")

    return [read] if index.header.blob_size else []
