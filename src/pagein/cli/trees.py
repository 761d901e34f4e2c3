"""What `ls`, `cat`, `stat`, `du` and `extract` look into: a source as a tree of files.

`open_tree` is the one place that knows kinds of sources; the commands know `Tree` only.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from pagein.cli.settings import DEFAULT_HOSTS_DIR, Settings, settings_of
from pagein.cli.sources import is_image

if TYPE_CHECKING:
    from pagein.erofs.inode import Inode
    from pagein.erofs.superblock import Read
    from pagein.erofs.tree import Extent

PIECE = 1 << 20
"""Bytes of content that are held at a time."""

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="EROFS image, or its metadata: URL or path; docker://..., oci:...."
    ),
]
PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Within the image.")]
DeviceOption = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="BLOB", help="A data file of the image, in its order."),
]
CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache", metavar="DIR", help="Where what is fetched stays, instead of ~/.cache/pagein."
    ),
]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


class Tree(Protocol):
    """A file system that can be read; `pagein.erofs.reader.Image` is one.

    Methods raise OSError: that of the kernel for a path, ErofsError for a damaged image.
    """

    @property
    def root(self) -> Inode: ...

    def lookup(self, path: bytes, *, follow: bool = False) -> Inode: ...

    def scandir(self, directory: Inode) -> Iterator[tuple[bytes, Inode]]: ...

    def walk(self, top: Inode | None = None) -> Iterator[Inode]: ...

    def readlink(self, link: Inode) -> bytes: ...

    def xattrs(self, of: Inode) -> dict[bytes, bytes]: ...

    def extents(self, of: Inode) -> Iterator[Extent]: ...

    def read(self, of: Inode, offset: int, length: int) -> bytes: ...


@contextmanager
def open_tree(
    source: str,
    devices: Sequence[str] | None,
    *,
    cache: str | None = None,
    hosts_dir: str = DEFAULT_HOSTS_DIR,
) -> Iterator[Tree]:
    """The tree of an EROFS image, or of a container image's layers.

    Of what is remote only what is read is fetched; `cache` is for what is kept. An error of the
    image names its source. Raises OSError in one line.
    """
    if is_image(source):
        from pagein.cli.imagetree import open_image

        if devices:
            raise OSError(errno.EINVAL, "--device: a container image has its data with it")
        with open_image(source, cache=cache, hosts_dir=hosts_dir) as layers:
            yield layers
        return
    from pagein.erofs.errors import ErofsError
    from pagein.erofs.reader import Image
    from pagein.origins import redact

    with ExitStack() as opened:
        read, *others = (_open(each, cache, opened) for each in (source, *(devices or ())))
        try:
            yield Image(read, others)
        except ErofsError as problem:
            wrong_number = problem.errno == errno.EINVAL
            advice = ": name each, in its order, with --device" if wrong_number else ""
            raise OSError(problem.errno, f"{problem}{advice}", redact(source)) from None


@contextmanager
def tree_of(
    ctx: typer.Context, source: str, devices: Sequence[str] | None, cache: str | None
) -> Iterator[Tree]:
    """`open_tree` for a command; the cache is that of the user unless another one was named."""
    settings = settings_of(ctx, None, cache)
    named = cache is not None or settings.cache != Settings().cache
    cache = settings.cache if named else None
    with open_tree(source, devices, cache=cache, hosts_dir=settings.hosts_dir) as tree:
        yield tree
        sys.stdout.flush()  # a reader that has gone is met here, not when the interpreter ends


def _open(source: str, cache: str | None, opened: ExitStack) -> Read:
    if "://" in source:
        import pagein

        blob = opened.enter_context(pagein.open(source, cache=cache))
        return lambda offset, length: blob.pread(length, offset)
    # What is here needs no copy in a cache.
    kind = stat.S_IFMT(os.stat(source).st_mode)
    if kind not in {stat.S_IFREG, stat.S_IFBLK}:
        text = "is a directory: name a file in it" if kind == stat.S_IFDIR else "is not a file"
        raise OSError(errno.EINVAL, text, source)
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return lambda offset, length: os.pread(fd, length, offset)


def visits(tree: Tree, top: Inode) -> Iterator[tuple[Inode, bool]]:
    """All below `top`, itself included; directories twice: entered (True) and left (False)."""
    entered: list[Inode] = []
    for found in tree.walk(top):
        while entered and not found.path.startswith(entered[-1].path + b"/"):
            yield entered.pop(), False
        yield found, True
        if found.is_dir:
            entered.append(found)
    while entered:
        yield entered.pop(), False


def pieces(tree: Tree, of: Inode, begin: int, end: int) -> Iterator[bytes]:
    """The content of a range, a piece at a time."""
    for at in range(begin, end, PIECE):
        yield tree.read(of, at, min(PIECE, end - at))


def shown(name: bytes) -> str:
    """A name for people: what would move the cursor, or is no UTF-8, is escaped."""
    text = name.decode("utf-8", "surrogateescape")
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def described(tree: Tree, found: Inode) -> dict[str, Any]:
    """A file as a JSON object; names that are no UTF-8 have surrogates, as Python's have."""
    what: dict[str, Any] = {
        "path": os.fsdecode(found.path) or "/",
        "type": _TYPES[stat.S_IFMT(found.mode)],
        "mode": f"{stat.S_IMODE(found.mode):04o}",
        "nlink": found.nlink,
        "uid": found.uid,
        "gid": found.gid,
        "size": found.size,
        "mtime_ns": found.mtime_ns,
    }
    if stat.S_ISCHR(found.mode) or stat.S_ISBLK(found.mode):
        what["device"] = [os.major(found.rdev), os.minor(found.rdev)]
    if stat.S_ISLNK(found.mode):
        what["target"] = os.fsdecode(tree.readlink(found))
    return what


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
