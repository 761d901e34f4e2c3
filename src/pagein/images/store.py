"""What the user half keeps of images, as files named by their digests, below one directory.

    documents/   manifests and configs          indexes/   indexes of layers
    layers/      compressed layers, of images that were pulled whole for want of an index
    traces/      what the start of an image reads, by the digest of its manifest
    catalogue.sqlite                             see `catalogue`

A file gets its name when it is whole and has been verified, so what is there needs no journal.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from typing import BinaryIO, cast

from pagein.images.manifest import check_digest

_OLD = 3600.0  # seconds after which an unfinished file is of a process that is gone
_KINDS = ("documents", "indexes", "layers", "traces")


class Store:
    """The files below `directory`. All methods block; threads and processes may share it."""

    def __init__(self, directory: str) -> None:
        """Nothing is made before something is kept."""
        self.directory = directory

    def path(self, kind: str, digest: str) -> str:
        """Where the file of a digest is, or would be."""
        return os.path.join(self.directory, kind, digest.replace(":", "-"))

    def has(self, kind: str, digest: str) -> bool:
        """Whether it is there."""
        return os.path.exists(self.path(kind, digest))

    def prepare(self) -> None:
        """Make the directories, and take away what was left unfinished. Raises OSError."""
        for kind in _KINDS:
            directory = os.path.join(self.directory, kind)
            os.makedirs(directory, 0o700, exist_ok=True)
            for entry in os.scandir(directory):
                if entry.name.endswith(".new"):
                    with contextlib.suppress(OSError):
                        if entry.stat().st_mtime < time.time() - _OLD:
                            os.unlink(entry.path)

    @contextlib.contextmanager
    def create(self, kind: str) -> Iterator[New]:
        """A new file, open for reading and writing; gone at the end unless it was `kept`."""
        directory = os.path.join(self.directory, kind)
        os.makedirs(directory, 0o700, exist_ok=True)
        fd, path = tempfile.mkstemp(".new", dir=directory)
        with os.fdopen(fd, "w+b") as file:
            try:
                yield New(self, kind, path, cast("BinaryIO", file))
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def read(self, digest: str) -> bytes:
        """A document, verified. Raises OSError, OriginError if it is damaged."""
        path = self.path("documents", digest)
        with open(path, "rb") as file:
            data = file.read()
        check_digest(path, data, digest)
        return data

    def keep(self, kind: str, data: bytes, digest: str) -> None:
        """Keep bytes that have been verified against `digest`."""
        if not self.has(kind, digest):
            with self.create(kind) as new:
                new.file.write(data)
                new.keep(digest)


class New:
    """A file that is being written."""

    def __init__(self, store: Store, kind: str, path: str, file: BinaryIO) -> None:
        self.file = file
        self._store = store
        self._kind = kind
        self.path = path

    def keep(self, digest: str) -> None:
        """It is whole, and of this digest: give it its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        os.rename(self.path, self._store.path(self._kind, digest))
