"""Random access to .gz and .zst files as they are, on a disk or a web server.

`open` gives the content of any gzip or zstd file as a Python file that can seek. The first time it
reads the file once and keeps an index, some tenths of a per cent of its size; from then on a read
decodes, and of a URL fetches, what lies around it. Each byte it gives was compared with a digest of
the index: bytes that are not what they were are an error (docs/seekable.md).
"""

from __future__ import annotations

import os
from typing import Any, Final

from pagein.images.layers.point import INTERVAL
from pagein.origins.identity import is_url
from pagein.seekable.content import MEMORY, Content
from pagein.seekable.errors import BadIndex, NoIndex, SeekableError
from pagein.seekable.file import SeekableFile
from pagein.seekable.index import FileIndex
from pagein.seekable.indexing import Progress, write_index
from pagein.seekable.places import SUFFIX, obtain
from pagein.seekable.sources import open_source

__all__ = [
    "BadIndex",
    "FileIndex",
    "NoIndex",
    "Progress",
    "SeekableError",
    "SeekableFile",
    "build",
    "open",
]

Path = str | os.PathLike[str]

TIMEOUT: Final = 30.0
"""Seconds that a wait for a server may take, by default."""


def open(
    source: Path,
    *,
    index: Path | None = None,
    cache: Path | None = None,
    memory: int = MEMORY,
    threads: int | None = None,
    timeout: float = TIMEOUT,
    rebuild: bool = False,
    may_build: bool = True,
    interval: int = INTERVAL,
    progress: Progress | None = None,
) -> SeekableFile:
    """Open the gzip or zstd file at a path or an http(s) URL for random access to its content.

    `index` is where its index is, or is put: a path, or the URL of one that is there. Without it
    that is the one beside the file (its name and ".pgx"), if there is one, else one in `cache`, by
    default the user's cache directory. What is not there is built, in one pass over the file, of
    which `progress` is told (bytes done, bytes of the file); with `may_build=False` NoIndex is
    raised instead. `rebuild=True` builds a new one in any case.

    `memory`: bytes of decoded content that are kept. `threads`: how many decode ahead of who reads
    on and on; by default as many as there are processors, for URLs none. `timeout`: seconds of
    each wait for a server. `interval`: bytes of content between two points of a gzip file, if an
    index is built; half of it is what a random read decodes in vain, and half of it doubles the
    index.

    Raises OSError: BadIndex for an index that is damaged or of another file, SeekableError for a
    file that is damaged or neither gzip nor zstd, pagein.OriginError for one that cannot be read.
    """
    options: dict[str, Any] = {
        "index": _path(index),
        "cache": None if cache is None else os.path.abspath(cache),
        "memory": memory,
        "threads": threads,
        "timeout": timeout,
        "may_build": may_build,
        "interval": interval,
    }
    if memory < 0 or interval < 1 or (threads is not None and threads < 0):
        raise ValueError("memory and threads must not be negative, and interval be positive")
    found = open_source(source, timeout)
    try:
        about = obtain(
            found,
            index=options["index"],
            cache=options["cache"],
            rebuild=rebuild,
            may_build=may_build,
            interval=interval,
            timeout=timeout,
            progress=progress,
        )
        try:
            return SeekableFile(Content(about, found, memory, threads), options)
        except BaseException:
            about.close()
            raise
    except BaseException:
        found.close()
        raise


def build(
    source: Path,
    output: Path | None = None,
    *,
    timeout: float = TIMEOUT,
    interval: int = INTERVAL,
    progress: Progress | None = None,
) -> str:
    """Build the index of a file or URL at `output`, by default beside the file; its path.

    What is there is replaced once the new one is whole. Errors and parameters are those of `open`.
    """
    found = open_source(source, timeout)
    try:
        if output is None and found.remote:
            raise SeekableError(f"{found.name}: say where the index of a URL goes")
        path = os.path.abspath(output if output is not None else found.identity.source + SUFFIX)
        write_index(found, path, interval=interval, progress=progress)
        return path
    finally:
        found.close()


def _path(given: Path | None) -> str | None:
    if given is None:
        return None
    text = os.fspath(given)
    return text if is_url(text) else os.path.abspath(text)
