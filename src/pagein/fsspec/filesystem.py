"""The file system of the protocol `pagein`, over one of any other protocol.

It is a netfs that needs nothing of a kernel half's original mode: what that would be for, a sparse
file that many processes fill together, `pagein.library` has already, with kills, forks and threads.
So https is `pagein.open` itself, and of every other protocol the file system is the origin.
"""

from __future__ import annotations

import errno
import io
import os
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.chained import ChainedFileSystem

from pagein.fsspec.file import CachedFile
from pagein.fsspec.origin import FsspecOpener, identify
from pagein.library import BlobFile, files


class PageinFileSystem(ChainedFileSystem):  # type: ignore[misc]
    """Files of another file system, read-only; what is read is fetched once and kept."""

    protocol: ClassVar[str] = "pagein"
    root_marker = ""
    _strip_tokenize_options = ("fo",)

    def __init__(
        self,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        fs: Any = None,
        cache: str | None = None,
        timeout: float = files.TIMEOUT,
        **options: Any,
    ) -> None:
        """Over `fs`, or the one of `target_protocol` with `target_options`.

        `cache` is a directory that all processes share which name it, by default the user's
        (`pagein.open`); `timeout`, in seconds, is that of each read.
        """
        super().__init__(**options)
        if fs is None and target_protocol is None:
            raise ValueError("pagein is for files of another protocol: pagein::https://...")
        self.target_options = target_options or {}
        self.fs = (
            fs if fs is not None else fsspec.filesystem(target_protocol, **self.target_options)
        )
        self.cache = os.path.abspath(cache or files.default_cache())
        self.timeout = timeout
        # Options (headers, a client of one's own) are for that file system to use.
        self._native = "https" in self.fs.protocol and not self.fs.storage_options

    @property
    def fsid(self) -> str:
        """Names the file system under it, as there may be several."""
        return f"pagein_{self.fs.fsid}"

    # ---- names: those of the file system underneath

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("pagein://") if isinstance(path, str) else path

    def unstrip_protocol(self, name: str) -> str:
        return str(self.fs.unstrip_protocol(name))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return self.fs.ls(path, detail=detail, **options)

    def info(self, path: str, **options: Any) -> Any:
        return self.fs.info(path, **options)

    def exists(self, path: str, **options: Any) -> bool:
        return bool(self.fs.exists(path, **options))

    def glob(self, path: str, maxdepth: int | None = None, **options: Any) -> Any:
        return self.fs.glob(path, maxdepth=maxdepth, **options)

    def ukey(self, path: str) -> str:
        return str(self.fs.ukey(path))

    def created(self, path: str) -> Any:
        return self.fs.created(path)

    def modified(self, path: str) -> Any:
        return self.fs.modified(path)

    # ---- content

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.BufferedIOBase:
        if mode != "rb":
            raise OSError(errno.EROFS, f"{mode!r}: what comes through pagein is read-only", path)
        try:
            raw = self._blob(path)
        except OSError as problem:
            if problem.errno == errno.ENOENT:
                raise FileNotFoundError(errno.ENOENT, str(problem)) from problem
            raise
        return CachedFile(raw, path) if raw is not None else self.fs.open(path, "rb")

    def _blob(self, path: str) -> BlobFile | None:
        """The file; None for what cannot be cached: an empty one, or one without a size."""
        if self._native:
            return files.open(path, cache=self.cache, timeout=self.timeout)
        info = self.fs.info(path)
        if info.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not info.get("size"):
            return None
        make, arguments, *_ = self.fs.__reduce__()
        identity = identify(self.fs.unstrip_protocol(path), info)
        opener = FsspecOpener((make, arguments), path)
        return files.open_with(identity, opener, cache=self.cache, timeout=self.timeout)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        with self._open(path) as file:
            if start is None and end is None:
                return file.read()
            size = file.seek(0, os.SEEK_END)
            first, last = (
                _place(each, size) for each in (start or 0, size if end is None else end)
            )
            file.seek(first)
            return file.read(max(0, last - first))


def _place(offset: int, size: int) -> int:
    """An offset as slices have it: from the end, if it is negative."""
    return max(0, size + offset) if offset < 0 else offset
