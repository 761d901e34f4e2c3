"""Images on a disk: checked by fsck.erofs, mounted by the kernel, opened by our reader."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.erofs import trees

from pagein.erofs.reader import Image
from pagein.erofs.superblock import Read
from pagein.erofs.tree import Node
from pagein.erofs.writer import write
from pagein.mounts.erofs import mount_image, umount_image

DEADLINE = 60.0


def make(directory: Path, root: Node, **options: Any) -> list[Path]:
    """An image of `root` with the blob of `trees`: its files, the primary one first."""
    image, blob = directory / "image.erofs", directory / "blob"
    with image.open("wb") as out:
        length = write(root, out, devices=trees.DEVICES, **options)
    assert image.stat().st_size == length
    blob.write_bytes(trees.BLOB)
    return [image, blob]


def reads(fd: int) -> Read:
    """An open file as the reader wants it."""
    return lambda offset, length: os.pread(fd, length, offset)


@contextlib.contextmanager
def opened(files: Sequence[Path]) -> Iterator[Image]:
    """Our reader."""
    with contextlib.ExitStack() as stack:
        fds = []
        for file in files:
            fds.append(os.open(file, os.O_RDONLY | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        primary, *devices = map(reads, fds)
        yield Image(primary, devices)


def of_bytes(data: bytes, *devices: bytes) -> Image:
    """Our reader over what is in memory."""

    def reading(held: bytes) -> Read:
        return lambda offset, length: held[offset : offset + length]

    return Image(reading(data), [reading(device) for device in devices])


@contextlib.contextmanager
def mounted(files: Sequence[Path]) -> Iterator[Path]:
    """The kernel's view."""
    target = files[0].parent / "mnt"
    target.mkdir(exist_ok=True)
    asyncio.run(mount_image(files[0], list(files[1:]), target, timeout=DEADLINE))
    try:
        yield target
    finally:
        asyncio.run(umount_image(target, timeout=DEADLINE))


def fsck(files: Sequence[Path]) -> None:
    """Fails unless fsck.erofs finds nothing."""
    devices = [f"--device={file}" for file in files[1:]]
    command = ["fsck.erofs", *devices, "--extract", str(files[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<E>" not in done.stdout + done.stderr
