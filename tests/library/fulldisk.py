"""File systems of a few MiB, and how to fill them."""

import contextlib
import gc
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagein.library import runtime

KINDS = ("tmpfs", "ext4 -b4096", "ext4 -b1024", "btrfs")
"""Each fails in its own way: on tmpfs a load from a mapped hole is SIGBUS too, on btrfs every store
may be; ext4 leaves blocks of zeros behind, and can run full in the middle of a page."""
_LEAST = {"btrfs": 128}


@contextlib.contextmanager
def tiny(kind: str, target: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that kind, mounted on `target`, which is made."""
    target.mkdir()
    name, *options = kind.split()
    if name == "ext4":
        options += ["-m0", "-O^has_journal"]
    if name == "tmpfs":
        mount: list[str | Path] = ["-t", "tmpfs", "-o", f"size={megabytes}m", "none", target]
    else:
        if shutil.which(f"mkfs.{name}") is None:
            pytest.skip(f"needs mkfs.{name}")
        image = target.with_name(f"{target.name}.img")
        with image.open("wb") as file:
            file.truncate(max(megabytes, _LEAST.get(name, 0)) << 20)
        mkfs: list[str | Path] = [f"mkfs.{name}", "-q", *options, image]
        subprocess.run(mkfs, check=True, capture_output=True)
        mount = ["-o", "loop", image, target]
    subprocess.run(["mount", *mount], check=True)
    try:
        target.chmod(0o711)
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


@contextlib.contextmanager
def full(directory: Path, left: int = 0) -> Iterator[None]:
    """Fill a file system, all but `left` bytes, and empty it again."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.fsync(file.fileno())
        os.ftruncate(file.fileno(), max(0, file.tell() - left))
    try:
        yield
    finally:
        ballast.unlink()
        subprocess.run(["sync", "-f", directory], check=True)  # else btrfs has nothing free yet


def wait_until_unused() -> None:
    """Until the last runtime of this process has ended, and closed what it had open."""
    gc.collect()  # of files that nobody closed
    give_up = time.monotonic() + 60
    while runtime._process.living:
        assert time.monotonic() < give_up, [each.users for each in runtime._process.living]
        time.sleep(0.02)
