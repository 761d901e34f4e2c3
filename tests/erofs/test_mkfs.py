"""Images made by mkfs.erofs: our reader sees what the kernel shows."""

import errno
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from tests.erofs import images, trees

from pagein.erofs.errors import ErofsError

pytestmark = pytest.mark.root


def furnish(tree: Path) -> None:
    """A little of everything that a disk can hold."""
    tree.mkdir()
    for size in (0, 1, 100, 4000, 4095, 4096, 4097, 8192, 70_000, 300_001):
        (tree / f"size-{size}").write_bytes(trees.BLOB[:size])
    sub = tree / "sub" / "deeper"
    sub.mkdir(parents=True)
    for n in range(400):
        (sub / f"{n}-{'n' * (n % 200)}").write_bytes(b"%d" % n)
    os.link(tree / "size-100", sub / "linked")
    os.symlink("sub/deeper/7-nnnnnnn", tree / "link")
    os.symlink("x" * 4000, tree / "long")
    os.mkfifo(tree / "fifo", 0o640)
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.mknod(tree / "disk", 0o60600, os.makedev(259, 70_000))
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(tree, os.O_PATH)
        made.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    with (tree / "sparse").open("wb") as out:
        out.write(b"begin")
        out.seek(200_000)
        out.write(b"end")
    for n in range(10):
        path = tree / f"attributes-{n}"
        path.write_bytes(b"a" * n)
        os.setxattr(path, "user.shared", b"s" * 200)
        os.setxattr(path, f"user.own-{n}", b"%d" % n)
    os.setxattr(tree, "trusted.overlay.opaque", b"y")
    os.setxattr(tree / "size-4097", "security.capability", trees.CAPABILITY)
    os.setxattr(tree / "sub", "system.posix_acl_default", trees.ACL)
    os.chown(tree / "size-1", 70_000, 1 << 31)
    os.chmod(tree / "size-4096", 0o6755)
    os.utime(tree / "size-1", ns=(0, -1_500_000_000))
    os.utime(tree / "size-0", ns=(0, (1 << 33) * 10**9 + 7))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-x1",),
        ("-x-1",),
        ("-T1234567", "--ignore-mtime"),
        ("-Enoinline_data",),
        ("-Eforce-inode-extended",),
        ("--chunksize=4096",),
        ("--chunksize=65536", "--blobdev"),
        ("-Eforce-chunk-indexes", "--chunksize=8192"),
    ],
    ids=" ".join,
)
def test_the_reader_sees_what_the_kernel_shows(options: tuple[str, ...], tmp_path: Path) -> None:
    tree, files = tmp_path / "tree", [tmp_path / "image"]
    furnish(tree)
    if "--blobdev" in options:
        files.append(tmp_path / "blob")
        options = (*options[:-1], f"--blobdev={files[1]}")
    mkfs(files[0], tree, *options)
    with images.opened(files) as image, images.mounted(files) as mounted:
        shown = trees.as_mounted(mounted)
        assert trees.as_read(image) == shown
        assert len(shown) > 430
        for path in (b"/link", b"/sub/deeper/linked", b"/sub/../sub/./deeper//7-nnnnnnn"):
            found = image.lookup(path, follow=True)
            there = os.stat(os.fsencode(mounted) + path)
            assert (found.nid, found.size) == (there.st_ino, there.st_size)


def test_a_compressed_file_is_named(tmp_path: Path) -> None:
    tree, image = tmp_path / "tree", tmp_path / "image"
    tree.mkdir()
    (tree / "text").write_bytes(b"again " * 100_000)
    (tree / "small").write_bytes(os.urandom(100))
    mkfs(image, tree, "-zlz4hc")
    with images.opened([image]) as opened:
        assert [found.size for found in opened.walk()][1:] == [100, 600_000]
        with pytest.raises(ErofsError, match=r"^/text: is compressed") as problem:
            opened.read(opened.lookup(b"/text"), 0, 10)
        assert problem.value.errno == errno.EOPNOTSUPP
        assert len(opened.read(opened.lookup(b"/small"), 0, 1000)) == 100


def mkfs(image: Path, tree: Path, *options: str) -> None:
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("needs mkfs.erofs (erofs-utils)")
    command = ["mkfs.erofs", "--quiet", *options, str(image), str(tree)]
    subprocess.run(command, check=True, timeout=images.DEADLINE, capture_output=True)
