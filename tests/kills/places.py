"""Caches on several file systems, images, and what lies in a cache afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096


@dataclass(frozen=True)
class Image:
    """An EROFS image with its data apart, and the file in it that readers compare."""

    meta: Path
    blob: Path
    source: Path
    name: str


def make_image(directory: Path, megabytes: int) -> Image:
    """An image of one large file of random bytes and some small ones."""
    tree = directory / "tree"
    (tree / "small").mkdir(parents=True)
    draw = random.Random(megabytes)
    with (tree / "large").open("wb") as file:
        for _ in range(megabytes):
            file.write(draw.randbytes(1 << 20))
    for index in range(200):
        (tree / "small" / f"{index}").write_bytes(draw.randbytes(draw.randrange(20000)))
    meta, blob = directory / "meta.erofs", directory / "blob.erofs"
    subprocess.run(
        ["mkfs.erofs", "--chunksize=1048576", f"--blobdev={blob}", meta, tree],
        check=True,
        capture_output=True,
    )
    return Image(meta, blob, tree / "large", "large")


@contextlib.contextmanager
def cache_on(kind: str, directory: Path, megabytes: int = 600) -> Iterator[Path]:
    """An empty cache directory on a file system of the given kind (`disk`: wherever it is)."""
    cache = directory / "cache"
    cache.mkdir()
    cache.chmod(0o711)
    if kind == "disk":
        yield cache
        return
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=711", "none", cache], check=True)
    else:
        image = directory / f"{kind}.img"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, cache], check=True)
        cache.chmod(0o711)
    try:
        yield cache
    finally:
        subprocess.run(["umount", cache], check=True)


def wrong_pages(cache: Path, sources: list[Path]) -> list[str]:
    """Pages that a cache's files show as data and that are not what their source holds."""
    wrong = []
    sizes = {(s.stat().st_size + PAGE - 1) & -PAGE: s for s in sources}
    for file in (cache / "cache").glob("I*/@*/*"):
        source = sizes[file.stat().st_size]
        here, there = os.open(file, os.O_RDONLY), os.open(source, os.O_RDONLY)
        try:
            wrong += [f"{source.name} at {at}" for at in _differences(here, there)]
        finally:
            os.close(here)
            os.close(there)
    return wrong


def _differences(here: int, there: int) -> Iterator[int]:
    end, at = os.fstat(here).st_size, 0
    while at < end:
        try:
            at = os.lseek(here, at, os.SEEK_DATA)
        except OSError:
            return
        hole = os.lseek(here, at, os.SEEK_HOLE)
        for page in range(at & -PAGE, hole, PAGE):
            if os.pread(here, PAGE, page) != os.pread(there, PAGE, page).ljust(PAGE, b"\0"):
                yield page
        at = hole
