"""Where the index of a file is: where one says, beside the file, or in the user's cache.

The name in the cache is made of what tells one content from another (path or URL, size, inode and
mtime or ETag), so a file that changed has none there. Indexes in the cache may be thrown away at
any time: they are built again.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from pagein.library.files import default_cache
from pagein.origins import OriginError
from pagein.origins.identity import is_url
from pagein.seekable.errors import BadIndex, NoIndex
from pagein.seekable.index import FileIndex
from pagein.seekable.indexing import Progress, new_file, write_index
from pagein.seekable.sources import Source, UrlSource

SUFFIX: Final = ".pgx"
"""What is appended to a file's name to name the index beside it."""

_MOST: Final = 1 << 30
"""Bytes of indexes that stay in the cache; those used least recently go."""


def beside(name: str) -> str | None:
    """Where the index beside a file is; None for URLs with a query, which may be signed."""
    if not is_url(name):
        return name + SUFFIX
    url = urlsplit(name)
    return None if url.query else urlunsplit(url._replace(path=url.path + SUFFIX, fragment=""))


def obtain(
    source: Source,
    *,
    index: str | None = None,
    cache: str | None = None,
    rebuild: bool = False,
    may_build: bool = True,
    interval: int,
    timeout: float,
    progress: Progress | None = None,
) -> FileIndex:
    """The index of `source`, which is built if there is none.

    `index` says where it is or goes; if it is None the one beside the file is taken, else that in
    the directory `cache` (by default the user's), where a new one goes. BadIndex if the one found
    is not to be used, unless `rebuild`; NoIndex instead of building if not `may_build`.
    """
    path = index
    if path is None or is_url(path):
        path = _cached(source, index, cache)
    mine = index is None or path != index  # nobody else's: what is wrong with it is no news
    if not rebuild:
        found = _beside(source) if index is None else None
        found = found or _usable(path, source, mine=mine)
        if found is None and (url := _published(source, index)) is not None:
            found = _fetched(url, path, source, timeout, must=index is not None)
        if found is not None:
            return found
    if not may_build:
        raise NoIndex(f"{source.name}: has no index: build one by `pagein seekable`", errno.ENOENT)
    if mine:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    write_index(source, path, interval=interval, progress=progress)
    if mine:
        _tidy(os.path.dirname(path), path)
    return FileIndex(path)


def _cached(source: Source, index: str | None, cache: str | None) -> str:
    directory = os.path.join(os.path.abspath(cache or default_cache()), "seekable")
    return os.path.join(directory, f"{source.identity.key().decode()}{SUFFIX}")


def _beside(source: Source) -> FileIndex | None:
    return None if source.remote else _usable(source.identity.source + SUFFIX, source)


def _usable(path: str, source: Source, *, mine: bool = False) -> FileIndex | None:
    """The index at `path`, None if there is none; BadIndex for one that is not to be used."""
    try:
        index = FileIndex(path)
    except FileNotFoundError:
        return None
    except BadIndex:
        if mine:
            return None
        raise
    try:
        # The name of one in the cache tells which file it is of, if the source has validators.
        identity = source.identity
        index.check(source, known=mine and any((identity.etag, identity.last_modified)))
        if mine:
            with suppress(OSError):
                os.utime(path)
        return index
    except BaseException as problem:
        index.close()
        if mine and isinstance(problem, BadIndex):
            return None
        raise


def _published(source: Source, index: str | None) -> str | None:
    """The URL of an index on a web server, if there may be one."""
    if index is not None:
        return index if is_url(index) else None
    return beside(source.identity.source) if source.remote else None


def _fetched(
    url: str, path: str, source: Source, timeout: float, *, must: bool
) -> FileIndex | None:
    """The index at `url`, kept at `path`; None if there is none, unless it `must` be there."""
    try:
        published = UrlSource(url, timeout)
    except OriginError as problem:
        if must or problem.errno not in (errno.ENOENT, errno.EACCES, errno.EINVAL):
            raise
        return None
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with new_file(path) as file:
            for piece in published.stream():
                file.write(piece)
    finally:
        published.close()
    try:
        index = _usable(path, source)
    except BadIndex as problem:
        with suppress(OSError):
            os.unlink(path)
        text = str(problem.strerror).removeprefix(path).removeprefix(": ")
        raise BadIndex(f"{published.name}: {text}") from None
    _tidy(os.path.dirname(path), path)
    return index


def _tidy(directory: str, new: str) -> None:
    """Take away the indexes used least recently beyond what may stay, but never the `new` one."""
    found = []
    with suppress(OSError):
        for entry in os.scandir(directory):
            if entry.name.endswith(SUFFIX) and entry.path != new:
                about = entry.stat()
                found.append((about.st_mtime, about.st_size, entry.path))
    total = os.path.getsize(new)
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > _MOST:
            with suppress(OSError):
                os.unlink(path)
