"""From reader to reader: cold reads of 4 KiB through a mount, whose bytes are local to the daemon.

What is measured is the whole of it: EROFS, FUSE, the kernel half, the device, the user half, and
back. Then once more with trace events, whose times say where it goes.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Spread, arguments, make_image, save, table, workspace
from resident import drain

from pagein.testing.instance import Instance

READS, _SLOT, _PAGE = 1000, 64 << 10, 4 << 10
PARTS = {
    "reader to kernel half": "cachefiles_prep_read",
    "kernel half to user half": "cachefiles_ondemand_read",
    "user half fetches and writes": "cachefiles_ondemand_fd_write",
    "written, CREAD": "cachefiles_ondemand_cread",
    "back to the reader": "",
}
"""Each part of a read, and the event that ends it; the last one ends with the read."""


@dataclass(frozen=True)
class Read:
    """One pread, by the monotonic clock, in seconds."""

    offset: int
    begun: float
    ended: float


@contextmanager
def mounted(
    directory: Path, sources: Sequence[str], number: int
) -> Iterator[tuple[Instance, Path]]:
    """The image with an empty cache, in a runtime directory of its own."""
    work = directory / f"run-{number}"
    top = work / "mnt"
    top.mkdir(parents=True)
    with Instance(work) as pagein:
        pagein.mount(sources, top)
        yield pagein, top / "big"


def scattered(path: Path) -> list[Read]:
    """Reads of single pages, each where nothing near it was read before."""
    slots = random.sample(range(path.stat().st_size // _SLOT), READS)
    found = []
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for slot in slots:
            offset = slot * _SLOT
            begun = time.monotonic()
            if len(os.pread(fd, _PAGE, offset)) != _PAGE:
                raise RuntimeError(f"a short read at {offset}")
            found.append(Read(offset, begun, time.monotonic()))
    finally:
        os.close(fd)
    return found


def parts(reads: Sequence[Read], events: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds of each part of each read, of those that have every event."""
    found: dict[str, list[float]] = defaultdict(list)
    at = 0
    for read in reads:
        first: dict[str, float] = {}
        while at < len(events) and events[at]["t"] <= read.ended:
            if events[at]["t"] >= read.begun:
                first.setdefault(events[at]["event"], events[at]["t"])
            at += 1
        if not first.keys() >= set(filter(None, PARTS.values())):
            continue
        before = read.begun
        for part, event in PARTS.items():
            until = first[event] if event else read.ended
            found[part].append(until - before)
            before = until
    return found


def main() -> None:
    """Both runs of each round."""
    options = arguments((__doc__ or "").splitlines()[0], size=2 * READS * _SLOT // 10**6, count=5)
    whole: list[float] = []
    worst: list[float] = []
    split: dict[str, list[float]] = defaultdict(list)
    with workspace(options.directory) as directory:
        meta, blob = make_image(directory, max(options.size * 10**6, 2 * READS * _SLOT))
        drain(blob)
        for number in range(options.rounds):
            with mounted(directory, [str(meta), str(blob)], 2 * number) as (_, path):
                took = sorted(read.ended - read.begun for read in scattered(path))
            whole.append(statistics.median(took))
            worst.append(took[len(took) * 95 // 100])
            with mounted(directory, [str(meta), str(blob)], 2 * number + 1) as (pagein, path):
                pagein.run("events", "on")
                reads = scattered(path)
                shown = pagein.run("events", "show", "--json").splitlines()
            for part, seconds in parts(reads, [json.loads(line) for line in shown]).items():
                split[part].append(statistics.median(seconds))
    rows = [["a cold read", *_us(whole)], ["95th of 100", *_us(worst)]]
    rows += [[f"  {part}", *_us(split[part])] for part in PARTS]
    table(f"{READS} reads of 4 KiB, one after the other", ["", "us"], rows)
    save(options.json, "reader", {"seconds": whole, "95th": worst, "parts": split})


def _us(seconds: Sequence[float]) -> list[str]:
    return [Spread.of([1e6 * each for each in seconds]).text(0)] if seconds else ["-"]


if __name__ == "__main__":
    main()
