"""scripts/demo without root: the image's two files, read through `pagein.open`."""

from __future__ import annotations

import hashlib
import io
from contextlib import ExitStack
from pathlib import Path

from demo_server import Server
from demo_show import DemoError, Show, Step

import pagein

_PIECE = 1 << 20
_SPOTS = 8


def through_the_library(show: Show, image: list[Path], server: Server, tmp: Path) -> None:
    """Open the files by URL, read spots and then all of them; once more without the server."""
    cache = str(tmp / "cache")
    urls = [server.url + file.name for file in image]
    total = sum(file.stat().st_size for file in image)
    sums = [_checksum(file) for file in image]

    with ExitStack() as stack:
        with show.step("opened both files of the image"):
            remote = [stack.enter_context(pagein.open(url, cache=cache)) for url in urls]
        with show.step(f"read 4 KiB at {_SPOTS} places, all right"):
            _read_spots(image[-1], remote[-1])
        with show.step("read all, both checksums equal") as step:
            _read_all(step, remote, sums, total)
    with show.step("closed, server stopped"):
        server.stop()
    show.fetched = None
    with ExitStack() as stack:
        with show.step("opened again, from the cache"):
            remote = [stack.enter_context(pagein.open(url, cache=cache)) for url in urls]
        with show.step("read all, both checksums equal") as step:
            _read_all(step, remote, sums, total)


def _checksum(file: Path) -> bytes:
    with file.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _read_spots(local: Path, remote: io.RawIOBase) -> None:
    size = local.stat().st_size
    with local.open("rb") as source:
        for number in range(_SPOTS):
            at = number * size // _SPOTS
            source.seek(at)
            remote.seek(at)
            if _read(remote, 4096) != source.read(4096):
                raise DemoError(f"{local.name}: 4 KiB at {at} are not what they were")


def _read(stream: io.RawIOBase, count: int) -> bytes:
    """Up to `count` bytes, fewer only at the end: a raw read may return less."""
    parts = []
    while count and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _read_all(step: Step, remote: list[pagein.BlobFile], sums: list[bytes], total: int) -> None:
    done = 0
    for stream, wanted in zip(remote, sums, strict=True):
        stream.seek(0)
        found = hashlib.sha256()
        while piece := _read(stream, _PIECE):
            found.update(piece)
            done += len(piece)
            step.at(done, total)
        if found.digest() != wanted:
            raise DemoError(f"{stream.name}: not what it was")
