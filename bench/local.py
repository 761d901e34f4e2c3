"""One sequential reader of a cold image in a local file: what the user half costs, and where.

No link and no server limit it: an origin that is a path, as on a file server that is mounted. Each
run is a new mount with an empty cache, and the origin's file is in memory. What is wanted is that
one core is enough for a stream of 500 MB/s: 2.0 CPU seconds per GB.
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
    cpu_times,
    drop_caches,
    make_image,
    save,
    table,
    workspace,
)

from pagein.testing.instance import Instance

_STREAM = 500 * MB  # bytes per second for which one core is to be enough
_LINES = 15  # of the profile


def read_once(directory: Path, image: tuple[Path, Path], size: int, profile: Path | None) -> Any:
    """Mount with an empty cache, read the file once: MB/s, CPU seconds per GB."""
    work, target = directory / "pagein", directory / "mnt"
    work.mkdir(mode=0o755)
    target.mkdir()
    try:
        with Instance(work) as pagein:
            pagein.mount([str(path) for path in image], target)
            pid = pagein.status()["daemon_pid"]
            drop_caches()
            with image[1].open("rb") as file:
                while file.read(1 << 20):
                    pass
            watching = _record(pid, profile) if profile else None
            user, system = cpu_times(pid)
            begun = time.monotonic()
            command = ["dd", f"if={target}/big", "of=/dev/null", "bs=1M", "status=none"]
            subprocess.run(command, check=True)
            seconds = time.monotonic() - begun
            now_user, now_system = cpu_times(pid)
            if watching is not None:
                watching.terminate()
                watching.wait(30)
    finally:
        shutil.rmtree(work)
        target.rmdir()
    share = 1000 * MB / size
    return {
        "mb_per_second": size / MB / seconds,
        "user": (now_user - user) * share,
        "system": (now_system - system) * share,
    }


def _record(pid: int, profile: Path) -> subprocess.Popen[bytes]:
    command = ["perf", "record", "-q", "-F", "499", "-p", str(pid), "-o", str(profile)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)  # perf says nothing when it has begun
    return process


def show_profile(profile: Path) -> None:
    """The user half's functions, those of the kernel too, that took most of its time."""
    command = ["perf", "report", "--stdio", "-q", "-i", str(profile), "--sort", "dso,symbol"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.rstrip(" -") for line in ran.stdout.splitlines() if "%" in line]
    if not lines:
        console.print(f"no profile: {(ran.stderr.strip().splitlines() or ['it is empty'])[-1]}")
        return
    console.print("The user half, from another run:")
    for line in lines[:_LINES]:
        console.print(line, markup=False, highlight=False)


def main() -> None:
    """Measure, print, save."""
    options = arguments((__doc__ or "").splitlines()[0], size=600, count=5)
    size = options.size * MB
    with workspace(options.directory) as directory:
        image = make_image(directory, size)
        runs = []
        for number in range(options.rounds):
            with console.status(f"round {number + 1} of {options.rounds}"):
                runs.append(read_once(directory, image, size, None))
        rate, user, system = (
            Spread.of([run[name] for run in runs]) for name in ("mb_per_second", "user", "system")
        )
        cost = Spread.of([run["user"] + run["system"] for run in runs])
        table(
            "A cold image in a local file, from start to end",
            ["MB/s", "user half: CPU s/GB", "user", "system"],
            [[rate.text(0), cost.text(2), user.text(2), system.text(2)]],
        )
        if shutil.which("perf"):
            profile = directory / "perf.data"
            read_once(directory, image, size, profile)
            show_profile(profile)
    save(options.json, "local", {"size": size, "runs": runs})
    cores = cost.median * _STREAM / (1000 * MB)
    console.print(f"at 500 MB/s: {cores:.2f} cores (wanted: 1)")


if __name__ == "__main__":
    main()
