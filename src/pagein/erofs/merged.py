"""Layers as one tree, as overlayfs shows them, read without mounting: whiteouts, opaque, the rest.

Linux's Documentation/filesystems/overlayfs.rst: a character device 0:0 deletes its name of lower
layers, a directory with `trusted.overlay.opaque` covers what they have in it. Attributes that an
image itself has of that name are escaped as `trusted.overlay.overlay.*`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from pagein.erofs.inode import Inode
from pagein.erofs.paths import resolve
from pagein.erofs.reader import Image
from pagein.erofs.tree import Extent

_PRIVATE = b"trusted.overlay."
_ESCAPED = b"trusted.overlay.overlay."
_OPAQUE = b"trusted.overlay.opaque"


@dataclass(slots=True, eq=False)
class MergedInode(Inode):
    """An inode as one layer has it, and what it is made of: (number of a layer, inode there)."""

    parts: tuple[tuple[int, Inode], ...]
    """The top one first; one, but for directories."""
    shown: tuple[int, Inode]
    """The one that says what it looks like."""

    @property
    def key(self) -> object:
        """The same for every name of the same file."""
        return self.shown[0], self.nid


class MergedImage:
    """The tree of `layers`, lowest first. Has the methods of `reader.Image`, and its errors.

    `implied`: for each layer the paths of directories that it does not describe, but has for what
    is in them; they look like those of the layers below.
    """

    def __init__(self, layers: Sequence[Image], implied: Sequence[frozenset[bytes]]) -> None:
        if not layers:
            raise OSError(errno.EINVAL, "an image without layers")
        self._layers = layers
        self._implied = implied
        roots = [(number, layer.root) for number, layer in enumerate(layers)]
        self.root = self._directory(b"", roots[::-1])

    # ---- names -----------------------------------------------------------------------------------

    def lookup(self, path: bytes, *, follow: bool = False) -> Inode:
        """The inode at `path`; the last symbolic link is followed with `follow`."""
        return resolve(path, self.root, self._child, self.readlink, follow=follow)

    def _child(self, directory: Inode, name: bytes) -> Inode | None:
        found = []
        for number, part in _parts(directory):
            inode = self._layers[number].child(part, name)
            if inode is not None:
                found.append((number, inode))
        return self._merge(directory.path + b"/" + name, found)

    def scandir(self, directory: Inode) -> Iterator[tuple[bytes, Inode]]:
        """Names and inodes of a directory, in ascending order."""
        found: dict[bytes, list[tuple[int, Inode]]] = {}
        for number, part in _parts(directory):
            for name, inode in self._layers[number].scandir(part):
                found.setdefault(name, []).append((number, inode))
        for name in sorted(found):
            merged = self._merge(directory.path + b"/" + name, found[name])
            if merged is not None:
                yield name, merged

    def walk(self, top: Inode | None = None) -> Iterator[Inode]:
        """`top` (or the root) and all below it; a directory before what it holds."""
        top = top or self.root
        yield top
        open_directories = [self.scandir(top)] if top.is_dir else []
        while open_directories:
            _, found = next(open_directories[-1], (b"", None))
            if found is None:
                open_directories.pop()
                continue
            if found.is_dir:
                open_directories.append(self.scandir(found))
            yield found

    def _merge(self, path: bytes, found: Sequence[tuple[int, Inode]]) -> Inode | None:
        """What inodes of the same name, the top one first, are together."""
        if not found or _is_whiteout(found[0][1]):
            return None
        if not found[0][1].is_dir:
            return _inode(path, tuple(found[:1]), found[0])
        return self._directory(path, found)

    def _directory(self, path: bytes, found: Sequence[tuple[int, Inode]]) -> Inode:
        parts = []
        for number, inode in found:
            if not inode.is_dir:
                break
            parts.append((number, inode))
            if self._layers[number].xattrs(inode).get(_OPAQUE) == b"y":
                break
        # One that nobody describes looks like the lowest.
        told = [part for part in parts if path.lstrip(b"/") not in self._implied[part[0]]]
        return _inode(path, tuple(parts), (told or parts[-1:])[0])

    # ---- inodes and content ----------------------------------------------------------------------

    def readlink(self, link: Inode) -> bytes:
        """Where a symbolic link points."""
        layer, inode = self._first(link)
        return layer.readlink(inode)

    def xattrs(self, of: Inode) -> dict[bytes, bytes]:
        """Extended attributes, by their full names; without those that are overlayfs's own."""
        layer, inode = self._first(of)
        found = {}
        for name, value in layer.xattrs(inode).items():
            if name.startswith(_ESCAPED):
                found[_PRIVATE + name.removeprefix(_ESCAPED)] = value
            elif not name.startswith(_PRIVATE):
                found[name] = value
        return found

    def extents(self, of: Inode) -> Iterator[Extent]:
        """Where the content lies in the blobs of its layer, in ascending order."""
        layer, inode = self._first(of)
        return layer.extents(inode)

    def read(self, of: Inode, offset: int, length: int) -> bytes:
        """Up to `length` bytes of content from `offset` on; holes are zeros."""
        layer, inode = self._first(of)
        return layer.read(inode, offset, length)

    def _first(self, of: Inode) -> tuple[Image, Inode]:
        assert isinstance(of, MergedInode), "made here"
        number, inode = of.shown
        return self._layers[number], inode


def _parts(of: Inode) -> tuple[tuple[int, Inode], ...]:
    assert isinstance(of, MergedInode), "made here"
    return of.parts


def _is_whiteout(inode: Inode) -> bool:
    return stat.S_ISCHR(inode.mode) and inode.rdev == os.makedev(0, 0)


def _inode(
    path: bytes, parts: tuple[tuple[int, Inode], ...], shown: tuple[int, Inode]
) -> MergedInode:
    values = {each.name: getattr(shown[1], each.name) for each in fields(Inode)}
    return MergedInode(**{**values, "path": path}, parts=parts, shown=shown)
