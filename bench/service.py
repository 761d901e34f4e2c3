"""What our daemon adds to one READ of the kernel: beside the least that a daemon can be, in C.

    scripts/real-kernel python bench/service.py

Both serve `/dev/cachefiles` from the same local files, which are in the page cache, for the same
reader at the same random places; each run begins with an empty cache. The service time of a READ is
that from POLLIN to CREAD: a shim below the C library notes both in either daemon (`shim.c`). What
the reader waits is measured as well, and the CPU time that the daemon has used when it is quiet
again, divided by the number of READs.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import (
    Spread,
    arguments,
    console,
    make_image,
    ratios,
    rounds,
    save,
    table,
    workspace,
)

from pagein.control import ControlError, ask
from pagein.mounts import kernel, syscalls

C, OURS = "C", "pagein"
DEVICE = "/dev/cachefiles"
LITTLE, LARGE = 4 << 10, 1 << 20
SERVICE = "service time"
WANTED = {LITTLE: 3.0, LARGE: 1.2}
_NAMES = {LITTLE: "4 KiB", LARGE: "1 MiB"}
_LITTLES, _LARGES = 300, 48  # reads of a run
_SLOT = 64 << 10  # bytes: one read of 4 KiB in each
_RECORD = struct.Struct("=4Q")  # of shim.c
_RECORDS = 65536
_PATIENCE = 30.0
_QUIET = 0.3  # seconds without a new READ, after which the CPU time is read


@dataclass
class Run:
    """One size of READ in one run of one daemon; seconds."""

    service: list[float] = field(default_factory=list)
    reader: list[float] = field(default_factory=list)
    cpu: float = 0.0  # of the daemon, per READ


_TICK = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds; of less there is no figure, and none is taken for one."""


@dataclass(frozen=True)
class Daemon:
    """A daemon that runs: the process that fetches, and the name of an image's two blobs."""

    pid: int
    keys: list[str]


class Contest:
    """The same reads through either daemon; a `Run` for each time and size."""

    def __init__(self, directory: Path, meta: Path, blob: Path) -> None:
        self.runs: dict[str, dict[int, list[Run]]] = {
            name: {LITTLE: [], LARGE: []} for name in (C, OURS)
        }
        self._directory = directory
        self._sources = [meta, blob]
        self._round = {C: 0, OURS: 0}
        self._times = directory / "times"
        flags = ["-O2", "-Wall", "-Wextra"]
        here = Path(__file__).parent
        self._program, self._shim = directory / "service", directory / "shim.so"
        _compile([*flags, "-o", str(self._program), str(here / "service.c")])
        _compile([*flags, "-shared", "-fPIC", "-o", str(self._shim), str(here / "shim.c")])

    def run(self, name: str) -> Callable[[], float]:
        """What runs one daemon once, through both sizes; seconds."""

        def once() -> float:
            begun = time.monotonic()
            work = self._directory / "work"
            work.mkdir(mode=0o755)
            self._times.write_bytes(bytes(_RECORD.size * _RECORDS))
            for source in self._sources:  # into the page cache
                source.read_bytes()
            try:
                with ExitStack() as stack:
                    start = self._c if name == C else self._ours
                    daemon = stack.enter_context(start(work))
                    tree = stack.enter_context(_mounted(daemon.keys, work))
                    self._measure(name, daemon, tree / "big")
            finally:
                _wait_for(_device_is_free)
                shutil.rmtree(work)
            self._round[name] += 1
            return time.monotonic() - begun

        return once

    def _measure(self, name: str, daemon: Daemon, path: Path) -> None:
        dice = random.Random(self._round[name])  # the same for both
        border = _LITTLES * _SLOT
        little = [at + dice.randrange(_SLOT // LITTLE) * LITTLE for at in range(0, border, _SLOT)]
        first = -(-border // LARGE)
        large = [number * LARGE for number in range(first, first + 2 * _LARGES, 2)]
        for length, places in ((LITTLE, little), (LARGE, large)):
            dice.shuffle(places)
            self.runs[name][length].append(self._reads(daemon, path, length, places))

    def _reads(self, daemon: Daemon, path: Path, length: int, places: list[int]) -> Run:
        run = Run()
        buffer = memoryview(bytearray(length))
        self._settled()
        known = len(self._noted())
        cpu = _cpu(daemon.pid)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for place in places:
                begun = time.perf_counter()
                count = os.preadv(fd, [buffer], place)
                run.reader.append(time.perf_counter() - begun)
                if count != length:
                    raise RuntimeError(f"{count} bytes of {length} at {place}")
        finally:
            os.close(fd)
        self._settled()
        noted = self._noted()[known:]
        for _, asked, ready, done in noted:
            if asked != length:
                raise RuntimeError(f"the kernel asked for {asked} bytes where {length} were read")
            run.service.append((done - ready) / 1e9)
        run.cpu = max(_cpu(daemon.pid) - cpu, _TICK) / len(noted)
        return run

    def _noted(self) -> list[tuple[int, int, int, int]]:
        """READs so far, in order of their ids: offset, length, POLLIN and CREAD in ns."""
        found = _RECORD.iter_unpack(self._times.read_bytes())
        return [(off, length, ready, done) for off, length, ready, done in found if length]

    def _settled(self) -> None:
        """Wait until no READ comes any more, and what the daemon does beside them is done."""
        count = -1
        while count != (count := len(self._noted())):
            time.sleep(_QUIET)

    # ---- the daemons

    def _environment(self) -> dict[str, str]:
        preload = {"LD_PRELOAD": str(self._shim), "PAGEIN_TIMES": str(self._times)}
        return {**os.environ, **preload}

    @contextmanager
    def _started(self, argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=self._environment())
        try:
            yield process
        finally:
            process.terminate()
            process.wait(_PATIENCE)

    @contextmanager
    def _c(self, work: Path) -> Iterator[Daemon]:
        cache, files = work / "cache", work / "files"
        cache.mkdir()
        files.mkdir()
        for source in self._sources:
            (files / source.name).symlink_to(source)
        with self._started([str(self._program), str(cache), str(files)]) as process:
            _wait_for((cache / "graveyard").exists)
            yield Daemon(process.pid, [source.name for source in self._sources])

    @contextmanager
    def _ours(self, work: Path) -> Iterator[Daemon]:
        state = work / "run"  # which root alone may enter
        places = ["--state-dir", str(state), "--cache", str(work / "cache")]
        argv = [sys.executable, "-P", "-m", "pagein.cli.main", *places, "daemon"]
        with self._started([*argv, "--device", DEVICE]):
            _wait_for(lambda: bool(_answer(state, {"op": "status"})))
            pid = _answer(state, {"op": "status"})["pid"]
            questions = [{"op": "resolve", "source": str(source)} for source in self._sources]
            yield Daemon(pid, [_answer(state, each)["cookie"] for each in questions])


def _compile(words: list[str]) -> None:
    subprocess.run(["gcc", *words], check=True)


def _answer(state: Path, question: dict[str, Any]) -> dict[str, Any]:
    """What our daemon says; nothing if it does not listen yet."""
    try:
        return ask(str(state / "daemon.sock"), question, timeout=_PATIENCE)
    except (ControlError, OSError):
        return {}


@contextmanager
def _mounted(keys: list[str], work: Path) -> Iterator[Path]:
    """The image, with one READ for whatever is read at once, up to 1 MiB."""
    target = work / "mnt"
    target.mkdir()
    job = {"fsid": keys[0], "devices": keys[1:], "domain": "bench", "label": "the image"}
    kernel.mount({**job, "target": str(target)})
    try:
        for each in Path("/sys/class/bdi").glob("erofs-*/read_ahead_kb"):
            each.write_text(f"{LARGE >> 10}\n")
        yield target
    finally:
        syscalls.umount(str(target))


def _device_is_free() -> bool:
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as problem:
        if problem.errno != errno.EBUSY:
            raise
        return False
    return True


def _wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError("the daemon did not start, or did not end")
        time.sleep(0.02)


def _cpu(pid: int) -> float:
    """CPU seconds of all threads of a process (clock_getcpuclockid(3)).

    User-Mode Linux counts in ticks of 10 ms, which is a few per cent of what a run uses.
    """
    return time.clock_gettime((~pid << 3) | 2)


def _show(runs: dict[str, dict[int, list[Run]]], length: int) -> dict[str, Any]:
    """Print the table of one size; its figures."""
    what: dict[str, Callable[[Run], float]] = {
        SERVICE: lambda run: statistics.median(run.service),
        "95th of 100": lambda run: statistics.quantiles(run.service, n=20)[18],
        "reader waits": lambda run: statistics.median(run.reader),
        "CPU per READ": lambda run: run.cpu,
    }
    rows, figures = [], {}
    for title, value in what.items():
        found = {name: [1e6 * value(run) for run in runs[name][length]] for name in (C, OURS)}
        ratio = ratios(found, OURS, C)
        shown = [Spread.of(found[name]).text(0) for name in (C, OURS)]
        rows.append([title, *shown, ratio.text(2)])
        figures[title] = {"us": found, "ratio": ratio}
    count = len(runs[C][length][0].service)
    table(f"READs of {_NAMES[length]}, us, {count} a run", ["", C, OURS, "of C"], rows)
    return figures


def main() -> None:
    """Run it all."""
    options = arguments((__doc__ or "").splitlines()[0], size=120, count=5)
    least = _LITTLES * _SLOT + (2 * _LARGES + 1) * LARGE
    if not os.path.exists(DEVICE):
        sys.exit(f"error: no {DEVICE} here: scripts/real-kernel python bench/service.py")
    with workspace(options.directory) as directory:
        meta, blob = make_image(directory, max(options.size * 1_000_000, least))
        contest = Contest(directory, meta, blob)
        rounds(options.rounds, {name: contest.run(name) for name in (C, OURS)}, "service")
        figures = {_NAMES[length]: _show(contest.runs, length) for length in (LITTLE, LARGE)}
    save(options.json, "service", {**figures, "runs": contest.runs})
    for length, wanted in WANTED.items():
        found = figures[_NAMES[length]][SERVICE]
        best = min(found["us"][OURS]) / min(found["us"][C])
        ratio = f"{found['ratio'].median:.2f} times C, best run by best run {best:.2f}"
        console.print(f"{_NAMES[length]}: {ratio} (wanted: {wanted:g} at most)")


if __name__ == "__main__":
    main()
