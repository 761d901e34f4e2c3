"""One read of 64 KiB through the mount of an image of which nothing is here: what that fetches.

The image of `cold_start` with layers of zstd (or of gzip, or eStargz) lies in a docker-registry, a
link that counts before it. Each read is the first one of a mount with an empty cache; what an image
has of metadata and indexes is here. Places are random within files, as many in each layer; every
fourth read lies across the border of two spans, where a file has one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import stat
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from coldimage import TAG, image
from coldparts import Link, checked, link_to, pagein, push, registry
from coldtoc import estargz
from coldzstd import zstd
from common import console, save, table, workspace

from pagein.images.foresight.tree import Tree
from pagein.images.layers.index import Index

READ = 64 << 10
KINDS = ("gzip", "zstd", "estargz")
_STILL = 0.3  # seconds in which nothing comes: then all has come


class Place(NamedTuple):
    """`offset` in a file, which layer `layer` has."""

    layer: int
    path: str
    offset: int
    border: bool


def places(top: Path, indexes: list[Index], count: int, seed: int) -> list[Place]:
    """`count` in each layer."""
    draw, tree = random.Random(seed), Tree(indexes)
    files: list[list[tuple[str, int]]] = [[] for _ in indexes]
    borders: list[list[tuple[str, int]]] = [[] for _ in indexes]
    for path, size in regular(top):
        found, _ = tree.file(os.fsencode(path))
        if found is None or size < 2 * READ:
            continue
        index = indexes[found.layer]
        files[found.layer].append((path, size))
        piece = next(index.pieces(found.start, found.start + found.length))
        after = index.point_out(index.point_before(piece.position) + 1) - piece.position
        if READ <= after <= size - READ:
            borders[found.layer].append((path, after))
    chosen = []
    for layer in range(len(indexes)):
        for number in range(count):
            if number % 4 == 3 and borders[layer]:
                path, after = draw.choice(borders[layer])
                chosen.append(Place(layer, path, after - draw.randrange(1, READ), True))
            elif files[layer]:
                ((path, size),) = draw.choices(files[layer], [size for _, size in files[layer]])
                chosen.append(Place(layer, path, draw.randrange(size - READ), False))
    return chosen


def regular(top: Path) -> Iterator[tuple[str, int]]:
    """Paths within, and sizes, of regular files."""
    for directory, _, names in os.walk(top):
        for name in sorted(names):
            path = Path(directory, name)
            found = path.lstat()
            if stat.S_ISREG(found.st_mode):
                yield f"/{path.relative_to(top)}", found.st_size


class Client:
    """pagein with a cache that keeps indexes and nothing else."""

    def __init__(self, directory: Path, name: str, link: Link) -> None:
        self._directory = directory
        self._name = name
        self._link = link
        self.top = directory / "top"
        self.top.mkdir()

    def run(self, *words: str | Path) -> None:
        """A command of it."""
        program = Path(sys.executable).with_name("pagein")
        state, cache = self._directory / "state", self._directory / "cache"
        checked([program, "--state-dir", state, "--cache", cache, *words])

    def mount(self) -> None:
        """With nothing resident."""
        for name in ("cache", "origins"):
            shutil.rmtree(self._directory / "cache" / name, ignore_errors=True)
        self.run("mount", f"docker://{self._name}", self.top)

    def read(self, place: Place) -> int:
        """Bytes of the link that one read costs, with all that comes after it."""
        path = self.top / place.path.lstrip("/")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            self._link.reset()
            if len(os.pread(fd, READ, place.offset)) != READ:
                raise RuntimeError(f"a short read of {path}")
        finally:
            os.close(fd)
        last, since = -1, time.monotonic()
        while time.monotonic() - since < _STILL:
            if (count := self._link.counters()["bytes_down"]) != last:
                last, since = count, time.monotonic()
            time.sleep(0.02)
        return last

    def indexes(self) -> list[Index]:
        """Of its layers, the lowest first."""
        found = (self._directory / "cache/images/indexes").iterdir()
        known = {index.header.layer.digest: index for index in map(Index, found)}
        documents = (self._directory / "cache/images/documents").iterdir()
        (layers,) = (
            document["layers"]
            for document in (json.loads(path.read_bytes()) for path in documents)
            if "layers" in document
        )
        return [known[layer["digest"]] for layer in layers]


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="zstd", help="of layers")
    parser.add_argument("--places", type=int, default=16, metavar="N", help="in each layer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on which disk")
    options = parser.parse_args()
    if options.places < 1:
        parser.error("--places must be at least 1")
    if os.geteuid():
        sys.exit("error: this mounts, and needs root")
    return options


def layout_of(kind: str, directory: Path) -> Path:
    """The image of `cold_start`, of a kind."""
    layout = image()
    if kind == "zstd":
        return zstd(layout, directory / "convert")
    return estargz(layout, directory / "convert") if kind == "estargz" else layout


def main() -> None:
    """Measure, print, save."""
    options = options_of()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made is taken down
    costs: list[tuple[Place, int]] = []
    with (
        workspace(options.directory) as directory,
        registry(directory / "registry") as port,
        link_to(port) as link,
    ):
        with console.status("making, pushing and indexing the image"):
            push(layout_of(options.kind, directory), TAG, f"127.0.0.1:{port}/one:{TAG}")
            if options.kind != "estargz":
                with pagein(directory / "indexer") as indexer:
                    indexer.index(f"127.0.0.1:{port}/one:{TAG}")
        with pagein(directory / "client") as mine:
            client = Client(directory / "client", f"127.0.0.1:{link.port}/one:{TAG}", link)
            client.mount()
            chosen = places(client.top, client.indexes(), options.places, options.seed)
            client.run("umount", client.top)
            for place in chosen:
                mine.ended()
                client.mount()
                try:
                    costs.append((place, client.read(place)))
                finally:
                    client.run("umount", client.top)
    show(options.kind, costs)
    save(options.json, "random_read", {"kind": options.kind, "costs": costs})


def show(kind: str, costs: list[tuple[Place, int]]) -> None:
    """The distribution, of each layer and of all."""
    groups = {
        f"layer {n}": [c for p, c in costs if p.layer == n] for n in {p.layer for p, _ in costs}
    }
    groups["across a border"] = [cost for place, cost in costs if place.border]
    groups["all"] = [cost for _, cost in costs]
    rows = []
    for name, found in groups.items():
        if found:
            high = sorted(found)[-(-95 * len(found) // 100) - 1]
            of = (statistics.mean(found), statistics.median(found), high, max(found))
            rows.append([name, str(len(found)), *(f"{each / (1 << 20):.2f}" for each in of)])
    columns = ["", "reads", "mean", "median", "95 of 100", "most"]
    table(f"{kind}: MiB that a read of 64 KiB fetches", columns, rows)


if __name__ == "__main__":
    main()
