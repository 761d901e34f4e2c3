"""Layers by every encoder: what an index costs, and 1,000 random reads through a mount.

One tar of this machine's files is compressed in each way that layers are made; each is pushed as an
image of one layer to a docker-registry, indexed, and mounted over a link without limits that
counts, with nothing here. What is read is compared with the tar, byte by byte.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import zstandard
from coldparts import Link, link_to, push, registry
from common import MB, console, drop_caches, save, table, workspace
from onelayer import TAG, layout_of

from pagein.images.layers.build import IndexBuilder
from pagein.images.layers.format import Layer
from pagein.images.layers.index import Index
from pagein.testing.instance import Instance
from seekable import make_places, make_tar, skopeo_zstd

Encode = Callable[[Path, Path], None]


def by_command(*command: str) -> Encode:
    """A filter from standard input to standard output."""

    def encode(tar: Path, out: Path) -> None:
        with tar.open("rb") as source, out.open("wb") as target:
            subprocess.run([*command], stdin=source, stdout=target, check=True)

    return encode


def by_library(*, sized: bool) -> Encode:
    """python-zstandard, with the size of the content in its frame or without."""

    def encode(tar: Path, out: Path) -> None:
        size = tar.stat().st_size if sized else -1
        with tar.open("rb") as source, out.open("wb") as target:
            zstandard.ZstdCompressor(level=6).copy_stream(source, target, size=size)

    return encode


ENCODERS: dict[str, Encode] = {
    "gzip -6": by_command("gzip", "-6", "-c"),
    "pigz": by_command("pigz", "-c"),
    "zstd -3": by_command("zstd", "-q", "-c", "-3"),
    "zstd -10": by_command("zstd", "-q", "-c", "-10"),
    "zstd -19": by_command("zstd", "-q", "-c", "-19"),
    "zstd --long=27": by_command("zstd", "-q", "-c", "--long=27"),
    "zstd -T2": by_command("zstd", "-q", "-c", "-T2"),
    "pzstd": by_command("pzstd", "-q", "-c", "-p", "2"),
    "python-zstandard, sized": by_library(sized=True),
    "python-zstandard, not sized": by_library(sized=False),
    "skopeo (klauspost)": skopeo_zstd,
}


@dataclass(frozen=True)
class Built:
    """An index: its size and points, and what making it took, in seconds of all processors."""

    size: int
    points: int
    cpu: float


@dataclass(frozen=True)
class Reads:
    """What the reads took, in seconds, and what came over the link for them."""

    seconds: float
    fetched: int


def media_type(name: str) -> str:
    """That of a layer."""
    packed = "gzip" if name in ("gzip -6", "pigz") else "zstd"
    return f"application/vnd.oci.image.layer.v1.tar+{packed}"


def build(path: str, kind: str) -> Built:
    """Index a layer, in a process of its own."""
    digest = f"sha256:{os.path.basename(path)}"
    begun = time.process_time()
    layer = Layer(digest, os.path.getsize(path), kind, "")
    with IndexBuilder(layer) as builder, open(path, "rb") as file, open(f"{path}.i", "w+b") as out:
        while piece := file.read(1 << 20):
            builder.feed(piece)
        size = builder.finish(out).size
    cpu = time.process_time() - begun
    with Index(Path(f"{path}.i")) as index:
        points = index.points
    os.unlink(f"{path}.i")
    return Built(size, points, cpu)


def indexed(path: Path, kind: str) -> Built:
    """As `build`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(build, str(path), kind).result()


# ---- reading -------------------------------------------------------------------------------------


Place = tuple[int, int, str, int]
"""Offset in the tar, length, path within the image, offset in that file."""


def read_places(top: Path, tar: Path, places: list[Place]) -> None:
    """Read all places through the mount; RuntimeError if one is not what the tar has there."""
    with tar.open("rb") as right:
        for at, length, path, offset in places:
            fd = os.open(top / path.lstrip("/"), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
                if os.pread(fd, length, offset) != os.pread(right.fileno(), length, at):
                    raise RuntimeError(f"wrong bytes: {path} at {offset}")
            finally:
                os.close(fd)


def mounted(directory: Path, source: str, link: Link, work: Callable[[Path], None]) -> Reads:
    """Do some work on a mount with nothing here."""
    directory.mkdir(mode=0o755)
    top = directory / "top"
    top.mkdir()
    with Instance(directory) as pagein:
        pagein.mount([source], top)
        drop_caches()
        link.reset()
        begun = time.monotonic()
        work(top)
        found = Reads(time.monotonic() - begun, link.counters()["bytes_down"])
    shutil.rmtree(directory)
    return found


@dataclass(frozen=True)
class Found:
    """One encoder: bytes of its layer, and what was measured."""

    layer: int
    built: Built
    reads: Reads


def measure(name: str, tar: Path, places: list[Place], port: int, link: Link) -> Found:
    """Encode, index, push, mount and read."""
    directory, repository = tar.parent / "work", f"{list(ENCODERS).index(name)}"
    directory.mkdir(mode=0o755)
    layer = directory / "layer"
    with console.status(f"{name}: compressing"):
        ENCODERS[name](tar, layer)
        blob = layout_of(tar, layer, media_type(name), directory / "layout")
    with console.status(f"{name}: indexing"):
        built, size = indexed(blob, media_type(name)), blob.stat().st_size
        push(directory / "layout", TAG, f"127.0.0.1:{port}/{repository}:{TAG}")
        with Instance(directory / "indexer") as indexer:
            indexer.run("index", "--push", f"docker://127.0.0.1:{port}/{repository}:{TAG}")
    with console.status(f"{name}: reading"):
        source = f"docker://127.0.0.1:{link.port}/{repository}:{TAG}"
        client = directory / "client"
        reads = mounted(client, source, link, lambda top: read_places(top, tar, places))
    shutil.rmtree(directory)
    return Found(size, built, reads)


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=100, metavar="MB", help="of the tar")
    parser.add_argument("--reads", type=int, default=1000, metavar="N")
    parser.add_argument("--only", action="append", choices=ENCODERS, help="only this one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on which disk")
    options = parser.parse_args()
    if options.size < 1 or options.reads < 1:
        parser.error("--size and --reads must be at least 1")
    if os.geteuid():
        sys.exit("error: this mounts, and needs root")
    return options


def show(size: int, count: int, found: dict[str, Found]) -> None:
    """One row an encoder."""
    rows = [
        [
            name,
            f"{each.layer / MB:.1f}",
            f"{each.built.points}",
            f"{100 * each.built.size / each.layer:.2f}",
            f"{size / MB / each.built.cpu:.0f}",
            f"{count / each.reads.seconds:.0f}",
            f"{each.reads.fetched / MB:.1f}",
        ]
        for name, each in found.items()
    ]
    columns = ["", "MB", "points", "index, %", "built, MB/CPU s", "reads/s", "MB came"]
    table(f"a tar of {size / MB:.0f} MB; {count} cold reads of 64 KiB, all right", columns, rows)


def main() -> None:
    """Measure, print, save."""
    options = options_of()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made is taken down
    found: dict[str, Found] = {}
    with (
        workspace(options.directory) as directory,
        registry(directory / "registry") as port,
        link_to(port) as link,
    ):
        tar = directory / "tar"
        with console.status("making the tar"):
            make_tar(tar, options.size * MB)
            places, size = make_places(tar, options.reads), tar.stat().st_size
        for name in options.only or ENCODERS:
            found[name] = measure(name, tar, places, port, link)
    show(size, options.reads, found)
    save(options.json, "encoders", {"tar": size, "reads": options.reads, "found": found})


if __name__ == "__main__":
    main()
