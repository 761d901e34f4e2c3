"""Members become a tree: names, whiteouts, links, and what must not get in."""

import os
import stat

import pytest

from pagein.erofs.tree import Extent, Node
from pagein.images.layers.blob import BlobBuilder
from pagein.images.layers.entry import Entry, Limits, Segment
from pagein.images.layers.errors import LayerError
from pagein.images.layers.tree import OPAQUE, Tree, TreeBuilder

FILE, DIR, LINK, CHAR = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR


def file(path: bytes, **more: object) -> Entry:
    return Entry(path, FILE | 0o644, 0, **more)  # type: ignore[arg-type]


def directory(path: bytes, mode: int = 0o755) -> Entry:
    return Entry(path, DIR | mode, 0)


def symlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, LINK | 0o777, 0, linkname=target)


def hardlink(path: bytes, target: bytes) -> Entry:
    return file(path, linkname=target, hardlink=True)


def build(*entries: Entry, limits: Limits | None = None) -> Tree:
    builder = TreeBuilder(lambda _: (), limits or Limits())
    for entry in entries:
        builder.add(entry)
    return builder.finish()


def names(tree: Tree) -> list[bytes]:
    found: list[bytes] = []
    todo: list[tuple[bytes, Node]] = [(b"", tree.root)]
    while todo:
        path, node = todo.pop()
        for name, child in (node.children or {}).items():
            found.append(path + name)
            todo.append((path + name + b"/", child))
    return sorted(found)


def at(tree: Tree, path: bytes) -> Node:
    node = tree.root
    for name in path.split(b"/"):
        assert node.children is not None
        node = node.children[name]
    return node


def test_names_are_cleaned() -> None:
    tree = build(directory(b"./"), file(b"/abs"), file(b"././a//b/./c"), directory(b"d///"))
    assert names(tree) == [b"a", b"a/b", b"a/b/c", b"abs", b"d"]
    assert tree.implied == [b"a", b"a/b"]


def test_missing_parents_belong_to_root() -> None:
    tree = build(file(b"usr/bin/x"))
    assert at(tree, b"usr/bin").mode == DIR | 0o755
    assert tree.implied == [b"", b"usr", b"usr/bin"]
    tree = build(file(b"usr/bin/x"), directory(b"usr", 0o700), directory(b"."))
    assert at(tree, b"usr").mode == DIR | 0o700
    assert tree.implied == [b"usr/bin"]


def test_the_last_one_wins() -> None:
    tree = build(file(b"a", size=1), directory(b"d"), file(b"d/x"), symlink(b"a", b"t"), file(b"d"))
    assert names(tree) == [b"a", b"d"]
    assert at(tree, b"a").target == b"t"
    assert stat.S_ISREG(at(tree, b"d").mode)


def test_a_directory_named_again_keeps_what_is_in_it() -> None:
    tree = build(directory(b"d"), file(b"d/x"), directory(b"d", 0o700), file(b"d/y"))
    assert names(tree) == [b"d", b"d/x", b"d/y"]
    assert at(tree, b"d").mode == DIR | 0o700


def test_a_name_is_followed_inside_the_root() -> None:
    tree = build(
        directory(b"usr"),
        symlink(b"abs", b"/usr"),
        symlink(b"up", b"../../../usr"),
        symlink(b"deep", b"abs/../up/./more"),
        file(b"abs/a"),
        file(b"up/b"),
        file(b"deep/c"),
    )
    below = [b"usr/a", b"usr/b", b"usr/more", b"usr/more/c"]
    assert names(tree) == [b"abs", b"deep", b"up", b"usr", *below]
    assert tree.implied == [b"", b"usr/more"]


def test_hard_links_are_one_node() -> None:
    tree = build(file(b"a"), hardlink(b"b", b"./a"), symlink(b"s", b"a"), hardlink(b"t", b"/s"))
    assert at(tree, b"a") is at(tree, b"b")
    assert at(tree, b"s") is at(tree, b"t")
    assert names(build(file(b"a"), hardlink(b"a", b"a"))) == [b"a"]


# ---- overlayfs ----------------------------------------------------------------------------------


def test_whiteouts_take_overlayfs_form() -> None:
    tree = build(file(b"d/.wh.gone"), file(b"e/.wh..wh..opq"), file(b".wh..wh.plnk/1.2"))
    assert names(tree) == [b"d", b"d/gone", b"e"]
    gone = at(tree, b"d/gone")
    assert (stat.S_IFMT(gone.mode), gone.rdev) == (CHAR, 0)
    assert at(tree, b"e").xattrs == {OPAQUE: b"y"}


@pytest.mark.parametrize("first", [True, False])
def test_what_a_layer_holds_its_own_whiteout_does_not_hide(first: bool) -> None:
    whiteouts, files = [file(b".wh.f"), file(b".wh.d")], [file(b"f"), file(b"d/x")]
    tree = build(*whiteouts, *files) if first else build(*files, *whiteouts)
    assert names(tree) == [b"d", b"d/x", b"f"]
    assert at(tree, b"d").xattrs == {OPAQUE: b"y"}
    assert at(tree, b"f").xattrs == {}


@pytest.mark.parametrize("first", [True, False])
def test_an_opaque_directory_stays_so(first: bool) -> None:
    mark, again = file(b"d/.wh..wh..opq"), directory(b"d", 0o700)
    tree = build(mark, again) if first else build(again, mark)
    assert (at(tree, b"d").xattrs, at(tree, b"d").mode) == ({OPAQUE: b"y"}, DIR | 0o700)


def test_attributes_of_the_archive_are_not_overlayfs_own() -> None:
    given = {OPAQUE: b"y", b"user.overlay.x": b"1", b"security.capability": b"c", b"com.apple": b""}
    entry = Entry(b"d", DIR | 0o755, 0, xattrs=given)
    assert at(build(entry), b"d").xattrs == {
        b"trusted.overlay.overlay.opaque": b"y",
        b"user.overlay.x": b"1",
        b"security.capability": b"c",
    }


# ---- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([file(b"../x")], "'../x': name with '..'"),
        ([file(b"a/../../x")], "with '..'"),
        ([file(b"a"), hardlink(b"b", b"../a")], "'../a': hard link with '..'"),
        (
            [hardlink(b"new", b"usr/old")],
            "'new': hard link to 'usr/old', which this layer does not",
        ),
        ([directory(b"d"), hardlink(b"b", b"d")], "which is a directory"),
        ([file(b"a"), file(b"a/b")], "'a/b': 'a' is not a directory"),
        ([file(b"")], "has no name"),
        ([symlink(b"./", b"x")], "has no name"),
        ([file(b"n" * 256)], "more than 255 bytes"),
        ([file(b"n/" * 3000)], "name of 6000 bytes"),
        ([symlink(b"a", b"")], "with a target of 0"),
        ([symlink(b"a", b"t" * 4096)], "with a target of 4096"),
        ([symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x")], "too many symbolic links"),
        ([Entry(b"c", CHAR, 0)], "'c': character device 0:0 is overlayfs's own"),
        ([Entry(b"c", CHAR, 0, rdev=(4096, 0))], "device number 4096:0"),
        ([file(b".wh.")], "a whiteout of nothing"),
        ([file(b"d/.wh...")], "a whiteout of nothing"),
        ([file(b"x", xattrs={b"user." + b"n" * 255: b""})], "is too long"),
        ([file(b"x\n\x1b[2J/..")], r"'x\\n\\x1b\[2J/..'"),
    ],
)
def test_what_has_no_place_is_refused_by_name(entries: list[Entry], says: str) -> None:
    with pytest.raises(LayerError, match=says):
        build(*entries)


def test_few_members_cannot_make_many_nodes() -> None:
    limits = Limits(nodes=1000)
    deep = [file(b"%d/" % n + b"a/" * 400 + b"x") for n in range(3)]
    with pytest.raises(LayerError, match="more than 1000 files"):
        build(*deep, limits=limits)
    with pytest.raises(LayerError, match="too many names"):
        build(file(b"a/" * 1000 + b"x"), limits=Limits(names=500_000))
    with pytest.raises(LayerError, match="too many names"):
        build(*[file(b"%0200d" % n) for n in range(100)], limits=Limits(names=10_000))


# ---- where the data goes ------------------------------------------------------------------------


def place(*files: Entry) -> tuple[list[tuple[Extent, ...]], BlobBuilder]:
    blob = BlobBuilder()
    return [blob.place(entry) for entry in files], blob


def test_each_file_begins_a_page() -> None:
    one, two = (file(b"f", size=n, segments=(Segment(0, 512 * n, n),)) for n in (5000, 1))
    (first, second), blob = place(one, two)
    assert first == (Extent(0, 5000, 1, 0),)
    assert second == (Extent(0, 1, 1, 8192),)
    assert blob.size == 12288
    assert list(blob.positions) == [512 * 5000, 512]


def test_pieces_in_one_page_share_it() -> None:
    pieces = (Segment(10, 512, 20), Segment(100, 532, 5), Segment(40_000, 537, 9_000))
    (extents,), blob = place(file(b"s", size=100_000, segments=pieces))
    assert extents == (Extent(0, 4096, 1, 0), Extent(36_864, 12_288, 1, 4096))
    assert list(blob.offsets) == [10, 100, 4096 + 40_000 - 36_864]


def test_a_sparse_giant_costs_little() -> None:
    size = 300 << 30
    pieces = (Segment(4096, 512, 100), Segment(size - 5000, 612, 5000))
    (extents,), blob = place(file(b"lastlog", size=size, segments=pieces))
    unit = extents[0].length
    assert size // unit <= 1 << 16
    assert all(extent.offset % unit == 0 for extent in extents)
    assert extents[-1].offset + extents[-1].length == size
    assert blob.size <= 2 * unit
    many = tuple(Segment(n << 30, 512 + n, 1) for n in range(290))
    with pytest.raises(LayerError, match="'lastlog': too many pieces"):
        place(file(b"lastlog", size=size, segments=many))


def test_devices_keep_their_numbers() -> None:
    entry = Entry(b"c", CHAR | 0o600, 0, rdev=(4095, 1_048_575))
    assert at(build(entry), b"c").rdev == os.makedev(4095, 1_048_575)
