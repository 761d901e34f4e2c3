"""One sequential reader of a cold image, against `curl -o FILE` of the same bytes.

First through a link of 1 Gbit/s, then without a limit, with the CPU time of everybody concerned.
Each run of the mount has an empty cache; what is timed is the reader from start to end, not the
mount. curl writes to the file system that the cache is on.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from common import (
    MB,
    Spread,
    arguments,
    console,
    cpu_seconds,
    drop_caches,
    make_image,
    ratios,
    rounds,
    save,
    table,
    workspace,
)
from link import Link, link

from pagein.testing.instance import Instance

CURL, MOUNT = "curl -o FILE", "pagein, mounted"
PROCESSES = ("server", "kernel half", "user half", "reader")


class Contest:
    """The two ways to the same bytes; MB/s of each run, and what the mount's runs cost."""

    def __init__(self, place: Link, directory: Path, size: int, blob: Path) -> None:
        self.place = place
        self.size = size
        self.cpu: dict[str, list[float]] = {name: [] for name in PROCESSES}
        self._directory = directory
        self._blob = blob

    def curl(self) -> float:
        """Download the data file; MB/s."""
        target = self._directory / "downloaded"
        self._prepare()
        url = self.place.url + "big.blob"
        seconds, _ = _timed(["curl", "--noproxy", "*", "-sf", "-o", str(target), url])
        target.unlink()
        return self.size / MB / seconds

    def mount(self) -> float:
        """Mount with an empty cache and read the file once; MB/s."""
        work, target = self._directory / "pagein", self._directory / "mnt"
        work.mkdir(mode=0o755)
        target.mkdir()
        try:
            with Instance(work) as pagein:
                pagein.mount([self.place.url + "big.meta", self.place.url + "big.blob"], target)
                found = pagein.status()
                pids = [self.place.server_pid, found["pid"], found["daemon_pid"]]
                self._prepare()
                before = [cpu_seconds(pid) for pid in pids]
                command = ["dd", f"if={target}/big", "of=/dev/null", "bs=1M", "status=none"]
                seconds, reader = _timed(command)
                spent = [cpu_seconds(pid) - was for pid, was in zip(pids, before, strict=True)]
        finally:
            shutil.rmtree(work)
            target.rmdir()
        for name, used in zip(PROCESSES, [*spent, reader], strict=True):
            self.cpu[name].append(used)
        return self.size / MB / seconds

    def cost(self, process: str) -> str:
        """CPU seconds that a process of the mount's runs used for 1 GB."""
        return f"{1000 * MB / self.size * Spread.of(self.cpu[process]).median:.2f}"

    def _prepare(self) -> None:
        """What went before must not be written while this is timed; the server reads memory."""
        drop_caches()
        with self._blob.open("rb") as file:
            while file.read(1 << 20):
                pass


def _timed(command: list[str]) -> tuple[float, float]:
    """Seconds that a command takes, and seconds of CPU that it uses."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu


def contest(title: str, contest: Contest, count: int) -> dict[str, Any]:
    """Run it, print it, return its figures."""
    found = rounds(count, {CURL: contest.curl, MOUNT: contest.mount}, title)
    ratio = ratios(found, MOUNT, CURL)
    table(
        f"{title}: {contest.place.what}",
        ["", "MB/s", "of curl"],
        [
            [CURL, Spread.of(found[CURL]).text(0), ""],
            [MOUNT, Spread.of(found[MOUNT]).text(0), ratio.text(2)],
        ],
    )
    return {"link": contest.place.what, "mb_per_second": found, "ratio": ratio, "cpu": contest.cpu}


def main() -> None:
    """Run both parts."""
    options = arguments((__doc__ or "").splitlines()[0], size=600, count=5)
    size = options.size * MB
    figures: dict[str, Any] = {"size": size}
    with workspace(options.directory) as directory:
        _, blob = make_image(directory, size)
        with link(directory / "www", directory, 1000) as place:
            limited = Contest(place, directory, size, blob)
            figures["1 Gbit/s"] = contest("1 Gbit/s", limited, options.rounds)
        with link(directory / "www", directory, None) as place:
            free = Contest(place, directory, size, blob)
            figures["no limit"] = contest("no limit", free, options.rounds)
    costs = [
        [
            name,
            *(f"{1000 * MB / size * Spread.of(c.cpu[name]).median:.2f}" for c in (limited, free)),
        ]
        for name in PROCESSES
    ]
    table("CPU seconds per GB read through the mount", ["", "1 Gbit/s", "no limit"], costs)
    save(options.json, "sequential", figures)
    target = figures["1 Gbit/s"]["ratio"].median
    console.print(f"1 Gbit/s: {target:.2f} of curl (wanted: 0.9)")
    speed = Spread.of(figures["no limit"]["mb_per_second"][MOUNT]).median
    console.print(f"no limit: {speed:.0f} MB/s (wanted: 150)")


if __name__ == "__main__":
    main()
