"""A layer's members become a tree that overlayfs can put over other layers.

Names are cleaned as GNU tar and containerd do: leading slashes and "." go; ".." is refused; a name
that leads through symbolic links of this layer is followed inside the layer's root, so nothing
ever leaves it. The last of several members of one name wins; a directory keeps what is in it when
it is named again. Parents that the archive leaves out become directories of root with mode 0755
(containerd's and umoci's MkdirAll); `Tree.implied` names them, since a merged tree should show
the attributes that a lower layer has for them.

OCI whiteouts take overlayfs's form: a character device 0:0, and `trusted.overlay.opaque`. What
the archive itself would have overlayfs interpret is escaped (attributes, by the rule of
Documentation/filesystems/overlayfs.rst "Nesting overlayfs mounts") or refused (such a device).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pagein.erofs.tree import Extent, Node
from pagein.images.layers.entry import Entry, Limits
from pagein.images.layers.errors import LayerError, show

OPAQUE = b"trusted.overlay.opaque"

_OVERLAY = b"trusted.overlay."
_NAMESPACES = (b"user.", b"trusted.", b"security.")  # what EROFS can name
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_WHITEOUT, _AUFS, _OPAQUE_MARK = b".wh.", b".wh..wh.", b".wh..wh..opq"
_NO_PARTS = (b"", b".")
_DOTS = (b".", b"..")
_NAME_MAX, _PATH_MAX, _LINKS_MAX = 255, 4096, 40
_XATTR_NAME_MAX, _XATTR_VALUE_MAX = 255, 65536  # of Linux
_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1  # of a device number in EROFS

Place = Callable[[Entry], tuple[Extent, ...]]
"""Gives a regular file's stored data its place; called once a file, in the archive's order."""


@dataclass
class Tree:
    """`root`, and the paths of directories that are there only because something is in them."""

    root: Node
    implied: list[bytes] = field(default_factory=list)


class TreeBuilder:
    """`add` the entries of an archive in order, then `finish`."""

    def __init__(self, place: Place, limits: Limits = Limits()) -> None:  # noqa: B008
        self._place = place
        self._limits = limits
        self._root = _directory()
        self._implied: dict[Node, bytes] = {self._root: b""}
        self._whiteouts: list[tuple[Node, bytes]] = []
        self._nodes = 0
        self._names = 0
        # Of the last entry: the next one's, mostly. The path as it was written, "/" and all.
        self._parent: tuple[bytes, Node] | None = None

    def add(self, entry: Entry) -> None:
        """Take one member; LayerError if it has no place in a file system."""
        path = entry.path
        self._names += len(path) + len(entry.linkname)
        if entry.xattrs:
            self._names += sum(len(k) + len(v) for k, v in entry.xattrs.items())
        self._count(path)
        parent = self._parent
        if parent is not None and not entry.hardlink and path.startswith(parent[0]):
            name = path[len(parent[0]) :].removesuffix(b"/")
            if _is_plain(name) and len(path) <= _PATH_MAX:
                self._put(parent[1], name, self._node(entry))
                return
        names = _split(path, "name")
        if not names:
            self._set_root(entry)
            return
        *parents, name = names
        if _AUFS in entry.path and any(part.startswith(_AUFS) for part in parents):
            return  # AUFS's own directories
        if name.startswith(_WHITEOUT):
            self._whiteout(entry, parents, name)
            return
        directory = self._directory_of(parents, path)
        if entry.hardlink:
            self._hardlink(entry, directory, name)
            return
        self._put(directory, name, self._node(entry))

    def finish(self) -> Tree:
        """The tree. Whiteouts stand aside for what the same layer holds (OCI image-spec)."""
        for parent, name in self._whiteouts:
            assert parent.children is not None
            existing = parent.children.get(name)
            if existing is None:
                parent.children[name] = Node(stat.S_IFCHR)
            elif existing.children is not None:
                existing.xattrs = {**existing.xattrs, OPAQUE: b"y"}  # it hides the lower one
        # By now some of the implied ones may be gone: only what can be reached counts.
        live = {id(node) for node in _walk(self._root)}
        implied = sorted(path for node, path in self._implied.items() if id(node) in live)
        return Tree(self._root, implied)

    # ---- places

    def _directory_of(self, names: list[bytes], path: bytes) -> Node:
        """The directory that `names` lead to; what is missing of it is made."""
        node = self._walk_to(names, path, make=True)
        assert node is not None
        above, slash, _ = path.rstrip(b"/").rpartition(b"/")
        self._parent = (above + slash, node) if _parts(above) == names else None
        return node

    def _walk_to(self, names: list[bytes], path: bytes, *, make: bool) -> Node | None:
        """Follow `names` from the root, through links as chroot would: ".." ends at the root."""
        trail = [self._root]
        todo = list(reversed(names))
        came: list[bytes] = []
        links = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                del trail[max(1, len(came)) :], came[-1:]
                continue
            children = trail[-1].children
            assert children is not None
            found = children.get(name)
            if found is not None and stat.S_ISLNK(found.mode):
                links += 1
                if links > _LINKS_MAX:
                    raise LayerError(f"{show(path)}: too many symbolic links on the way")
                if found.target.startswith(b"/"):
                    trail, came = [self._root], []
                steps = [part for part in found.target.split(b"/") if part not in (b"", b".")]
                todo += reversed(steps)
                continue
            if found is not None and found.children is None and make:
                where = show(b"/".join([*came, name]))
                raise LayerError(f"{show(path)}: {where} is not a directory")
            came.append(name)
            if found is None or found.children is None:
                if not make:
                    return None
                found = _directory()
                self._implied[found] = b"/".join(came)
                self._names += len(self._implied[found])
                self._count(path)
                children[name] = found
            trail.append(found)
        return trail[-1]

    def _count(self, path: bytes) -> None:
        self._nodes += 1
        if self._nodes > self._limits.nodes:
            raise LayerError(
                f"more than {self._limits.nodes} files in one layer, at {show(path)}: refused"
            )
        if self._names > self._limits.names:
            raise LayerError(f"too many names and attributes in one layer, at {show(path)}")

    # ---- what is put there

    def _put(self, parent: Node, name: bytes, node: Node) -> None:
        assert parent.children is not None
        existing = parent.children.get(name)
        if existing is not None and existing.children is not None and node.children is not None:
            self._again(existing, node)
            return
        if existing is not None:
            self._parent = None  # it may be below
        parent.children[name] = node

    def _set_root(self, entry: Entry) -> None:
        if not entry.is_dir:
            raise LayerError(f"tar: {show(entry.path)} at offset {entry.at} has no name")
        self._again(self._root, self._node(entry))

    def _again(self, directory: Node, node: Node) -> None:
        """A directory is named again: other attributes, the same children."""
        if directory.xattrs.get(OPAQUE):
            node.xattrs[OPAQUE] = b"y"
        directory.mode, directory.uid, directory.gid = node.mode, node.uid, node.gid
        directory.mtime_ns, directory.xattrs = node.mtime_ns, node.xattrs
        self._implied.pop(directory, None)

    def _whiteout(self, entry: Entry, parents: list[bytes], name: bytes) -> None:
        if name != _OPAQUE_MARK and name.startswith(_AUFS):
            return
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise LayerError(f"{show(entry.path)}: a whiteout of nothing")
        parent = self._directory_of(parents, entry.path)
        if name == _OPAQUE_MARK:
            parent.xattrs = {**parent.xattrs, OPAQUE: b"y"}
        else:
            self._whiteouts.append((parent, hidden))

    def _hardlink(self, entry: Entry, parent: Node, name: bytes) -> None:
        names = _split(entry.linkname, "hard link")
        found: Node | None = None
        if names:
            at = self._walk_to(names[:-1], entry.path, make=False)
            found = at.children.get(names[-1]) if at is not None and at.children else None
        if found is None or found.children is not None:
            raise _no_link(entry, found)
        assert parent.children is not None
        existing = parent.children.get(name)
        if existing is not found:
            self._put(parent, name, found)

    # ---- nodes

    def _node(self, entry: Entry) -> Node:
        node = Node(
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime_ns,
            xattrs=_xattrs(entry) if entry.xattrs else {},
        )
        if stat.S_ISREG(entry.mode):
            node.size = entry.size
            if entry.segments:
                node.extents = self._place(entry)
        elif entry.is_dir:
            node.children = {}
        elif stat.S_ISLNK(entry.mode):
            if not 0 < len(entry.linkname) < _PATH_MAX:
                length = len(entry.linkname)
                raise LayerError(f"{show(entry.path)}: symbolic link with a target of {length}")
            node.target = entry.linkname
        elif not stat.S_ISFIFO(entry.mode):
            node.rdev = _device(entry)
        return node


def _no_link(entry: Entry, found: Node | None) -> LayerError:
    where = f"{show(entry.path)}: hard link to {show(entry.linkname)}"
    if found is not None:
        return LayerError(f"{where}, which is a directory")
    return LayerError(
        f"{where}, which this layer does not hold: "
        "a layer cannot link to a file of another layer, the image has to be built anew"
    )


def _directory() -> Node:
    return Node(stat.S_IFDIR | 0o755, children={})


def _split(path: bytes, what: str) -> list[bytes]:
    """The parts of `path`; LayerError for what no file system or no careful tar takes."""
    if len(path) > _PATH_MAX:
        raise LayerError(f"{show(path)}: {what} of {len(path)} bytes: {_PATH_MAX} is the most")
    parts = _parts(path)
    if b".." in parts:
        raise LayerError(f"{show(path)}: {what} with '..' in it: refused")
    if len(path) > _NAME_MAX and parts and max(map(len, parts)) > _NAME_MAX:
        raise LayerError(f"{show(path)}: {what} with a part of more than {_NAME_MAX} bytes")
    return parts


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in _NO_PARTS]


def _is_plain(name: bytes) -> bool:
    """Whether it is one part of a path, and means nothing but itself."""
    return (
        0 < len(name) <= _NAME_MAX
        and b"/" not in name
        and name not in _DOTS
        and not name.startswith(_WHITEOUT)
    )


def _device(entry: Entry) -> int:
    major, minor = entry.rdev
    if not (0 <= major <= _MAX_MAJOR and 0 <= minor <= _MAX_MINOR):
        raise LayerError(f"{show(entry.path)}: device number {major}:{minor} does not exist")
    if stat.S_ISCHR(entry.mode) and major == minor == 0:
        raise LayerError(f"{show(entry.path)}: character device 0:0 is overlayfs's own whiteout")
    return os.makedev(major, minor)


def _xattrs(entry: Entry) -> dict[bytes, bytes]:
    """Those that Linux has; others (of macOS, say) are left out, as containerd does."""
    kept = {}
    for name, value in sorted(entry.xattrs.items()):
        if not name.startswith(_NAMESPACES) and name not in _ACLS:
            continue
        if name.startswith(_OVERLAY):
            name = _OVERLAY + b"overlay." + name[len(_OVERLAY) :]
        if len(name) > _XATTR_NAME_MAX or len(value) > _XATTR_VALUE_MAX or b"\0" in name:
            raise LayerError(f"{show(entry.path)}: extended attribute {show(name)} is too long")
        kept[name] = value
    return kept


def _walk(root: Node) -> Iterator[Node]:
    todo = [root]
    while todo:
        node = todo.pop()
        yield node
        children = (node.children or {}).values()
        todo.extend(child for child in children if child.children is not None)
