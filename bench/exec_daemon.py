"""What `pagein exec-daemon` costs: a C daemon under it, beside the same one written for our device.

One cold READ of 4 KiB as its reader waits for it, with the daemon's source in the page cache; and
single system calls of a program, under the supervisor and without.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common import Spread, arguments, make_image, ratios, rounds, save, table, workspace

NATIVE, UNDER, EVERY = "written for it", "exec-daemon", "exec-daemon --every-read"
READS, _SLOT, _LITTLE = 1000, 64 << 10, 4 << 10
_CALLS = 5000
_PATIENCE = 30.0
# Prints microseconds: of an open and close of a file, of a read of a file.
_PROGRAM = f"""
import os, time
def each(call):
    begun = time.perf_counter()
    for _ in range({_CALLS}):
        call()
    return (time.perf_counter() - begun) / {_CALLS} * 1e6
fd = os.open("/etc/passwd", os.O_RDONLY)
print(each(lambda: os.close(os.open("/dev/null", os.O_RDONLY))), each(lambda: os.read(fd, 0)))
"""


class Contest:
    """The same reads, each time from an empty cache."""

    def __init__(self, directory: Path, meta: Path) -> None:
        self._directory, self._meta = directory, meta
        self._program = directory / "service"
        source = Path(__file__).with_name("service.c")
        subprocess.run(["gcc", "-O2", "-o", self._program, source], check=True)
        self.calls: dict[str, list[tuple[float, float]]] = {}
        self._round = 0

    def run(self, name: str) -> Callable[[], float]:
        """What runs one variant once; the median of its reads in seconds."""

        def once() -> float:
            self._round += 1
            work = self._directory / f"work-{self._round}"
            (work / "cache").mkdir(parents=True)
            (work / "mnt").mkdir()
            with self._served(name, work):
                return _median_read(work / "mnt" / "big")

        return once

    @contextmanager
    def _served(self, name: str, work: Path) -> Iterator[None]:
        daemon = [str(self._program), str(work / "cache"), str(self._meta.parent)]
        options = ["--every-read"] if name == EVERY else []
        words = ["device"] if name == NATIVE else ["exec-daemon", *options, "--", *daemon]
        processes = [_pagein(work, *words)]
        try:
            if name == NATIVE:
                _wait_for((work / "run/dev/cachefiles").exists, processes[0])
                processes.append(subprocess.Popen([*daemon, str(work / "run/dev")]))
            _wait_for((work / "cache/graveyard").exists, processes[0])
            mount = ["mount", "-o", "fsid=big.meta,device=big.blob", "none", str(work / "mnt")]
            assert _pagein(work, *mount).wait(_PATIENCE) == 0
            yield
            subprocess.run(["umount", work / "mnt"], check=True)
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(_PATIENCE)

    def measure_calls(self, name: str) -> Callable[[], float]:
        """What runs the program under one variant; seconds of an open."""

        def once() -> float:
            program = [sys.executable, "-c", _PROGRAM]
            if name != NATIVE:
                options = ["--every-read"] if name == EVERY else []
                program = _command(self._directory, "exec-daemon", *options, "--", *program)
            done = subprocess.run(program, check=True, capture_output=True, text=True)
            opened, read = map(float, done.stdout.split())
            self.calls.setdefault(name, []).append((opened, read))
            return opened

        return once


def _command(work: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "pagein.cli.main", "--state-dir", str(work / "run"), *words]


def _pagein(work: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(_command(work, *words), stdout=subprocess.DEVNULL)


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > give_up or process.poll() is not None:
            raise TimeoutError("the daemon did not start")
        time.sleep(0.02)


def _median_read(path: Path) -> float:
    places = [at * _SLOT + random.randrange(_SLOT // _LITTLE) * _LITTLE for at in range(READS)]
    random.shuffle(places)
    took = []
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for place in places:
            begun = time.perf_counter()
            if len(os.pread(fd, _LITTLE, place)) != _LITTLE:
                raise RuntimeError(f"a short read at {place}")
            took.append(time.perf_counter() - begun)
    finally:
        os.close(fd)
    return statistics.median(took)


def main() -> None:
    """Run it all."""
    options = arguments((__doc__ or "").splitlines()[0], size=70, count=5)
    names = (NATIVE, UNDER, EVERY)
    with workspace(options.directory) as directory:
        meta, _ = make_image(directory, max(options.size * 1_000_000, READS * _SLOT))
        (directory / "run").mkdir()
        contest = Contest(directory, meta)
        reads = rounds(options.rounds, {name: contest.run(name) for name in names}, "reads")
        calls = {name: contest.measure_calls(name) for name in names}
        rounds(options.rounds, calls, "system calls")
    rows = []
    for name in names:
        ratio = ratios(reads, name, NATIVE).text(2)
        row = [name, Spread.of([1e6 * value for value in reads[name]]).text(0), ratio]
        rows.append(
            row + [Spread.of(list(each)).text(1) for each in zip(*contest.calls[name], strict=True)]
        )
    columns = ["us", f"cold {_LITTLE >> 10} KiB", "ratio", "open, close", "read"]
    table("A C daemon on our device", columns, rows)
    save(options.json, "exec_daemon", {"reads": reads, "calls_us": contest.calls})


if __name__ == "__main__":
    main()
