"""What the benchmarks share: interleaved rounds, medians with ranges, tables, JSON.

Whatever is compared is measured in turn, in the same run, in rounds; each round gives one ratio.
On a shared machine the seconds of two rounds differ by far more than their ratio does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.table import Table

from pagein.testing.instance import mounted_below

MB = 1_000_000
_TICKS = os.sysconf("SC_CLK_TCK")

console = Console(highlight=False)
console.size = ConsoleDimensions(max(console.width, 100), console.height)  # else tables are cut


@dataclass(frozen=True)
class Spread:
    """Median and extremes of some runs."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """As "median (least to most)"."""
        median, least, most = (f"{v:.{digits}f}" for v in (self.median, self.least, self.most))
        return f"{median} ({least} to {most})"


def rounds(
    count: int, variants: Mapping[str, Callable[[], float]], label: str
) -> dict[str, list[float]]:
    """Run all `variants` `count` times, in turn, each round from another one on."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(count):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            with console.status(f"{label}: round {number + 1} of {count}, {name}"):
                found[name].append(variants[name]())
    return found


def ratios(found: Mapping[str, Sequence[float]], name: str, base: str) -> Spread:
    """`name` divided by `base`, round by round."""
    return Spread.of([a / b for a, b in zip(found[name], found[base], strict=True)])


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; all columns but the first are numbers."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2))
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console.print(f"[bold]{title}[/]")
    console.print(shown)
    console.print()


def arguments(description: str, *, size: int, count: int) -> argparse.Namespace:
    """The options that every benchmark has; `size` in MB and `count` are defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", type=int, default=size, metavar="MB", help="of the file")
    parser.add_argument("--rounds", type=int, default=count, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on which disk")
    options = parser.parse_args()
    if options.size < 1 or options.rounds < 1:
        parser.error("--size and --rounds must be at least 1")
    if os.geteuid():
        sys.exit("error: this mounts, and needs root")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made is taken down
    return options


def save(path: Path | None, name: str, figures: Mapping[str, Any]) -> None:
    """Write `figures` and what they were measured on as JSON."""
    if path is None:
        return
    record = {
        "benchmark": name,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        **figures,
    }
    default: Callable[[Any], Any] = asdict
    path.write_text(json.dumps(record, indent=2, default=default) + "\n")


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A directory that everybody can read and that is removed, but never through a mount."""
    directory = Path(tempfile.mkdtemp(prefix="pagein-bench-", dir=parent))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        if mounted_below(directory):
            console.print(f"still mounted, and not removed: {directory}")
        else:
            shutil.rmtree(directory)


def make_image(directory: Path, size: int) -> tuple[Path, Path]:
    """An image with one file `big` of `size` random bytes: its metadata and its data file."""
    tree, www = directory / "tree", directory / "www"
    tree.mkdir()
    www.mkdir()
    with console.status("making the image"):
        with (tree / "big").open("wb") as file:
            for start in range(0, size, MB):
                file.write(os.urandom(min(MB, size - start)))
        meta, blob = www / "big.meta", www / "big.blob"
        command = ["mkfs.erofs", "--quiet", "--chunksize=1048576", f"--blobdev={blob}"]
        subprocess.run([*command, str(meta), str(tree)], check=True, capture_output=True)
    shutil.rmtree(tree)
    return meta, blob


def drop_caches() -> None:
    """Empty the page cache, after everything dirty is on disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def cpu_times(pid: int) -> tuple[float, float]:
    """User and system time that a process has used, in seconds (resolution: 10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / _TICKS, int(fields[12]) / _TICKS


def cpu_seconds(pid: int) -> float:
    """Both of them together."""
    return sum(cpu_times(pid))
