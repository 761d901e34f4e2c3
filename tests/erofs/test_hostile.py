"""Images made to harm who reads them: each says what is wrong with it, and where."""

import errno
import io
import os
import stat
import struct
from collections.abc import Callable

import pytest
from tests.erofs import images, trees

from pagein.erofs.errors import ErofsError
from pagein.erofs.format import COMPACT, DIRENT, EXTENDED, crc32c
from pagein.erofs.reader import Image
from pagein.erofs.tree import Extent, Node
from pagein.erofs.writer import write

SIZE_OF_COMPACT = 8
"""Offsets of fields within an inode: i_size, i_u."""
UNION = 16


class Editor:
    """An image in memory, whose fields can be changed."""

    def __init__(self, root: Node) -> None:
        out = io.BytesIO()
        write(root, out, devices=trees.DEVICES)
        self.data = bytearray(out.getvalue())

    def image(self) -> Image:
        return images.of_bytes(bytes(self.data), trees.BLOB)

    def at(self, path: bytes) -> int:
        """Position of the inode at `path`."""
        found = self.image().lookup(path)
        extended = self.data[found.nid * 32] & 1
        return found.after - (EXTENDED.size if extended else COMPACT.size)

    def put(self, form: str, at: int, *values: int) -> None:
        struct.pack_into(form, self.data, at, *values)

    def superblock(self, form: str, at: int, *values: int) -> None:
        """Change a field of the superblock, and make its checksum right."""
        self.put(form, 1024 + at, *values)
        self.put("<I", 1028, 0)
        self.put("<I", 1028, crc32c(self.data[1024:4096]))

    def dirent(self, directory: bytes, name: bytes) -> int:
        """Position of an entry in a directory that lies beside its inode."""
        found = self.image().lookup(directory)
        start = found.after + found.xattrs
        count = struct.unpack_from("<H", self.data, start + 8)[0] // DIRENT.size
        names = sorted([b".", b"..", *(each for each, _ in self.image().scandir(found))])
        assert len(names) == count
        return start + DIRENT.size * names.index(name)


def tree() -> Node:
    mapped = Node(stat.S_IFREG, size=8192, extents=(Extent(0, 8192, 1, 0),))
    return trees.directory(
        a=trees.directory(b=trees.directory(c=trees.file(b"c"))),
        f=trees.file(b"inline", xattrs={b"user.a": b"1"}),
        link=Node(stat.S_IFLNK | 0o777, target=b"a/b"),
        loop=Node(stat.S_IFLNK | 0o777, target=b"/loop"),
        mapped=mapped,
    )


def refused(editor: Editor, act: Callable[[Image], object], text: str) -> None:
    with pytest.raises(ErofsError) as problem:
        act(editor.image())
    assert text in str(problem.value)
    assert problem.value.errno == errno.EUCLEAN


def walk(image: Image) -> list[bytes]:
    return [found.path for found in image.walk()]


def test_a_directory_below_itself() -> None:
    editor = Editor(tree())
    above = editor.image().lookup(b"/a").nid
    editor.put("<Q", editor.dirent(b"/a", b"b"), above)
    refused(editor, walk, "/a/b: a directory that is in the tree twice")


def test_the_root_below_itself() -> None:
    editor = Editor(tree())
    editor.put("<Q", editor.dirent(b"/a/b", b"c"), editor.image().root.nid)
    refused(editor, walk, "/a/b/c: a directory that is in the tree twice")


def test_a_directory_of_exabytes() -> None:
    editor = Editor(tree())
    editor.put("<I", editor.at(b"/a") + SIZE_OF_COMPACT, 0xFFFFFFFF)
    refused(editor, walk, "/a: ")
    refused(editor, lambda image: image.lookup(b"/a/b"), "/a: ")


def test_a_file_of_exabytes_is_read_in_pieces() -> None:
    node = trees.file(b"x", mtime_ns=1)
    editor = Editor(trees.directory(f=node))
    editor.put("<Q", editor.at(b"/f") + 8, (1 << 63) - 1)
    refused(editor, lambda image: image.read(image.lookup(b"/f"), 1 << 62, 1 << 16), "/f: ")
    editor.put("<Q", editor.at(b"/f") + 8, 1 << 63)
    refused(editor, walk, "/f: inode")


def test_an_inode_beyond_the_image() -> None:
    for nid in ((1 << 64) - 1, 1 << 59, 1 << 20):
        editor = Editor(tree())
        editor.put("<Q", editor.dirent(b"/a", b"b"), nid)
        refused(editor, walk, "/a/b: ")


def test_a_name_with_a_slash() -> None:
    editor = Editor(trees.directory(aXb=trees.file()))
    at = editor.data.index(b"aXb")
    editor.data[at : at + 3] = b"a/b"
    refused(editor, walk, "/: directory block 0: b'a/b' as a name")


def test_names_out_of_order() -> None:
    editor = Editor(trees.directory(first=trees.file(), other=trees.file()))
    at = editor.data.index(b"firstother")
    editor.data[at : at + 10] = b"otherfirst"
    refused(editor, walk, "b'first' is not in its order")


def test_an_entry_whose_name_is_elsewhere() -> None:
    for offset in (0, 5, 12, 4095, 0xFFFF):
        editor = Editor(tree())
        editor.put("<H", editor.dirent(b"/a", b"b") + 8, offset)
        refused(editor, walk, "/a: directory block 0: ")


def test_a_device_that_is_not_there() -> None:
    editor = Editor(tree())
    found = editor.image().lookup(b"/mapped")
    # One device takes one bit of the id; the kernel masks the others.
    editor.put("<H", found.after + 2, 3)
    assert editor.image().read(found, 0, 8192) == trees.BLOB[:8192]
    editor.superblock("<H", 86, 2)
    editor.put("<H", found.after + 2, 3)
    image = images.of_bytes(bytes(editor.data), trees.BLOB, b"")
    with pytest.raises(ErofsError, match="a chunk in device 3"):
        image.read(found, 0, 10)


def test_a_block_beyond_its_device() -> None:
    editor = Editor(tree())
    editor.put("<I", editor.image().lookup(b"/mapped").after + 4, trees.BLOB_BLOCKS - 1)
    refused(editor, lambda image: image.read(image.lookup(b"/mapped"), 0, 8192), "beyond the end")


def test_a_device_that_is_cut_off() -> None:
    data = bytes(Editor(tree()).data)
    image = images.of_bytes(data, trees.BLOB[:5000])
    found = image.lookup(b"/mapped")
    assert image.read(found, 0, 5000) == trees.BLOB[:5000]
    with pytest.raises(ErofsError, match="/mapped: device 1 ends at 5000 bytes"):
        image.read(found, 0, 5001)


def test_attributes_that_do_not_fit() -> None:
    editor = Editor(tree())
    found = editor.image().lookup(b"/f")
    header = found.after
    for form, at, value in (("<B", 4, 200), ("<H", 14, 60000), ("<B", 12, 255), ("<B", 13, 9)):
        saved = bytes(editor.data)
        editor.put(form, header + at, value)
        refused(editor, lambda image: image.xattrs(image.lookup(b"/f")), "/f: ")
        editor.data[:] = saved
    assert editor.image().xattrs(found) == {b"user.a": b"1"}


def test_a_tail_across_two_blocks() -> None:
    editor = Editor(tree())
    editor.put("<I", editor.at(b"/f") + SIZE_OF_COMPACT, 4000)
    refused(editor, lambda image: image.read(image.lookup(b"/f"), 0, 9), "/f: ")


def test_links_in_circles() -> None:
    image = Editor(tree()).image()
    with pytest.raises(OSError) as problem:
        image.lookup(b"/loop/x")
    assert problem.value.errno == errno.ELOOP
    assert image.lookup(b"/link").size == 3
    assert image.lookup(b"/link/").path == b"/a/b"
    assert image.lookup(b"/link/../../a/../../..").path == b""


@pytest.mark.parametrize(
    ("path", "number"),
    [
        (b"/nope", errno.ENOENT),
        (b"/f/x", errno.ENOTDIR),
        (b"/link/nope", errno.ENOENT),
        (b"/a/" + b"n" * 300, errno.ENOENT),
    ],
)
def test_a_path_that_is_not_there(path: bytes, number: int) -> None:
    with pytest.raises(OSError) as problem:
        Editor(tree()).image().lookup(path)
    assert problem.value.errno == number
    assert problem.value.filename == os.fsdecode(path)


@pytest.mark.parametrize(
    ("form", "at", "value", "text"),
    [
        ("<I", 0, 0, "not an EROFS image: its magic is 0x00000000"),
        ("<B", 12, 8, "blocks of 1 << 8 bytes"),
        ("<B", 12, 40, "blocks of 1 << 40 bytes"),
        ("<H", 14, 0xFFFF, "/: "),
        ("<I", 40, 0x7FFFFFFF, "/: "),
        ("<H", 88, 0xFFFF, "ends within its device table"),
    ],
)
def test_a_superblock_that_cannot_be(form: str, at: int, value: int, text: str) -> None:
    editor = Editor(tree())
    editor.superblock(form, at, value)
    refused(editor, walk, text)


def test_a_wrong_checksum() -> None:
    editor = Editor(tree())
    editor.data[2000] ^= 1
    refused(editor, walk, "superblock: its checksum is")


def test_a_feature_of_the_future() -> None:
    editor = Editor(tree())
    editor.superblock("<I", 80, 0x100 | 0xC)
    with pytest.raises(ErofsError, match="features 0x100 are not known") as problem:
        editor.image()
    assert problem.value.errno == errno.EOPNOTSUPP


def test_what_is_no_image() -> None:
    for data in (b"", b"x" * 2000, bytes(1 << 16)):
        with pytest.raises(ErofsError, match="not an EROFS image"):
            images.of_bytes(data)


def test_a_file_is_not_a_directory() -> None:
    image = Editor(tree()).image()
    with pytest.raises(NotADirectoryError):
        next(image.scandir(image.lookup(b"/f")))
