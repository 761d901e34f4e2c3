"""Which images are known here, in sqlite: what a name stood for, its layers, their indexes.

With a row here, and the files of the `store` it names, an image is mounted without its registry.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pagein.images.layers.format import Layer

FILE = "catalogue.sqlite"
_BUSY = 10.0  # seconds to wait for another process
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    name TEXT NOT NULL, platform TEXT NOT NULL, manifest TEXT NOT NULL, media_type TEXT NOT NULL,
    seen REAL NOT NULL, PRIMARY KEY (name, platform)
);
CREATE TABLE IF NOT EXISTS layers (
    manifest TEXT NOT NULL, position INTEGER NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (manifest, position)
);
CREATE TABLE IF NOT EXISTS indexes (
    layer TEXT PRIMARY KEY, diff_id TEXT NOT NULL, digest TEXT NOT NULL, root TEXT NOT NULL,
    size INTEGER NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Known:
    """An image that a name stood for when it was last looked at; sizes in bytes, time in s."""

    name: str
    platform: str
    manifest: str
    media_type: str
    seen: float
    layers: int
    size: int


@dataclass(frozen=True, slots=True)
class IndexOf:
    """The index of a layer: `digest` of its file, `root` of its header, `size` in bytes."""

    layer: str
    diff_id: str
    digest: str
    root: str
    size: int


class Catalogue:
    """The database in `directory`. All methods block, and raise OSError in one line."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, FILE)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._path, timeout=_BUSY)
            try:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, _VERSION):
                    text = f"a catalogue of version {version}: this pagein knows {_VERSION}"
                    raise OSError(errno.EPROTO, text, self._path)
                if version == 0:
                    script = f"BEGIN IMMEDIATE;{_SCHEMA}PRAGMA user_version = {_VERSION};COMMIT;"
                    connection.executescript(script)
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as problem:
            text = f"the catalogue of images cannot be used: {problem}"
            raise OSError(errno.EIO, text, self._path) from None

    def add(self, name: str, platform: str, manifest: str, kind: str, layers: list[Layer]) -> None:
        """A name stands for the manifest of that digest and media type, with these layers."""
        with self._open() as db:
            db.execute(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)",
                (name, platform, manifest, kind, time.time()),
            )
            rows = [(manifest, at, each.digest, each.size) for at, each in enumerate(layers)]
            db.executemany("INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?)", rows)

    def find(self, name: str, platform: str) -> tuple[str, str] | None:
        """Digest and media type of the manifest that a name stood for last."""
        with self._open() as db:
            found = db.execute(
                "SELECT manifest, media_type FROM images WHERE name = ? AND platform = ?",
                (name, platform),
            ).fetchone()
        return (found[0], found[1]) if found else None

    def add_indexes(self, *indexes: IndexOf) -> None:
        """Each of them is the index of its layer from now on."""
        rows = [(of.layer, of.diff_id, of.digest, of.root, of.size) for of in indexes]
        with self._open() as db:
            db.executemany("INSERT OR REPLACE INTO indexes VALUES (?, ?, ?, ?, ?)", rows)

    def index_of(self, layer: str) -> IndexOf | None:
        """The index of the layer of that digest."""
        with self._open() as db:
            found = db.execute("SELECT * FROM indexes WHERE layer = ?", (layer,)).fetchone()
        return IndexOf(*found) if found else None

    def images(self) -> list[Known]:
        """All images, by name."""
        if not os.path.exists(self._path):
            return []
        with self._open() as db:
            rows = db.execute(
                "SELECT name, platform, images.manifest, media_type, seen, count(layers.digest),"
                " coalesce(sum(layers.size), 0) FROM images LEFT JOIN layers"
                " ON layers.manifest = images.manifest GROUP BY name, platform ORDER BY name"
            ).fetchall()
        return [Known(*row) for row in rows]
