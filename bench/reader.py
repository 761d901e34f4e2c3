"""From reader to reader: cold reads of 4 KiB through a mount, whose bytes are local to the daemon.

What is measured is the whole of it: EROFS, FUSE, the kernel half, the device, the user half, and
back. Then once more with trace events, whose times say where it goes. And both with everybody on
one processor: a read goes from hand to hand some ten times, and what it costs to wake up another
processor, which is the machine's affair, comes that often.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
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


@dataclass
class Figures:
    """Of each round, in seconds."""

    whole: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)
    split: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def run(self, directory: Path, sources: Sequence[str], number: int) -> None:
        """One round: with events and without."""
        with mounted(directory, sources, 2 * number) as (_, path):
            took = sorted(read.ended - read.begun for read in scattered(path))
        self.whole.append(statistics.median(took))
        self.worst.append(took[len(took) * 95 // 100])
        with mounted(directory, sources, 2 * number + 1) as (pagein, path):
            pagein.run("events", "on")
            reads = scattered(path)
            shown = pagein.run("events", "show", "--json").splitlines()
        for part, seconds in parts(reads, [json.loads(line) for line in shown]).items():
            self.split[part].append(statistics.median(seconds))


@contextmanager
def one_processor() -> Iterator[None]:
    """This process and what it starts stay on one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


PLACES = {"wherever": nullcontext, "one processor": one_processor}


def main() -> None:
    """Every run of each round."""
    options = arguments((__doc__ or "").splitlines()[0], size=2 * READS * _SLOT // 10**6, count=5)
    found = {name: Figures() for name in PLACES}
    with workspace(options.directory) as directory:
        meta, blob = make_image(directory, max(options.size * 10**6, 2 * READS * _SLOT))
        drain(blob)
        for number in range(options.rounds):
            for at, (name, place) in enumerate(PLACES.items()):
                with place():
                    found[name].run(directory, [str(meta), str(blob)], len(PLACES) * number + at)
    rows = [["a cold read", *(_us(each.whole) for each in found.values())]]
    rows.append(["95th of 100", *(_us(each.worst) for each in found.values())])
    for part in PARTS:
        rows += [[f"  {part}", *(_us(each.split[part]) for each in found.values())]]
    table(f"{READS} reads of 4 KiB, one after the other, us", ["", *PLACES], rows)
    save(options.json, "reader", {name: vars(each) for name, each in found.items()})


def _us(seconds: Sequence[float]) -> str:
    return Spread.of([1e6 * each for each in seconds]).text(0) if seconds else "-"


if __name__ == "__main__":
    main()
