"""Indexing a gzip layer, beside ratarmount's index of the same file.

A layer is made of this machine's files, or given with `--layer`. Each builds its index in a process
of its own: ours with digests of layer, tar and chunks, and the EROFS metadata; ratarmount's with
its rapidgzip backend, on one thread and on all, and a table of names. What is timed is the whole
process.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from array import array
from pathlib import Path
from typing import Any

from common import MB, Spread, console, ratios, rounds, save, table, workspace

from pagein.images.layers import indexwriter
from pagein.images.layers.format import Compression, Header, Layer
from pagein.images.layers.index import Index

OURS = "pagein"
THEIRS = {"ratarmount -P 1": 1, "ratarmount -P 0": 0}  # 0: as many threads as cores
SOURCES = ("/usr/lib/python3", "/usr/share", "/usr/bin", "/usr/lib/x86_64-linux-gnu")

BUILD = """
import hashlib, os, sys
from pagein.images.layers.build import IndexBuilder
from pagein.images.layers.format import Layer
path, digest = sys.argv[1:]
layer = Layer(digest, os.path.getsize(path), "application/vnd.oci.image.layer.v1.tar+gzip", "")
with IndexBuilder(layer) as builder, open(path, "rb") as file, open(path + ".index", "w+b") as out:
    while piece := file.read(1 << 18):
        builder.feed(piece)
    builder.finish(out)
"""
RATARMOUNT = """
import sys
from ratarmountcore.mountsource.factory import open_mount_source
options = {"indexFilePath": sys.argv[2], "clearIndexCache": True, "writeIndex": True}
threads = int(sys.argv[3])
open_mount_source(sys.argv[1], parallelization=threads, **options).__exit__(None, None, None)
"""


class Contest:
    """Builds indexes; keeps the CPU seconds of each run."""

    def __init__(self, layer: Path, tar_size: int, digest: str, python: Path | None) -> None:
        self.layer = layer
        self.tar_size = tar_size
        self.cpu: dict[str, list[float]] = {name: [] for name in (OURS, *THEIRS)}
        self._digest = digest
        self._python = python

    def ours(self) -> float:
        """MB of tar a second."""
        return self._timed(OURS, [sys.executable, "-c", BUILD, str(self.layer), self._digest])

    def theirs(self, name: str) -> float:
        """MB of tar a second."""
        files = [str(self.layer), f"{self.layer}.sqlite"]
        command = [str(self._python), "-c", RATARMOUNT, *files, str(THEIRS[name])]
        return self._timed(name, command)

    def index_percent(self, suffix: str) -> float:
        """Size of an index, of the layer's."""
        size = os.path.getsize(f"{self.layer}{suffix}")
        return 100 * size / self.layer.stat().st_size

    def _timed(self, name: str, command: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.cpu[name].append(self.tar_size / MB / used)
        return self.tar_size / MB / seconds


def make_layer(directory: Path, size: int) -> Path:
    """A tar.gz of `size` bytes or so of this machine's own files, by pigz or gzip.

    Times are whole seconds without extended headers, as image builders write them.
    """
    path = directory / "layer.tar.gz"
    packer = shutil.which("pigz") or "gzip"
    with (
        path.open("wb") as out,
        subprocess.Popen([packer, "-6"], stdin=subprocess.PIPE, stdout=out) as pipe,
    ):
        assert pipe.stdin is not None
        with tarfile.open(fileobj=pipe.stdin, mode="w|", format=tarfile.GNU_FORMAT) as tar:
            left = size
            for file in (file for source in SOURCES for file in sorted(Path(source).rglob("*"))):
                if left <= 0:
                    break
                if file.is_file() or file.is_symlink():
                    tar.add(file, recursive=False)
                    left -= file.lstat().st_size + 512
    return path


def opening(directory: Path, count: int) -> dict[str, Any]:
    """Open an index of a million extents, `count` times: milliseconds, and how it grew memory."""
    extents, path = 1_000_000, directory / "million"
    blob = extents * 4096
    layer = Layer(f"sha256:{'1' * 64}", 1, "", f"sha256:{'2' * 64}")
    columns = (
        array("Q", range(0, blob, 4096)),
        array("Q", range(512, 512 + extents * 1536, 1536)),
        array("Q", [1000]) * extents,
    )
    with path.open("wb") as out:
        indexwriter.write(
            out,
            Header(layer, Compression.NONE, 0, 1 << 40, blob, 0, 65536),
            metadata=[],
            extents=columns,
            points=[],
            digests=bytes(blob // 65536 * 32),
            implied=[],
        )
    del columns
    before, times = _resident(), []
    for _ in range(count):
        begun = time.perf_counter()
        with Index(path) as index:
            times.append(1000 * (time.perf_counter() - begun))
            list(index.pieces(blob // 2, blob // 2 + 65536))
    grown = (_resident() - before) / MB
    row = [Spread.of(times).text(2), f"{grown:.1f}", f"{path.stat().st_size / MB:.1f}"]
    table("An index of 1,000,000 extents", ["open, ms", "memory, MB", "file, MB"], [row])
    return {"milliseconds": times, "grown_mb": grown}


def _unpacked_size(layer: Path) -> int:
    with gzip.open(layer) as file:
        return file.seek(0, os.SEEK_END)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=400, metavar="MB", help="of the tar")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--layer", type=Path, metavar="FILE", help="a tar.gz to use instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on which disk")
    parser.add_argument(
        "--ratarmount", type=Path, metavar="PYTHON", help="a Python that has ratarmount installed"
    )
    options = parser.parse_args()
    if options.size < 1 or options.rounds < 1:
        parser.error("--size and --rounds must be at least 1")
    return options


def main() -> None:
    """Build, compare, print."""
    import hashlib

    options = _arguments()
    figures: dict[str, Any] = {}
    with workspace(options.directory) as directory:
        with console.status("making the layer"):
            layer = make_layer(directory, options.size * MB)
            if options.layer is not None:
                shutil.copyfile(options.layer, layer)
            with layer.open("rb") as file:
                digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            tar_size = _unpacked_size(layer)
        contest = Contest(layer, tar_size, digest, options.ratarmount)
        variants = {OURS: contest.ours}
        if options.ratarmount is not None:
            variants.update({name: functools.partial(contest.theirs, name) for name in THEIRS})
        found = rounds(options.rounds, variants, "index")
        sizes = {
            name: contest.index_percent(".index" if name == OURS else ".sqlite")
            for name in variants
        }
        rows = [
            [
                name,
                Spread.of(found[name]).text(0),
                Spread.of(contest.cpu[name]).text(0),
                f"{sizes[name]:.2f}",
            ]
            for name in variants
        ]
        packed = layer.stat().st_size / MB
        title = f"Index of a gzip layer, {tar_size / MB:.0f} MB of tar, {packed:.0f} MB packed"
        table(title, ["", "MB/s", "MB per CPU second", "index, % of layer"], rows)
        figures = {"tar_size": tar_size, "mb_per_second": found, "percent": sizes}
        figures["mb_per_cpu_second"] = contest.cpu
        for name in variants.keys() & THEIRS.keys():
            ratio = figures.setdefault("ratios", {})[name] = ratios(found, OURS, name)
            console.print(f"pagein / {name}, MB/s: {ratio.text(2)} (wanted: above 1)")
        figures["opening"] = opening(directory, max(5, options.rounds))
        cpu = Spread.of(contest.cpu[OURS]).median
        console.print(f"per core: {cpu:.0f} MB/s (wanted: 100)")
        console.print(f"size: {sizes[OURS]:.2f} % (wanted: at most 4)")
    save(options.json, "index", figures)


if __name__ == "__main__":
    main()
