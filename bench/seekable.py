"""Random access to a .tar.gz and to .tar.zst files, beside the libraries that do the same.

A tar of this machine's files is compressed as gzip -6, zstd -3, and, if skopeo is here, as skopeo
writes zstd layers; each zstd file is one frame. Every library builds its index, opens the file with
it, and reads: 64 KiB at random places, then all of it. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import MB, Spread, console, save, table, workspace
from index import SOURCES
from onelayer import TAG, layout_of

OURS = "pagein"
SKOPEO = "skopeo zstd"
RIVALS = {
    "gzip": ("indexed_gzip", "rapidgzip", "ratarmount"),
    "zstd": ("indexed_zstd", "ratarmount"),
}
READ = 64 << 10
WORKER = Path(__file__).with_name("seekable_work.py")


def make_tar(path: Path, size: int) -> None:
    """A tar of `size` bytes or so of this machine's own files."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        left = size
        for file in (file for source in SOURCES for file in sorted(Path(source).rglob("*"))):
            if left <= 0:
                break
            if file.is_file() and not file.is_symlink():
                tar.add(file, recursive=False)
                left -= file.lstat().st_size + 512


def make_places(tar: Path, count: int) -> list[tuple[int, int, str, int]]:
    """Places of 64 KiB within members, drawn by their size, the same in every run."""
    draw = random.Random(1)
    with tarfile.open(tar) as opened:
        members = [each for each in opened if each.isreg() and each.size >= READ]
    places = []
    for member in draw.choices(members, [each.size for each in members], k=count):
        at = draw.randrange(member.size - READ + 1)
        places.append((member.offset_data + at, READ, f"/{member.name}", at))
    return places


def skopeo_zstd(tar: Path, out: Path) -> None:
    """The tar as skopeo compresses a layer: copied from an OCI layout that holds it."""
    layout, copied = out.with_suffix(".oci"), out.with_suffix(".dir")
    layer = out.with_suffix(".layer")
    shutil.copyfile(tar, layer)
    layout_of(tar, layer, "application/vnd.oci.image.layer.v1.tar", layout)
    squeeze = ["--dest-compress", "--dest-compress-format", "zstd"]
    command = ["skopeo", "--insecure-policy", "copy", "-q", *squeeze]
    subprocess.run([*command, f"oci:{layout}:{TAG}", f"dir:{copied}"], check=True)
    found = json.loads((copied / "manifest.json").read_text())["layers"][0]["digest"]
    (copied / found.partition(":")[2]).rename(out)
    shutil.rmtree(layout)
    shutil.rmtree(copied)


def compress(tar: Path, wanted: list[str]) -> dict[str, Path]:
    """The compressed files, by what made them; those that are there stay."""
    made = {
        "gzip -6": Path(f"{tar}.gz"),
        "zstd -3": Path(f"{tar}.zst"),
        SKOPEO: Path(f"{tar}.skopeo.zst"),
    }
    made = {name: path for name, path in made.items() if not wanted or name in wanted}
    for name, path in made.items():
        if path.exists():
            continue
        if name == SKOPEO:
            skopeo_zstd(tar, path)
            continue
        program, level = name.split()
        with path.open("wb") as out:
            subprocess.run([program, level, "-c", str(tar)], stdout=out, check=True)
    return made


class Contest:
    """One compressed file; the figures of each library, a list of rounds for each kind of work."""

    def __init__(self, path: Path, pythons: dict[str, str], places: Path, few: Path) -> None:
        self.path = path
        self.libraries = list(pythons)
        self.found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self._pythons = pythons
        self._places = places
        self._few = few

    def run(self, work: str, count: int, label: str) -> None:
        """Each library `count` times, in turn, each round from another one on."""
        names = self.libraries
        for number in range(count):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                with console.status(f"{label}: {work}, round {number + 1} of {count}, {name}"):
                    found = self.found.setdefault(name, {}).setdefault(work, [])
                    found.append(self._one(work, name))

    def _one(self, work: str, name: str) -> dict[str, Any]:
        # Who decodes a frame, or opens a member, for each read would need minutes.
        slow = name == "ratarmount" or (name != OURS and self.path.suffix == ".zst")
        places = self._few if slow and work == "random" else self._places
        index = f"{self.path}.{name}.index"
        words = [work, name, str(self.path), index, str(places)]
        done = subprocess.run(
            [self._pythons[name], str(WORKER), *words], stdout=subprocess.PIPE, check=True
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))  # some of them talk

    def figures(self, name: str, work: str, key: Callable[[dict[str, Any]], float]) -> list[float]:
        """One figure of each round."""
        return [key(each) for each in self.found.get(name, {}).get(work, [])]


def percentile(times: list[float], share: float) -> float:
    """Of some milliseconds."""
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def show(label: str, contest: Contest, tar_size: int) -> None:
    """A table of one file: medians over the rounds; of the reads of a round median, mean, 95 %."""
    packed = contest.path.stat().st_size
    rows = []
    for name in contest.libraries:

        def median(work: str, key: Callable[[dict[str, Any]], float], digits: int) -> str:
            found = contest.figures(name, work, key)  # noqa: B023
            return f"{statistics.median(found):.{digits}f}" if found else ""

        rows.append(
            [
                name,
                median("build", lambda each: tar_size / MB / each["seconds"], 0),
                median("build", lambda each: 100 * each["size"] / packed, 2),
                median("random", lambda each: each["opened"], 1),
                median("random", lambda each: statistics.median(each["milliseconds"]), 2),
                median("random", lambda each: statistics.mean(each["milliseconds"]), 2),
                median("random", lambda each: percentile(each["milliseconds"], 0.95), 1),
                median("sequential", lambda each: each["mb_per_second"], 0),
            ]
        )
    title = f"{label}: {packed / MB:.0f} MB, {tar_size / MB:.0f} MB of tar"
    columns = ("build, MB/s", "index, %", "open, ms", "read, ms", "mean", "95 %", "all, MB/s")
    table(title, ["", *columns], rows)


def compare(label: str, contest: Contest) -> dict[str, Spread]:
    """How many times longer a random read of each rival takes, round by round."""
    found = {}
    mean = {
        name: contest.figures(name, "random", lambda each: statistics.mean(each["milliseconds"]))
        for name in contest.libraries
    }
    for name in contest.libraries:
        if name != OURS:
            pairs = zip(mean[name], mean[OURS], strict=True)
            found[name] = Spread.of([theirs / ours for theirs, ours in pairs])
            console.print(f"{label}: {name} / pagein, mean random read: {found[name].text(1)}")
    return found


def agree(contest: Contest) -> None:
    """All that read the same places got the same bytes."""
    digests: dict[int, set[str]] = {}
    for works in contest.found.values():
        for each in works["random"]:
            digests.setdefault(len(each["milliseconds"]), set()).add(each["digest"])
    if any(len(found) > 1 for found in digests.values()):
        sys.exit(f"error: {contest.path}: not all libraries read the same")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=400, metavar="MB", help="of the tar")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--reads", type=int, default=1000, metavar="N", help="at random places")
    parser.add_argument(
        "--few", type=int, default=20, metavar="N", help="the same, of rivals that take long"
    )
    parser.add_argument("--python", metavar="PYTHON", help="one that has the rivals installed")
    parser.add_argument("--only", action="append", metavar="KIND", help="such as 'gzip -6'")
    parser.add_argument("--made", type=Path, metavar="DIR", help="keep the files here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on which disk")
    options = parser.parse_args()
    if min(options.size, options.rounds, options.reads, options.few) < 1:
        parser.error("numbers must be at least 1")
    return options


def main() -> None:
    """Make the files, compare, print."""
    options = _arguments()
    figures: dict[str, Any] = {}
    with workspace(options.directory) as directory:
        tar = (options.made or directory) / "layer.tar"
        with console.status("making the files"):
            if not tar.exists():
                tar.parent.mkdir(exist_ok=True)
                make_tar(tar, options.size * MB)
            places = make_places(tar, options.reads)
            all_places, few = directory / "places.json", directory / "few.json"
            all_places.write_text(json.dumps(places))
            few.write_text(json.dumps(places[: options.few]))
            files = compress(tar, options.only or [])
        for label, path in files.items():
            kind = "gzip" if path.suffix == ".gz" else "zstd"
            rivals = RIVALS[kind] if options.python else ()
            pythons = {OURS: sys.executable, **dict.fromkeys(rivals, options.python)}
            contest = Contest(path, pythons, all_places, few)
            for work in ("build", "random"):
                contest.run(work, options.rounds, label)
            agree(contest)
            contest.libraries = [name for name in pythons if name != "ratarmount"]
            contest.run("sequential", options.rounds, label)
            contest.libraries = list(pythons)
            show(label, contest, tar.stat().st_size)
            figures[label] = {"found": contest.found, "ratios": compare(label, contest)}
    save(options.json, "seekable", figures)


if __name__ == "__main__":
    main()
