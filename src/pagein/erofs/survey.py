"""Every inode of a tree once, in the order of the image, checked for what EROFS cannot hold.

A directory's entries are neighbours, sorted, before what lies deeper; so the same tree is the same
image, whatever the order it was put together in.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterator, Sequence

from pagein.erofs.directories import check_name
from pagein.erofs.format import FILE_TYPES, NANOSECONDS, encode_device
from pagein.erofs.tree import Node
from pagein.erofs.xattrs import Shared

_TARGET_MAX = 4095
_SIZE_MAX = (1 << 63) - 1
_LINKS_MAX = (1 << 32) - 1
_ID_MAX = (1 << 32) - 1
_MODE_MAX = 0xFFFF


class Path:
    """A directory on the way down, as its parent and name: made into a path for errors only."""

    __slots__ = ("name", "parent")

    def __init__(self, parent: Path | None, name: bytes) -> None:
        self.parent = parent
        self.name = name

    def __truediv__(self, name: bytes) -> Path:
        return Path(self, name)

    def __str__(self) -> str:
        names = []
        path: Path | None = self
        while path is not None:
            names.append(path.name)
            path = path.parent
        return os.fsdecode(b"/".join(reversed(names))) or "/"


class Survey:
    """The inodes of a tree, by their numbers 0, 1, 2, ... in the order of the image.

    Raises ValueError, which names the path, for what cannot be an EROFS file system.
    """

    def __init__(self, root: Node) -> None:
        self.nodes: list[Node] = [root]
        self.numbers: dict[Node, int] = {root: 0}
        self.links = array("I", [2])
        self.parents: dict[int, int] = {0: 0}
        """Number of the parent of each directory."""
        self.shared = Shared()
        top = Path(None, b"")
        if root.children is None:
            raise ValueError("/: the root of a file system is a directory")
        self._check(root, top)
        self._walk(root, top)

    def _walk(self, root: Node, top: Path) -> None:
        waiting = [(root, top)]
        while waiting:
            directory, path = waiting.pop()
            below = list(self._children(directory, path))
            below.reverse()  # the first is next
            waiting += below

    def _children(self, directory: Node, path: Path) -> Iterator[tuple[Node, Path]]:
        """Number what a directory holds; yields the directories among it."""
        numbers, links = self.numbers, self.links
        assert directory.children is not None
        parent = numbers[directory]
        for name, node in sorted(directory.children.items()):
            self._check_entry(name, path)
            number = numbers.get(node)
            if number is not None:
                self._link(number, path / name)
                continue
            self._check(node, path / name)
            numbers[node] = number = len(self.nodes)
            self.nodes.append(node)
            if node.children is None:
                links.append(1)
                continue
            links.append(2)
            links[parent] += 1
            self.parents[number] = parent
            yield node, path / name

    def _link(self, number: int, path: Path) -> None:
        if self.nodes[number].children is not None:
            raise ValueError(f"{path}: a directory cannot have a second name")
        if self.links[number] == _LINKS_MAX:
            raise ValueError(f"{path}: too many hard links")
        self.links[number] += 1

    @staticmethod
    def _check_entry(name: bytes, path: Path) -> None:
        try:
            check_name(name)
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from None
        if name in {b".", b".."}:
            raise ValueError(f"{path}: {name!r} as a name")

    def _check(self, node: Node, path: Path) -> None:
        try:
            check_node(node)
            if node.xattrs:
                self.shared.note(node.xattrs)
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from None

    def path_of(self, number: int) -> str:
        """A path of an inode, for errors. Slow."""
        names: list[bytes] = []
        node = self.nodes[number]
        if node.children is None:
            number, name = next(
                (above, name)
                for above in self.parents
                for name, child in (self.nodes[above].children or {}).items()
                if child is node
            )
            names.append(name)
        while number:
            above = self.parents[number]
            children = self.nodes[above].children or {}
            names += [name for name, child in children.items() if child is self.nodes[number]]
            number = above
        return os.fsdecode(b"/" + b"/".join(reversed(names)))

    def entries(self, number: int) -> Sequence[bytes]:
        """The names in a directory, sorted, with ``.`` and ``..``."""
        return sorted([b".", b"..", *(self.nodes[number].children or ())])


def check_node(node: Node) -> None:
    """Raise ValueError, with the reason, for a node that EROFS cannot hold."""
    kind = stat.S_IFMT(node.mode)
    if kind not in FILE_TYPES or not 0 <= node.mode <= _MODE_MAX:
        raise ValueError(f"no file has the mode {node.mode:#o}")
    if not (0 <= node.uid <= _ID_MAX and 0 <= node.gid <= _ID_MAX):
        raise ValueError(f"owner {node.uid}:{node.gid}: 32 bits each are what EROFS has")
    if not -(1 << 63) <= node.mtime_ns // NANOSECONDS < 1 << 63:
        raise ValueError(f"a time of {node.mtime_ns} ns since 1970 is beyond 64 bits of seconds")
    if (node.children is not None) != (kind == stat.S_IFDIR):
        raise ValueError("directories, and nothing else, have children")
    if kind == stat.S_IFREG:
        _check_content(node)
    elif node.data is not None or node.extents or node.size:
        raise ValueError("content, but not a regular file")
    elif kind == stat.S_IFLNK:
        _check_target(node.target)
    elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
        encode_device(os.major(node.rdev), os.minor(node.rdev))


def _check_content(node: Node) -> None:
    if not 0 <= node.size <= _SIZE_MAX:
        raise ValueError(f"a size of {node.size} bytes")
    if node.data is not None and node.extents:
        raise ValueError("both data and extents")
    if node.data is not None and len(node.data) != node.size:
        raise ValueError(f"{len(node.data)} bytes of data in a file of {node.size}")


def _check_target(target: bytes) -> None:
    if not 0 < len(target) <= _TARGET_MAX:
        raise ValueError(f"a symbolic link of {len(target)} bytes: 1 to {_TARGET_MAX} can be")
    if b"\0" in target:
        raise ValueError("a NUL in a symbolic link")
