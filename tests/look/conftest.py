"""An image, in two files, for every test."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.erofs import images, trees

from pagein.erofs.tree import Extent, Node
from pagein.testing.webserver import WebServer, serve_in_thread

LARGE = 40 * 4096
TIME = 1_700_000_000_123_456_789


def sample() -> Node:
    """A small system, with one of each kind of file."""
    large = Node(stat.S_IFREG | 0o640, 7, 8, TIME, size=LARGE, extents=(Extent(0, LARGE, 1, 4096),))
    tool = trees.file(b"#!/bin/sh\n", xattrs={b"user.note": b"hi", b"trusted.t": b"\1"})
    tool.mode = stat.S_IFREG | 0o4755
    hole = Node(
        stat.S_IFREG | 0o444,
        mtime_ns=TIME,
        size=100 * 4096 + 5,
        extents=(Extent(50 * 4096, 4096, 1, 0),),
    )
    root = trees.directory(
        bin=Node(stat.S_IFLNK | 0o777, target=b"usr/bin"),
        usr=trees.directory(bin=trees.directory(tool=tool, again=tool)),
        data=trees.directory(large=large, hole=hole, empty=trees.file()),
        dev=trees.directory(
            null=Node(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3)),
            pipe=Node(stat.S_IFIFO | 0o620),
            socket=Node(stat.S_IFSOCK | 0o755),
        ),
        **{"new\nline": trees.file(b"odd")},
    )
    assert root.children is not None
    root.children[b"not-utf8-\xff"] = trees.file(b"bytes")
    return root


@dataclass(frozen=True)
class Image:
    """The files of an image, and the words that name them on a command line."""

    root: Node
    files: list[Path]

    @property
    def words(self) -> tuple[object, ...]:
        return (self.files[0], "--device", self.files[1])


@pytest.fixture
def image(public_tmp: Path) -> Image:
    root = sample()
    return Image(root, images.make(public_tmp, root))


@pytest.fixture
def server() -> Iterator[WebServer]:
    with serve_in_thread(WebServer({})) as running:
        yield running
