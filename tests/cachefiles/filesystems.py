"""File systems to put a cache on, each a mount of its own for one test."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagein.mounts import syscalls

SIZES = {"ext4": 64 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}
"""Bytes of an image, sparse: what each file system needs at least."""
PLAIN = ("ext4", "xfs", "btrfs", "tmpfs")


def run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, timeout=200, capture_output=True)


@contextlib.contextmanager
def mounted(directory: Path, fstype: str, options: str = "") -> Iterator[Path]:
    """Mount a new file system of that type below `directory`; skips where there is none."""
    target = directory / fstype
    target.mkdir()
    if fstype == "tmpfs":
        try:
            syscalls.mount("tmpfs", str(target), "tmpfs", 0, options or "size=64m")
        except OSError as problem:
            pytest.skip(f"no tmpfs with {options}: {problem.strerror}")
    else:
        if shutil.which(f"mkfs.{fstype}") is None:
            pytest.skip(f"needs mkfs.{fstype}")
        image = directory / f"{fstype}.img"
        with open(image, "wb") as file:
            os.truncate(file.fileno(), SIZES[fstype])
        run(f"mkfs.{fstype}", "-q", image)
        run("mount", "-o", "loop", "-t", fstype, image, target)
    try:
        yield target
    finally:
        syscalls.umount(str(target))
