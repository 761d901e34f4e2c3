"""`pagein extract`: everything that a file has, below the directory, and nowhere else."""

import collections
import io
import os
import random
import stat
import struct
from pathlib import Path

import pytest
from tests.erofs import images, trees
from tests.erofs.fuzz import damaged
from tests.look.commands import fails, ok, run, run_apart
from tests.look.conftest import Image

from pagein.cli.unpack import Unpacker
from pagein.erofs.tree import Node
from pagein.erofs.writer import write

NOBODY = 65534


def below(tree: trees.Tree) -> trees.Tree:
    """A tree without its top, whose attributes the target keeps, and without nlink of directories,
    which not every file system counts."""
    kept = {path: seen for path, seen in tree.items() if path}
    for seen in kept.values():
        if stat.S_ISDIR(seen.mode):
            seen.nlink = 0
    return kept


@pytest.mark.root
def test_root_gets_all_of_it(image: Image, tmp_path: Path) -> None:
    target = tmp_path / "made" / "here"
    assert ok("extract", *image.words, "--to", target) == b""
    assert below(trees.as_mounted(target)) == below(trees.as_meant(image.root))
    hole = os.stat(target / "data" / "hole")
    assert hole.st_blocks * 512 < hole.st_size
    first, second = (os.stat(target / "usr" / "bin" / name) for name in ("tool", "again"))
    assert first.st_ino == second.st_ino


@pytest.mark.root
def test_a_user_gets_what_a_user_may_have(image: Image, public_tmp: Path) -> None:
    target = public_tmp / "home"
    target.mkdir()
    os.chown(target, NOBODY, NOBODY)
    done = run_apart("extract", *image.words, "--to", target / "x", uid=NOBODY)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"pagein: {target}/x/dev/null: left out: only root makes devices\n"
    )
    made = trees.as_mounted(target / "x")
    meant = trees.as_meant(image.root)
    del meant[b"/dev/null"]
    assert made.keys() == meant.keys()
    for path, seen in below(made).items():
        assert (seen.uid, seen.gid) == (NOBODY, NOBODY)
        assert (seen.content, seen.mtime_ns) == (meant[path].content, meant[path].mtime_ns)
        assert stat.S_IFMT(seen.mode) == stat.S_IFMT(meant[path].mode)
    assert stat.S_IMODE(made[b"/usr/bin/tool"].mode) == 0o755  # not set-uid
    assert made[b"/usr/bin/tool"].xattrs == {b"user.note": b"hi"}


def test_a_file_or_a_directory_of_it(image: Image, tmp_path: Path) -> None:
    ok("extract", *image.words, "/data/large", "--to", tmp_path / "one")
    ok("extract", *image.words, "usr/bin", "--to", tmp_path / "some")
    assert os.listdir(tmp_path / "one") == ["large"]
    assert sorted(os.listdir(tmp_path / "some")) == ["again", "tool"]


def test_what_is_there_stays_unless_told(image: Image, tmp_path: Path) -> None:
    (tmp_path / "large").write_text("mine")
    words = ("extract", *image.words, "/data", "--to", tmp_path)
    assert fails(*words) == f"{tmp_path}/large: exists: --overwrite replaces it"
    assert (tmp_path / "large").read_text() == "mine"
    for name in ("empty", "hole"):
        (tmp_path / name).unlink(missing_ok=True)
    ok(*words, "--overwrite")
    ok(*words, "--overwrite")
    meant = trees.as_meant(image.root)[b"/data/large"].content
    assert (tmp_path / "large").read_bytes() == meant


def test_a_directory_is_never_replaced_by_a_file(image: Image, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    said = fails("extract", *image.words, "/data/large", "--to", tmp_path, "--overwrite")
    assert said == f"{tmp_path}/large: is a directory, where the image has something else"


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_links_in_the_target_lead_nowhere(
    image: Image, tmp_path: Path, overwrite: tuple[str, ...]
) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (outside / "large").write_text("theirs")
    (target / "data").symlink_to(outside)
    (target / "usr").symlink_to("/nowhere")
    words = ("extract", *image.words, "--to", target, *overwrite)
    done = run(*words)
    if overwrite:
        assert (target / "data").is_dir()
        assert not (target / "data").is_symlink()
    else:
        assert done.returncode == 1
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("large", "theirs")]


def test_an_image_cannot_lead_out_of_the_target(tmp_path: Path) -> None:
    """Two entries of one name, a link and then a directory: the second is not followed."""
    outside, target, made = tmp_path / "outside", tmp_path / "target", tmp_path / "image"
    outside.mkdir()
    link = Node(stat.S_IFLNK | 0o777, target=os.fsencode(outside))
    root = trees.directory(ax=link, ay=trees.directory(stolen=trees.file(b"x")))
    out = io.BytesIO()
    write(root, out)
    data = out.getvalue()
    for names in (b"axax", b"a/ay", b"..ay"):
        made.write_bytes(data.replace(b"axay", names))
        done = run("extract", made, "--to", target)
        assert done.returncode == 1
        assert done.stderr.startswith(f"pagein: {made}: /: ".encode())
        assert os.listdir(outside) == []
        assert sorted(os.listdir(tmp_path)) == ["image", "outside", "target"]


def test_a_size_that_no_disk_has_is_an_error(tmp_path: Path) -> None:
    made = tmp_path / "image"
    root = trees.directory(f=Node(stat.S_IFREG | 0o644, size=1 << 62))
    with made.open("wb") as out:
        write(root, out)
    assert fails("extract", made, "--to", tmp_path / "x").startswith(f"{tmp_path}/x/f: ")


def test_a_loop_of_directories_ends(tmp_path: Path) -> None:
    out = io.BytesIO()
    write(trees.directory(a=trees.directory(b=trees.directory())), out)
    data = bytearray(out.getvalue())
    image = images.of_bytes(bytes(data))
    inner, outer = image.lookup(b"/a/b").nid, image.lookup(b"/a").nid
    at = data.index(struct.pack("<Q", inner), image.lookup(b"/a").after + 24)
    data[at : at + 8] = struct.pack("<Q", outer)
    (tmp_path / "image").write_bytes(data)
    said = fails("extract", tmp_path / "image", "--to", tmp_path / "x")
    assert said.endswith("/a/b: a directory that is in the tree twice")


def test_damaged_images_write_nothing_outside(image: Image, tmp_path: Path) -> None:
    data, chance = image.files[0].read_bytes(), random.Random(1)
    became = collections.Counter[str]()
    for number in range(150):
        target = tmp_path / "all" / str(number)
        target.mkdir(parents=True)
        try:
            tree = images.of_bytes(damaged(data, chance), trees.BLOB)
            Unpacker(tree, str(target), overwrite=False).run(tree.root)
            became["extracted"] += 1
        except OSError:
            became["refused"] += 1
    assert min(became.values()) > 10, became
    assert os.listdir(tmp_path) == ["all"]
    assert len(os.listdir(tmp_path / "all")) == 150
