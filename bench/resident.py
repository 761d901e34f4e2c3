"""Data that is resident in the cache, but not in the reader's page cache: what pagein costs then.

The same image three times: plain EROFS over plain files; pagein's mount on demand, through FUSE,
with everything fetched; pagein's direct mount of complete blobs. Read from start to end, and 4 KiB
at random places. The backing file is in the page cache (so the disk plays no part, and what is
left is software), and then not (as after a reboot).
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import (
    MB,
    Spread,
    arguments,
    drop_caches,
    make_image,
    ratios,
    rounds,
    save,
    table,
    workspace,
)
from link import Link, link

from pagein.mounts.erofs import mount_image, umount_image
from pagein.testing.instance import Instance

PLAIN, FUSE, DIRECT = "plain EROFS", "pagein, through FUSE", "pagein, direct"
RANDOM_READS = 4000
_PAGE = 4096
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Subject:
    """A mounted image, and the file that its data are read from."""

    top: Path
    backing: Path


def drain(path: Path) -> None:
    """Read a file from start to end."""
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(1 << 20))
        while file.readinto(buffer):
            pass


@contextmanager
def plain(directory: Path, meta: Path, blob: Path) -> Iterator[Subject]:
    """Kernel EROFS over the files themselves."""
    top = directory / "plain"
    top.mkdir()
    asyncio.run(mount_image(meta, [blob], top, timeout=_TIMEOUT, loop="never"))
    try:
        yield Subject(top, blob)
    finally:
        asyncio.run(umount_image(top, timeout=_TIMEOUT))
        top.rmdir()


@contextmanager
def through_pagein(directory: Path, place: Link, *, direct: bool) -> Iterator[Subject]:
    """pagein with all data fetched; `direct`: mounted once more after that."""
    work = directory / ("direct" if direct else "fuse")
    top = work / "mnt"
    top.mkdir(parents=True)
    sources = [place.url + "big.meta", place.url + "big.blob"]
    with Instance(work) as pagein:
        pagein.mount(sources, top)
        drain(top / "big")
        if direct:
            pagein.umount(top)
            pagein.mount(sources, top)
        found = pagein.status()["mounts"][0]["direct"]
        if found is not direct:
            raise RuntimeError(f"expected direct={direct} of {top}")
        files = [path for path in pagein.cache.rglob("*") if path.is_file()]
        yield Subject(top, max(files, key=lambda path: path.stat().st_size))


def runs(subjects: dict[str, Subject], *, cached: bool, scattered: bool) -> dict[str, Any]:
    """For each subject what runs it once, from the wanted state of the caches; seconds."""
    seeds = {name: iter(range(1 << 30)) for name in subjects}

    def once(name: str) -> Callable[[], float]:
        subject = subjects[name]

        def run() -> float:
            drop_caches()
            if cached:
                drain(subject.backing)
            if scattered:
                return scatter(subject.top / "big", next(seeds[name]))  # the same for all
            begun = time.monotonic()
            drain(subject.top / "big")
            return time.monotonic() - begun

        return run

    return {name: once(name) for name in subjects}


def scatter(path: Path, seed: int) -> float:
    """Seconds of 4 KiB preads at random places, without read-ahead."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        pages = os.fstat(fd).st_size // _PAGE
        places = [page * _PAGE for page in random.Random(seed).sample(range(pages), RANDOM_READS)]
        begun = time.monotonic()
        for place in places:
            os.pread(fd, _PAGE, place)
        return time.monotonic() - begun
    finally:
        os.close(fd)


def measure(
    subjects: dict[str, Subject], size: int, count: int, *, cached: bool, scattered: bool
) -> dict[str, Any]:
    """One of the four tables; its figures."""
    how = f"{RANDOM_READS} x 4 KiB at random" if scattered else "from start to end"
    state = "in" if cached else "not in"
    title = f"{how}, backing file {state} the page cache"
    found = rounds(count, runs(subjects, cached=cached, scattered=scattered), title)
    rows = []
    for name in subjects:
        if scattered:
            shown = Spread.of([s / RANDOM_READS * 1e6 for s in found[name]]).text(1)
        else:
            shown = Spread.of([size / MB / s for s in found[name]]).text(0)
        ratio = "" if name == PLAIN else ratios(found, name, PLAIN).text(2)
        rows.append([name, shown, ratio])
    table(title, ["", "us per read" if scattered else "MB/s", "time, of plain"], rows)
    kept = {name: ratios(found, name, PLAIN) for name in subjects}
    return {"what": title, "seconds": found, "ratio": kept}


def main() -> None:
    """All four tables."""
    options = arguments((__doc__ or "").splitlines()[0], size=300, count=7)
    size = max(options.size * MB, RANDOM_READS * _PAGE)
    with workspace(options.directory) as directory, ExitStack() as stack:
        meta, blob = make_image(directory, size)
        place = stack.enter_context(link(directory / "www", directory, None))
        subjects = {
            PLAIN: stack.enter_context(plain(directory, meta, blob)),
            FUSE: stack.enter_context(through_pagein(directory, place, direct=False)),
            DIRECT: stack.enter_context(through_pagein(directory, place, direct=True)),
        }
        tables = [
            measure(subjects, size, options.rounds, cached=cached, scattered=scattered)
            for cached in (True, False)
            for scattered in (False, True)
        ]
    save(options.json, "resident", {"size": size, "tables": tables})


if __name__ == "__main__":
    main()
