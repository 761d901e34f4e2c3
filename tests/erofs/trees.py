"""Trees that hypothesis draws, and what they must look like, however they are read."""

import itertools
import os
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from pagein.erofs.reader import Image
from pagein.erofs.tree import Device, Extent, Node

BLOCK = 4096
BLOB_BLOCKS = 96
BLOB = b"".join(struct.pack("<I", n * 2654435761 & 0xFFFFFFFF) for n in range(BLOB_BLOCKS * 1024))
"""The data of device 1: no two blocks are the same."""
DEVICES = (Device(b"blob", BLOB_BLOCKS),)


@dataclass
class Seen:
    """A file as somebody sees it: the model, the reader, the kernel."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    nlink: int
    rdev: int = 0
    size: int = 0
    """0 for directories: how long one is, is the format's own business."""
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    content: bytes = b""


Tree = dict[bytes, Seen]


def content_of(node: Node) -> bytes:
    """What a regular file holds."""
    if node.data is not None:
        return node.data
    content = bytearray(node.size)
    for extent in node.extents:
        piece = BLOB[extent.position : extent.position + extent.length]
        content[extent.offset : extent.offset + extent.length] = piece
    return bytes(content)


def as_meant(root: Node) -> Tree:
    """The tree that was asked for."""
    names: list[tuple[bytes, Node]] = [(b"", root)]
    links: dict[Node, int] = {}
    for path, node in names:  # grows
        links[node] = links.get(node, 0) + 1
        names += [(path + b"/" + name, child) for name, child in (node.children or {}).items()]
    for _, node in names:
        if node.children is not None:
            below = node.children.values()
            links[node] = 2 + sum(child.children is not None for child in below)
    return {
        path: Seen(
            node.mode,
            node.uid,
            node.gid,
            node.mtime_ns,
            links[node],
            node.rdev,
            len(node.target) or node.size,
            node.target,
            node.xattrs,
            content_of(node) if stat.S_ISREG(node.mode) else b"",
        )
        for path, node in names
    }


def as_read(image: Image) -> Tree:
    """The tree that our reader sees."""
    seen = {}
    for found in image.walk():
        plain, link = stat.S_ISREG(found.mode), stat.S_ISLNK(found.mode)
        seen[found.path] = Seen(
            found.mode,
            found.uid,
            found.gid,
            found.mtime_ns,
            found.nlink,
            found.rdev,
            0 if found.is_dir else found.size,
            image.readlink(found) if link else b"",
            image.xattrs(found),
            image.read(found, 0, found.size) if plain else b"",
        )
    return seen


def as_mounted(top: Path) -> Tree:
    """The tree that the kernel shows."""
    seen: Tree = {}
    waiting = [b""]
    for path in waiting:  # grows
        at = os.fsencode(top) + path
        found = os.lstat(at)
        link, plain = stat.S_ISLNK(found.st_mode), stat.S_ISREG(found.st_mode)
        if stat.S_ISDIR(found.st_mode):
            waiting += [path + b"/" + name for name in os.listdir(at)]
        names = map(os.fsencode, os.listxattr(at, follow_symlinks=False))
        seen[path] = Seen(
            found.st_mode,
            found.st_uid,
            found.st_gid,
            found.st_mtime_ns,
            found.st_nlink,
            found.st_rdev,
            0 if stat.S_ISDIR(found.st_mode) else found.st_size,
            os.readlink(at) if link else b"",
            {name: os.getxattr(at, name, follow_symlinks=False) for name in names},
            Path(os.fsdecode(at)).read_bytes() if plain else b"",
        )
    return seen


def directory(**children: Node) -> Node:
    """A directory, for trees written by hand."""
    named = {name.encode(): child for name, child in children.items()}
    return Node(stat.S_IFDIR | 0o755, children=named)


def file(data: bytes = b"", **more: object) -> Node:
    """A file with its content in the image."""
    return Node(stat.S_IFREG | 0o644, size=len(data), data=data, **more)  # type: ignore[arg-type]


# ---- drawn --------------------------------------------------------------------------------------

AWKWARD = (b"-", b"!x", b"..a", b".a", b" ", b"\n", b"\xff" * 255, b"\x01", b"a" * 254, b"a" * 255)
_CLEAN = bytes.maketrans(b"/\0", b"_\x01")
NAMES = st.sampled_from(AWKWARD) | st.binary(min_size=1, max_size=40).map(
    lambda name: name.translate(_CLEAN)
).filter(lambda name: name not in {b".", b".."})
# What getxattr(2) gives back as it is: the kernel itself parses these two.
ACL = struct.pack("<I" + "HHI" * 5, 2, *(1, 6, ~0 & 0xFFFFFFFF), *(2, 4, 7), *(4, 4, 0xFFFFFFFF),
                  *(16, 6, 0xFFFFFFFF), *(32, 4, 0xFFFFFFFF))  # fmt: skip
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)

_REST = st.binary(min_size=1, max_size=30).map(lambda name: name.translate(_CLEAN))
_VALUES = st.binary(max_size=40) | st.integers(0, 3000).map(lambda size: b"v" * size)
_ANYWHERE = st.dictionaries(
    st.builds(bytes.__add__, st.sampled_from([b"trusted.", b"trusted.overlay."]), _REST),
    _VALUES,
    max_size=3,
)
_IN_FILES = st.dictionaries(_REST.map(b"user.".__add__), _VALUES, max_size=3)
_SPECIAL = st.sampled_from(
    [{}, {b"system.posix_acl_access": ACL}, {b"security.capability": CAPABILITY}]
)
_IDS = st.integers(0, 70000) | st.integers(0, (1 << 32) - 2)
_TIMES = st.sampled_from([0, 1, 10**9]) | st.integers(-(1 << 40), 1 << 40) | st.integers(0, 1 << 62)


@st.composite
def sparse(draw: st.DrawFn) -> Node:
    """A file with extents in device 1, and holes."""
    size = draw(st.integers(1, 40 * BLOCK))
    blocks = -(-size // BLOCK)
    edges = sorted(draw(st.sets(st.integers(0, blocks), max_size=8)) | {0, blocks})
    extents = []
    for begin, end in itertools.pairwise(edges):
        if draw(st.booleans()):
            length = min(end * BLOCK, size) - begin * BLOCK
            position = BLOCK * draw(st.integers(0, BLOB_BLOCKS - (end - begin)))
            extents.append(Extent(begin * BLOCK, length, 1, position))
    return Node(stat.S_IFREG, size=size, extents=tuple(extents))


def _plain(data: bytes) -> Node:
    return Node(stat.S_IFREG, size=len(data), data=data)


_SIZES = st.integers(0, 200) | st.integers(3900, 4200) | st.integers(0, 20000)
_LEAVES = st.one_of(
    _SIZES.map(lambda size: _plain(BLOB[:size])),
    st.binary(max_size=100).map(_plain),
    sparse(),
    st.binary(min_size=1, max_size=4095)
    .map(lambda target: target.replace(b"\0", b"/"))
    .map(lambda target: Node(stat.S_IFLNK, target=target)),
    st.integers(4000, 4095).map(lambda size: Node(stat.S_IFLNK, target=b"t" * size)),
    st.builds(
        lambda kind, major, minor: Node(kind, rdev=os.makedev(major, minor)),
        st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]),
        st.integers(0, 4095),
        st.integers(0, (1 << 20) - 1),
    ),
    st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK]).map(Node),
)


@st.composite
def trees(draw: st.DrawFn) -> Node:
    """A root directory with anything below it, hard links too."""
    root = Node(stat.S_IFDIR, children={})
    directories = [root]
    leaves: list[Node] = []
    _dress(draw, root)
    for _ in range(draw(st.integers(0, 25))):
        parent = draw(st.sampled_from(directories))
        assert parent.children is not None
        name = draw(NAMES)
        if name in parent.children:
            continue
        what = draw(st.sampled_from(["leaf", "leaf", "leaf", "directory", "link"]))
        if what == "link" and leaves:
            parent.children[name] = draw(st.sampled_from(leaves))
            continue
        node = Node(stat.S_IFDIR, children={}) if what == "directory" else draw(_LEAVES)
        (leaves if node.children is None else directories).append(node)
        _dress(draw, node)
        parent.children[name] = node
    return root


def _dress(draw: st.DrawFn, node: Node) -> None:
    """Everything that a file of any type has."""
    link = stat.S_ISLNK(node.mode)
    node.mode |= 0o777 if link else draw(st.integers(0, 0o7777))
    node.uid, node.gid, node.mtime_ns = draw(_IDS), draw(_IDS), draw(_TIMES)
    node.xattrs = draw(_ANYWHERE)
    if stat.S_ISREG(node.mode) or stat.S_ISDIR(node.mode):
        node.xattrs |= draw(_IN_FILES) | draw(_SPECIAL)
