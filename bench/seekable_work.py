"""One measurement of `seekable.py`, in a process of its own: WORK LIBRARY FILE INDEX PLACES.

Prints JSON. PLACES is a JSON file of [offset, length, member, offset in member]; who reads tars by
their members gets the same bytes that way. What a library has to import is not timed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Place = tuple[int, int, str, int]
Read = Callable[[Place], bytes]


class Pagein:
    """`pagein.seekable`."""

    def __init__(self) -> None:
        from pagein import seekable

        self.module = seekable

    def build(self, path: str, index: str) -> None:
        self.module.build(path, index)

    def open(self, path: str, index: str) -> Any:
        return self.module.open(path, index=index, may_build=False)


class IndexedGzip:
    """`indexed_gzip`, its defaults."""

    def __init__(self) -> None:
        import indexed_gzip

        self.make = indexed_gzip.IndexedGzipFile

    def build(self, path: str, index: str) -> None:
        with self.make(path) as file:
            file.build_full_index()
            file.export_index(index)

    def open(self, path: str, index: str) -> Any:
        return self.make(path, index_file=index)


class Rapidgzip:
    """`rapidgzip` on all cores."""

    def __init__(self) -> None:
        import rapidgzip

        self.make = rapidgzip.open

    def build(self, path: str, index: str) -> None:
        with self.make(path, parallelization=0) as file:
            file.export_index(index)

    def open(self, path: str, index: str) -> Any:
        file = self.make(path, parallelization=0)
        file.import_index(index)
        return file


class IndexedZstd:
    """`indexed_zstd`, which ratarmount uses: it knows where frames begin."""

    def __init__(self) -> None:
        import indexed_zstd

        self.make = indexed_zstd.IndexedZstdFile

    def build(self, path: str, index: str) -> None:
        with self.make(path) as file, open(index, "wb") as out:
            pickle.dump(file.block_offsets(), out)

    def open(self, path: str, index: str) -> Any:
        file = self.make(path)
        with open(index, "rb") as given:
            file.set_block_offsets(pickle.load(given))
        return file


class Ratarmount:
    """ratarmount's own mount source, without FUSE: reads are of members of the tar."""

    def __init__(self) -> None:
        from ratarmountcore.mountsource.factory import open_mount_source

        self.make = open_mount_source

    def build(self, path: str, index: str) -> None:
        self._mount(path, index, clearIndexCache=True).__exit__(None, None, None)

    def open(self, path: str, index: str) -> Any:
        return self._mount(path, index)

    def _mount(self, path: str, index: str, **more: Any) -> Any:
        return self.make(path, parallelization=0, indexFilePath=index, writeIndex=True, **more)


LIBRARIES = {
    "pagein": Pagein,
    "indexed_gzip": IndexedGzip,
    "rapidgzip": Rapidgzip,
    "indexed_zstd": IndexedZstd,
    "ratarmount": Ratarmount,
}


@contextmanager
def _reader(opened: Any) -> Iterator[Read]:
    """Reads at places, of a file or of a mount source."""
    if not hasattr(opened, "lookup"):

        def read(place: Place) -> bytes:
            opened.seek(place[0])
            return bytes(opened.read(place[1]))

        yield read
        return

    def member(place: Place) -> bytes:
        with opened.open(opened.lookup(place[2])) as file:
            file.seek(place[3])
            return bytes(file.read(place[1]))

    yield member


def random_reads(opened: Any, places: Sequence[Place]) -> dict[str, Any]:
    """Milliseconds of each, and a digest of all bytes."""
    digest, times = hashlib.sha256(), []
    with _reader(opened) as read:
        for place in places:
            begun = time.perf_counter()
            data = read(place)
            times.append(1000 * (time.perf_counter() - begun))
            digest.update(data)
    return {"milliseconds": times, "digest": digest.hexdigest()}


def sequential(opened: Any) -> dict[str, Any]:
    """MB a second, in reads of 1 MiB."""
    size, begun = 0, time.perf_counter()
    while data := opened.read(1 << 20):
        size += len(data)
    return {"mb_per_second": size / 1e6 / (time.perf_counter() - begun), "size": size}


def main() -> None:
    """Do what the arguments say."""
    work, name, path, index, given = sys.argv[1:]
    library = LIBRARIES[name]()
    with open(given) as file:
        places = json.load(file)
    begun = time.perf_counter()
    if work == "build":
        library.build(path, index)
        seconds = time.perf_counter() - begun
        found: dict[str, Any] = {"seconds": seconds, "size": os.path.getsize(index)}
    else:
        opened = library.open(path, index)
        found = {"opened": 1000 * (time.perf_counter() - begun)}
        found |= random_reads(opened, places) if work == "random" else sequential(opened)
    print(json.dumps(found), flush=True)
    os._exit(0)  # some of them take long to end


if __name__ == "__main__":
    main()
