"""What the writer makes of single things: sizes, sharing, limits, and the same bytes each time."""

import io
import itertools
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.erofs import images, trees

from pagein.erofs.format import COMPACT, SUPER_OFFSET
from pagein.erofs.tree import Device, Extent, Node
from pagein.erofs.writer import write

UUID = bytes(range(16))
FILE = stat.S_IFREG | 0o644


def image_of(root: Node, **options: object) -> bytes:
    out = io.BytesIO()
    length = write(root, out, **options)  # type: ignore[arg-type]
    assert length == len(out.getvalue())
    assert length % 4096 == 0
    return out.getvalue()


def large(size: int, *extents: Extent) -> Node:
    return trees.directory(f=Node(FILE, size=size, extents=extents))


class Pipe(io.RawIOBase):
    """Written to, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.got = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self.got += piece
        return len(piece)


# ---- the same bytes ------------------------------------------------------------------------------


def test_the_order_of_making_does_not_show() -> None:
    names = [f"file-{n}".encode() for n in range(50)]
    there = Node(stat.S_IFDIR, children={name: trees.file(name) for name in names})
    back = Node(stat.S_IFDIR, children={name: trees.file(name) for name in reversed(names)})
    for root in (there, back):
        for node in (root.children or {}).values():
            node.xattrs = {b"user.b": b"2", b"user.a": b"1"}
    for node in (back.children or {}).values():
        node.xattrs = {b"user.a": b"1", b"user.b": b"2"}
    assert image_of(there) == image_of(back)


def test_the_uuid_is_the_contents() -> None:
    first, second = (image_of(trees.directory(f=trees.file(data))) for data in (b"1", b"2"))
    uuids = [images.of_bytes(image).superblock.uuid for image in (first, second)]
    assert uuids[0] != uuids[1]
    assert all(uuid[6] >> 4 == 8 and uuid[8] >> 6 == 2 for uuid in uuids)  # RFC 9562 5.8


def test_with_a_uuid_it_is_a_stream() -> None:
    root = trees.directory(f=trees.file(trees.BLOB[:9000]))
    pipe = Pipe()
    write(root, pipe, uuid=UUID)  # type: ignore[arg-type]
    assert bytes(pipe.got) == image_of(root, uuid=UUID)
    assert images.of_bytes(bytes(pipe.got)).superblock.uuid == UUID


def test_an_image_may_begin_within_a_file() -> None:
    root = trees.directory(f=trees.file(b"x"))
    out = io.BytesIO(b"before")
    out.seek(6)
    write(root, out)
    assert out.getvalue() == b"before" + image_of(root)


def test_volume_name_and_build_time_are_kept() -> None:
    found = images.of_bytes(image_of(trees.directory(), volume_name=b"name", build_time_ns=-5))
    assert (found.superblock.volume_name, found.superblock.build_time_ns) == (b"name", -5)


# ---- how much room things take -------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [{"uid": 65536}, {"gid": 65536}, {"mtime_ns": 1}, {"size": 1 << 32}],
    ids=lambda odd: next(iter(odd)),
)
def test_an_inode_is_as_small_as_it_can_be(odd: dict[str, Any]) -> None:
    """32 bytes, unless something does not fit into them."""
    size = odd.pop("size", 0)
    for node, extended in ((Node(FILE), False), (Node(FILE, size=size, **odd), True)):
        data = image_of(trees.directory(f=node))
        image = images.of_bytes(data)
        found = image.lookup(b"/f")
        assert (found.after - found.nid * 32 > COMPACT.size) is extended
        assert (found.uid, found.gid, found.mtime_ns) == (node.uid, node.gid, node.mtime_ns)


def test_a_contiguous_file_has_one_index() -> None:
    size = 5 << 40
    root = large(size, Extent(0, 4 << 40, 1, 0), Extent(4 << 40, 1 << 40, 1, 4 << 40))
    data = image_of(root, devices=[Device(b"d", 5 << 28)])
    assert len(data) == 2 * 4096
    (extent,) = images.of_bytes(data, b"").extents(images.of_bytes(data, b"").lookup(b"/f"))
    assert (extent.offset, extent.length, extent.device, extent.position) == (0, size, 1, 0)


def test_chunks_are_as_large_as_the_holes_allow() -> None:
    mib = 1 << 20
    root = large(8 * mib, Extent(2 * mib, 2 * mib, 1, 4096), Extent(6 * mib, mib, 1, 0))
    image = images.of_bytes(image_of(root, devices=[Device(b"d", 0)]), b"")
    found = list(image.extents(image.lookup(b"/f")))
    assert [(extent.offset, extent.length, extent.position) for extent in found] == [
        (2 * mib, mib, 4096),
        (3 * mib, mib, 4096 + mib),
        (6 * mib, mib, 0),
    ]


def test_attributes_of_several_files_are_there_once() -> None:
    value = os.urandom(3000)
    files = {f"f{n}": trees.file(xattrs={b"user.big": value}) for n in range(100)}
    data = image_of(trees.directory(**files))
    assert data.count(value) == 1
    image = images.of_bytes(data)
    assert image.xattrs(image.lookup(b"/f99")) == {b"user.big": value}


def test_300_attributes_of_two_files() -> None:
    """One byte counts the shared ones; the rest lie with the file."""
    xattrs = {f"user.{n}".encode(): b"%d" % n for n in range(300)}
    root = trees.directory(a=trees.file(xattrs=xattrs), b=trees.file(xattrs=xattrs))
    image = images.of_bytes(image_of(root))
    assert image.xattrs(image.lookup(b"/b")) == xattrs


def test_extents_of_the_image_itself_count_as_its_length() -> None:
    root = large(8192, Extent(0, 8192, 0, 1 << 20))
    data = image_of(root)
    assert images.of_bytes(data).superblock.length == (1 << 20) + 8192
    appended = data.ljust(1 << 20, b"\0") + trees.BLOB[:8192]
    image = images.of_bytes(appended)
    assert image.read(image.lookup(b"/f"), 0, 8192) == trees.BLOB[:8192]


# ---- large, deep, many ---------------------------------------------------------------------------


def crowd(count: int) -> Iterator[bytes]:
    """Names of all lengths."""
    for n in range(count):
        yield b"%d-" % n + b"x" * (n % 240)


@pytest.mark.root
def test_a_large_directory_through_the_kernel(tmp_path: Path) -> None:
    names = {*crowd(3000), b"!", b"-", b"...", b"..!"}
    root = Node(stat.S_IFDIR | 0o755, children={name: trees.file(name) for name in names})
    files = images.make(tmp_path, root)
    images.fsck(files)
    with images.mounted(files) as mounted, images.opened(files) as image:
        assert set(os.listdir(os.fsencode(mounted))) == names
        for name in names:
            assert Path(os.fsdecode(os.fsencode(mounted) + b"/" + name)).read_bytes() == name
            found = image.child(image.root, name)
            assert found is not None
            assert image.read(found, 0, 300) == name
        assert image.child(image.root, b"-1") is None


@pytest.mark.root
def test_a_file_of_terabytes_through_the_kernel(tmp_path: Path) -> None:
    size, far = (8 << 40) - 4096 + 100, 7 << 40
    end = (8 << 40) - (1 << 34)
    root = large(size, Extent(far, 1 << 34, 1, 0), Extent(end, (1 << 34) - 3996, 1, 0))
    assert root.children is not None
    image, blob = tmp_path / "image", tmp_path / "blob"
    with image.open("wb") as out:
        write(root, out, devices=[Device(b"d", 1 << 22)])
    with blob.open("wb") as out:
        out.write(trees.BLOB)
        out.truncate(1 << 34)
    with images.mounted([image, blob]) as mounted, images.opened([image, blob]) as opened:
        found = opened.lookup(b"/f")
        with (mounted / "f").open("rb") as stream:
            assert os.fstat(stream.fileno()).st_size == size
            for at in (0, far - 4096, far + 12288, end - 100, end, size - 100):
                expected = os.pread(stream.fileno(), 5000, at)
                assert opened.read(found, at, 5000) == expected
            assert os.pread(stream.fileno(), 5000, size - 100) == bytes(100)
            assert os.pread(stream.fileno(), 4096, far) == trees.BLOB[:4096]


def test_a_tree_5000_deep() -> None:
    root = leaf = trees.directory()
    for _ in range(5000):
        below = trees.directory()
        leaf.children = {b"d": below}
        leaf = below
    image = images.of_bytes(image_of(root))
    assert sum(1 for _ in image.walk()) == 5001


# ---- what EROFS cannot hold ----------------------------------------------------------------------

BLOCKS = Device(b"d", 16)


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (Node(FILE, uid=1 << 32), "owner 4294967296:0"),
        (Node(FILE, gid=-1), "owner 0:-1"),
        (Node(FILE, mtime_ns=(1 << 63) * 10**9), "a time of"),
        (Node(0o644), "mode 0o644"),
        (Node(FILE, size=1, data=b"12"), "2 bytes of data in a file of 1"),
        (Node(FILE, size=1 << 63), "a size of"),
        (Node(FILE, size=5, data=b"12345", extents=(Extent(0, 5, 1, 0),)), "both data and extents"),
        (Node(stat.S_IFLNK, target=b""), "a symbolic link of 0 bytes"),
        (Node(stat.S_IFLNK, target=b"x" * 4096), "a symbolic link of 4096 bytes"),
        (Node(stat.S_IFLNK, target=b"a\0b"), "a NUL"),
        (Node(stat.S_IFDIR), "directories, and nothing else"),
        (Node(FILE, children={}), "directories, and nothing else"),
        (Node(stat.S_IFIFO, size=1), "not a regular file"),
        (Node(stat.S_IFCHR, rdev=os.makedev(4096, 0)), "no device 4096:0"),
        (Node(stat.S_IFBLK, rdev=os.makedev(0, 1 << 20)), "no device 0:1048576"),
        (Node(FILE, xattrs={b"system.other": b""}), "no such namespace"),
        (Node(FILE, xattrs={b"lustre.x": b""}), "no such namespace"),
        (Node(FILE, xattrs={b"user.": b""}), "no such namespace"),
        (Node(FILE, xattrs={b"user." + b"n" * 256: b""}), "too long"),
        (Node(FILE, xattrs={b"user.n": bytes(65536)}), "65536 bytes"),
        (Node(FILE, size=4096, extents=(Extent(0, 4096, 2, 0),)), "not there"),
        (Node(FILE, size=4096, extents=(Extent(0, 4096, 1, 100),)), "begin at a block"),
        (Node(FILE, size=9000, extents=(Extent(0, 5000, 1, 0),)), "end at a block"),
        (Node(FILE, size=4096, extents=(Extent(0, 8192, 1, 0),)), "end at a block"),
        (Node(FILE, size=4096, extents=(Extent(0, 0, 1, 0),)), "end at a block"),
        (Node(FILE, size=8192, extents=(Extent(0, 8192, 1, 61440),)), "beyond its device"),
        (
            Node(FILE, size=8192, extents=(Extent(0, 8192, 1, 0), Extent(4096, 4096, 1, 0))),
            "overlap",
        ),
        (Node(FILE, size=1 << 40, extents=(Extent(4096, 4096, 1, 0),)), "too sparse"),
    ],
)
def test_what_does_not_fit_is_named(node: Node, text: str) -> None:
    root = trees.directory(some=trees.directory(thing=node))
    out = io.BytesIO()
    with pytest.raises(ValueError, match=r"^/some/thing: ") as problem:
        write(root, out, devices=[BLOCKS])
    assert text in str(problem.value)
    assert out.getvalue() == b""


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256])
def test_a_name_that_no_file_can_have_is_refused(name: bytes) -> None:
    root = trees.directory(some=Node(stat.S_IFDIR, children={name: trees.file()}))
    with pytest.raises(ValueError, match=r"^/some: "):
        write(root, io.BytesIO())


def test_a_directory_has_one_name() -> None:
    twice = trees.directory()
    loop = trees.directory()
    loop.children = {b"again": loop}
    for root in (trees.directory(a=twice, b=trees.directory(c=twice)), loop):
        with pytest.raises(ValueError, match="cannot have a second name"):
            write(root, io.BytesIO())


@pytest.mark.parametrize(
    "options",
    [
        {"uuid": b"short"},
        {"volume_name": b"n" * 16},
        {"build_time_ns": 1 << 100},
        {"devices": [Device(b"t" * 65, 1)]},
        {"devices": [Device(b"t", 1 << 32)]},
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        image_of(trees.directory(), **options)


def test_the_root_is_a_directory() -> None:
    with pytest.raises(ValueError, match=r"^/: "):
        write(trees.file(), io.BytesIO())


# ---- 200,000 files -------------------------------------------------------------------------------


def city(count: int) -> Node:
    """As a layer has it: directories of a hundred, times of their own, data in a device."""
    root = Node(stat.S_IFDIR | 0o755, children={})
    position = itertools.count(0, 8192)
    for n in range(count // 100):
        names = (b"module_%d.py" % m for m in range(99))
        street = {
            name: Node(
                FILE,
                mtime_ns=n * 10**9 + 1,
                size=5000,
                extents=(Extent(0, 5000, 1, next(position)),),
            )
            for name in names
        }
        assert root.children is not None
        root.children[b"package-%d" % n] = Node(stat.S_IFDIR | 0o755, children=street)
    return root


MEASURE = """
import sys, time
from tests.memory import peak
from tests.erofs.test_writer import city
from pagein.erofs.tree import Device
from pagein.erofs.writer import write
root = city(int(sys.argv[1]))
begin = time.process_time()
with open(sys.argv[2], "wb") as out:
    write(root, out, devices=[Device(b"data", 0)])
took = time.process_time() - begin
print(took, peak())
"""


@pytest.mark.long
def test_200_000_files_take_less_than_400_mib(tmp_path: Path) -> None:
    image = tmp_path / "image"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "200000", str(image)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    took, memory = map(float, done.stdout.split())
    speed = f"{200_000 / took:.0f} files/s of processor time"
    print(f"{speed}, {memory / (1 << 20):.0f} MiB, {image.stat().st_size} bytes")
    assert memory < 400 << 20
    assert struct.unpack_from("<I", image.read_bytes()[SUPER_OFFSET:])[0] == 0xE0F5E1E2
