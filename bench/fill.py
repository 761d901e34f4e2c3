"""How fast a cold tree of files is over a link: pagein, rclone mount, httpdirfs.

The same 400 MB of files lie behind nginx; between it and the clients is a link with a round trip
and a bandwidth of its own. Each run begins with an empty cache and an empty page cache, and is
timed from the first open to the last byte; mounting is not timed. What is compared runs in turn.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldparts import Link, link_to
from common import MB, Spread, console, save, table, workspace
from fillparts import (
    Contender,
    Mounted,
    Tree,
    fresh,
    httpdirfs,
    make_tree,
    pagein_with,
    rclone,
)
from link import link as web_server

PAGEIN, RCLONE, HTTPDIRFS = "pagein", "rclone", "httpdirfs"
CONTENDERS: dict[str, Contender] = {
    PAGEIN: pagein_with(),
    RCLONE: rclone,
    HTTPDIRFS: httpdirfs,
}
LINKS = {
    "0/unlimited": (0.0, 0.0),
    "20 ms/200 Mbit": (20.0, 200.0),
    "50 ms/100 Mbit": (50.0, 100.0),
    "80 ms/1 Gbit": (80.0, 1000.0),
}
_SEQUENTIAL_SECONDS = 6.0  # of a link's time, for one reader from start to end
_READERS, _PREADS, _PREAD = 8, 64, 64 << 10
_PAGES, _PAGE, _SLOT = 100, 4 << 10, 256 << 10


@dataclass(frozen=True)
class Run:
    """One run: `rate` is what the workload counts, per second (a latency: milliseconds)."""

    rate: float
    asked: int
    """Bytes that readers got."""
    bytes_down: int
    requests: int
    more: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """What a reader does; `unit` of its figure, and whether less is better."""

    read: Callable[[Job], tuple[float, int]]
    unit: str
    contenders: dict[str, Contender]
    digits: int = 1
    less: bool = False


@dataclass(frozen=True)
class Job:
    """A mount to read from, until `deadline` at the latest."""

    top: Path
    tree: Tree
    rate: float
    """Of the link: bytes per second, 0 for no limit."""
    rtt: float
    seed: int
    deadline: float

    def in_time(self) -> bool:
        """Whether there is time for another read."""
        return time.monotonic() < self.deadline


# ---- workloads -----------------------------------------------------------------------------------


def sequential(job: Job) -> tuple[float, int]:
    """One reader of one file, from its start: MB/s."""
    wanted = min((job.top / "big").stat().st_size, int(job.rate * _SEQUENTIAL_SECONDS) or 1 << 62)
    done, begun = 0, time.monotonic()
    fd = os.open(job.top / "big", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while done < wanted and job.in_time():
            done += len(os.read(fd, 1 << 20))
    finally:
        os.close(fd)
    return done / MB / (time.monotonic() - begun), done


def scattered(job: Job) -> tuple[float, int]:
    """8 readers, each 64 times 64 KiB anywhere in one file: reads per second."""
    size = (job.top / "big").stat().st_size

    def reader(number: int) -> int:
        numbers, done = random.Random(job.seed * _READERS + number), 0
        fd = os.open(job.top / "big", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for _ in range(_PREADS):
                if not job.in_time():
                    break
                if len(os.pread(fd, _PREAD, numbers.randrange(size - _PREAD))) != _PREAD:
                    raise RuntimeError("a short read")
                done += _PREAD
        finally:
            os.close(fd)
        return done

    begun = time.monotonic()
    with ThreadPoolExecutor(_READERS) as pool:
        done = sum(pool.map(reader, range(_READERS)))
    return done / _PREAD / (time.monotonic() - begun), done


def in_order(job: Job) -> tuple[float, int]:
    """One reader of 2,000 small files, directory by directory: files per second."""
    return _files(job, job.tree.small)


def shuffled(job: Job) -> tuple[float, int]:
    """The same in random order: files per second."""
    paths = list(job.tree.small)
    random.Random(job.seed).shuffle(paths)
    return _files(job, paths)


def _files(job: Job, paths: list[str]) -> tuple[float, int]:
    count = done = 0
    begun = time.monotonic()
    for path in paths:
        if not job.in_time():
            break
        done += len((job.top / path).read_bytes())
        count += 1
    return count / (time.monotonic() - begun), done


def pages(job: Job) -> tuple[float, int]:
    """One reader of single pages, each where nothing near it was read, with pauses: ms, 95th."""
    numbers, found = random.Random(job.seed), []
    slots = numbers.sample(range((job.top / "big").stat().st_size // _SLOT), 4 * _PAGES)
    fd = os.open(job.top / "big", os.O_RDONLY | os.O_CLOEXEC)
    here: list[int] = []
    try:
        for slot in slots:
            if len(found) >= _PAGES or not job.in_time():
                break
            time.sleep(numbers.uniform(0, 2 * job.rtt))
            begun = time.monotonic()
            if len(os.pread(fd, _PAGE, slot * _SLOT)) != _PAGE:
                raise RuntimeError("a short read")
            waited = time.monotonic() - begun
            # What the background was faster with is no cold read.
            (found if waited > job.rtt / 2 else here).append(waited)
    finally:
        os.close(fd)
    if len(found) < 20:
        raise RuntimeError(f"only {len(found)} reads were cold")
    return 1000 * statistics.quantiles(found, n=20)[-1], _PAGE * (len(found) + len(here))


WORKLOADS = {
    "sequential": Workload(sequential, "MB/s", CONTENDERS),
    "random": Workload(scattered, "reads/s", CONTENDERS),
    "files in order": Workload(in_order, "files/s", CONTENDERS),
    "files shuffled": Workload(shuffled, "files/s", CONTENDERS),
    "latency": Workload(
        pages,
        "ms, 95th of 100",
        {PAGEIN: pagein_with(), "with background": pagein_with("--background", "idle")},
        less=True,
    ),
}


# ---- running -------------------------------------------------------------------------------------


class Contest:
    """One workload on one link; keeps all runs of each contender, and why others failed."""

    def __init__(self, directory: Path, tree: Tree, place: Link, link: str, name: str) -> None:
        self.runs: dict[str, list[Run]] = {}
        self.failed: dict[str, str] = {}
        self.work = WORKLOADS[name]
        self.rtt, mbit = LINKS[link][0] / 1000, LINKS[link][1]
        self.rate = mbit * 125_000
        self.title = f"{link}, {name}"
        self._directory = directory
        self._tree = tree
        self._place = place

    def run(self, count: int, limit: float, wanted: list[str]) -> None:
        """All contenders `count` times, in turn, each round from another one on."""
        names = [each for each in self.work.contenders if each in wanted or each not in CONTENDERS]
        for number in range(count):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if name in self.failed:
                    continue
                with console.status(f"{self.title}: round {number + 1} of {count}, {name}"):
                    try:
                        found = self._one(self.work.contenders[name], number, limit)
                    except (OSError, RuntimeError) as problem:
                        self.failed[name] = str(problem)
                        continue
                self.runs.setdefault(name, []).append(found)

    def _one(self, contender: Contender, number: int, limit: float) -> Run:
        url = f"http://127.0.0.1:{self._place.port}/"
        with fresh(self._directory) as work, contender(url, work) as mounted:
            self._tree.warm()
            self._place.reset()
            job = Job(
                mounted.top, self._tree, self.rate, self.rtt, number, time.monotonic() + limit
            )
            with _watched(mounted, 3 * limit):
                rate, asked = self.work.read(job)
            counted = self._place.counters()
        return Run(rate, asked, counted["bytes_down"], counted["requests"])

    def show(self) -> None:
        """One table."""
        rows = []
        for name, runs in self.runs.items():
            rate = Spread.of([each.rate for each in runs])
            rows.append(
                [
                    name,
                    rate.text(self.work.digits),
                    self._ratio(name),
                    f"{statistics.median(each.bytes_down / each.asked for each in runs):.2f}",
                    f"{statistics.median(each.requests for each in runs):.0f}",
                ]
            )
        for name, why in self.failed.items():
            rows.append([name, "failed", "", "", ""])
            console.print(f"{name}: {why}")
        columns = ["", self.work.unit, self._base(), "bytes/asked", "requests"]
        table(self.title, columns, rows)

    def _base(self) -> str:
        return "of the link" if self.work.read is sequential and self.rate else "pagein is"

    def _ratio(self, name: str) -> str:
        mine = self.runs[name]
        if self._base() == "of the link":
            return Spread.of([each.rate * MB / self.rate for each in mine]).text(2)
        ours = self.runs.get(PAGEIN, [])
        if name == PAGEIN or len(ours) != len(mine):
            return ""
        both = zip(ours, mine, strict=True)
        better = [b.rate / a.rate if self.work.less else a.rate / b.rate for a, b in both]
        return f"{Spread.of(better).text(2)} x"


class _watched:
    """Ends a mount whose reader does not come back."""

    def __init__(self, mounted: Mounted, seconds: float) -> None:
        self._timer = threading.Timer(seconds, mounted.kill)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument(
        "--limit", type=float, default=12.0, metavar="SECONDS", help="of one run, then it is cut"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on which disk")
    parser.add_argument("--link", action="append", choices=LINKS, help="only this one")
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="only this one")
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="only this one")
    options = parser.parse_args()
    if options.rounds < 1 or options.limit <= 0:
        parser.error("--rounds must be at least 1, --limit more than 0")
    if os.geteuid():
        sys.exit("error: this mounts, and needs root")
    return options


def _contests(
    options: argparse.Namespace, directory: Path, tree: Tree, place: Link
) -> Iterator[tuple[str, Contest]]:
    wanted = options.only or [each for each in CONTENDERS if each == PAGEIN or shutil.which(each)]
    for name in options.link or LINKS:
        place.set(*LINKS[name])
        for work in options.workload or WORKLOADS:
            if work == "latency" and not LINKS[name][1]:
                continue  # without a link there is nothing to wait for
            contest = Contest(directory, tree, place, name, work)
            contest.run(options.rounds, options.limit, wanted)
            contest.show()
            yield contest.title, contest


def main() -> None:
    """Measure, print, save."""
    options = options_of()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made is taken down
    figures: dict[str, Any] = {}
    with workspace(options.directory) as directory:
        tree = make_tree(directory / "www")
        with (
            web_server(directory / "www", directory, None) as server,
            link_to(int(server.url.rstrip("/").rpartition(":")[2])) as place,
        ):
            for title, contest in _contests(options, directory, tree, place):
                figures[title] = {"runs": contest.runs, "failed": contest.failed}
    save(options.json, "fill", figures)


if __name__ == "__main__":
    main()
