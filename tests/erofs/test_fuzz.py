"""Damaged images: an error or a result, never anything else, and never much memory."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.erofs import images, trees

from pagein.erofs.tree import Extent, Node

ROOT = Path(__file__).parents[2]


def sample() -> Node:
    """A little of everything that an image can hold."""
    hard = trees.file(b"linked")
    shared = {b"user.shared": b"x" * 100, b"security.capability": trees.CAPABILITY}
    mapped = Node(
        stat.S_IFREG | 0o600,
        size=5 * 4096 + 7,
        extents=(Extent(0, 8192, 1, 4096), Extent(16384, 4103, 1, 0)),
    )
    inner = trees.directory(
        **{f"file-{n}": trees.file(bytes([n]) * n, xattrs=shared) for n in range(1, 12)}
    )
    return trees.directory(
        inner=inner,
        large=trees.file(trees.BLOB[:10000], mtime_ns=1),
        hard=hard,
        link=Node(stat.S_IFLNK | 0o777, target=b"inner/file-1"),
        longlink=Node(stat.S_IFLNK | 0o777, target=b"x" * 4000),
        mapped=mapped,
        node=Node(stat.S_IFCHR | 0o600, rdev=os.makedev(1, 3)),
        other=trees.directory(hard=hard, deep=trees.directory(deeper=trees.directory())),
        zero=Node(stat.S_IFREG, size=1 << 20, xattrs={b"trusted.own": b"y"}),
        many=trees.directory(**{f"{n:04}-{'n' * 100}": trees.file() for n in range(60)}),
    )


def fuzz(directory: Path, count: int, seed: int, limit: float) -> None:
    """Run the fuzzer, in a process that has but 512 MiB and a minute of processor time."""
    files = images.make(directory, sample())
    command = [sys.executable, "-m", "tests.erofs.fuzz", str(count), str(seed), *map(str, files)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    print(done.stdout)


def test_500_damaged_images(tmp_path: Path) -> None:
    fuzz(tmp_path, 500, seed=1, limit=250)


@pytest.mark.long
def test_10_000_damaged_images_within_a_minute(tmp_path: Path) -> None:
    fuzz(tmp_path, 10_000, seed=int.from_bytes(os.urandom(4)), limit=900)
