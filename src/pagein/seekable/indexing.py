"""Builds the index of a compressed file, while the file streams by once.

Unpacking, hashing of the file and hashing of the content have a thread each. An index gets its name
when it is whole: a run that is interrupted leaves nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import BinaryIO, cast

import msgspec

from pagein.images.layers import format as layout
from pagein.images.layers import indexwriter
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression, Header, Layer
from pagein.images.layers.gzip import GzipUnpacker
from pagein.images.layers.magic import HEAD, compression_of
from pagein.images.layers.point import INTERVAL, KEPT
from pagein.images.layers.pointlist import PointList
from pagein.images.layers.worker import Worker
from pagein.images.layers.zstd import ZstdUnpacker
from pagein.seekable.errors import SeekableError, check_library, told_of
from pagein.seekable.index import CHUNK, EDGE, About, edges
from pagein.seekable.sources import Source

Progress = Callable[[int, int], None]
"""Takes the bytes of the compressed file that are done, and how many there are."""


def write_index(
    source: Source, path: str, *, interval: int = INTERVAL, progress: Progress | None = None
) -> None:
    """Write the index of `source` to `path`; SeekableError if the file is damaged, OSError.

    Points of gzip are `interval` bytes of content apart, for a cached one or one that is replaced.
    """
    with new_file(path) as file, told_of(source.name):
        _write(source, file, interval, progress)


def _write(source: Source, out: BinaryIO, interval: int, progress: Progress | None) -> None:
    stream = source.stream()
    try:
        first = b""
        while len(first) < min(HEAD, source.size):
            first += next(stream)
        compression = compression_of(first)
        check_library(source.name, compression)
        packed, content, points = _Packed(), _Content(), PointList()
        unpacker = _unpacker(compression, content, points, interval)
        try:
            for piece in chain([first], stream):
                packed.take(piece)
                unpacker.feed(piece)
                if progress is not None:
                    progress(packed.size, source.size)
            for each in (unpacker, packed, content):
                each.finish()
        finally:
            for each in (unpacker, packed, content):
                each.close()
    finally:
        stream.close()
    nothing: array[int] = array("Q")
    layer = Layer(f"sha256:{packed.digest.hexdigest()}", source.size, "", "")
    indexwriter.write(
        out,
        Header(layer, compression, 0, content.size, content.size, 0, CHUNK),
        metadata=[msgspec.json.encode(_about(source, packed))],
        extents=(nothing, nothing, nothing),
        points=points.blocks(source.size),
        digests=content.digests,
        implied=[],
        magic=layout.FILE_MAGIC,
    )


def _about(source: Source, packed: _Packed) -> About:
    name = os.path.basename(source.name).encode("utf-8", "backslashreplace").decode()
    return About(
        name=name,
        etag=source.identity.etag,
        last_modified=source.identity.last_modified,
        edges=edges(packed.head, packed.tail),
    )


def _unpacker(
    compression: Compression, content: _Content, points: PointList, interval: int
) -> GzipUnpacker | ZstdUnpacker:
    match compression:
        case Compression.GZIP:
            return GzipUnpacker(content.take, points.add, interval)
        case Compression.ZSTD:
            return ZstdUnpacker(content.take, points.add)
        case _:
            raise LayerError("neither a gzip nor a zstd file")


class _Packed:
    """What came of the file, hashed in a thread."""

    def __init__(self) -> None:
        self.size = 0
        self.head = self.tail = b""
        """Its first and its last bytes, as many as `edges` wants."""
        self.digest = hashlib.sha256()
        self._worker = Worker("file digest", self.digest.update, KEPT)
        self.finish, self.close = self._worker.finish, self._worker.close

    def take(self, piece: bytes) -> None:
        self._worker.submit(piece)
        self.size += len(piece)
        if len(self.head) < EDGE:
            self.head = (self.head + piece)[:EDGE]
        self.tail = (self.tail + piece[-EDGE:])[-EDGE:]


class _Content:
    """What came out, hashed chunk by chunk in a thread."""

    def __init__(self) -> None:
        self.size = 0
        self.digests = bytearray()
        self._begun = bytearray()  # a chunk of which more has to come
        self._worker = Worker("digests", self._hash, KEPT - 1)
        self.close = self._worker.close

    def take(self, view: memoryview) -> None:
        self.size += len(view)
        self._worker.submit(view)

    def _hash(self, view: memoryview) -> None:
        at = 0
        if self._begun:
            at = min(CHUNK - len(self._begun), len(view))
            self._begun += view[:at]
            if len(self._begun) < CHUNK:
                return
            self.digests += hashlib.sha256(self._begun).digest()
            self._begun.clear()
        while len(view) - at >= CHUNK:
            self.digests += hashlib.sha256(view[at : at + CHUNK]).digest()
            at += CHUNK
        self._begun += view[at:]

    def finish(self) -> None:
        self._worker.finish()
        if self._begun:
            self.digests += hashlib.sha256(self._begun).digest()


@contextmanager
def new_file(path: str) -> Iterator[BinaryIO]:
    """A file that is at `path` when all went well, in place of one that was there; else nowhere."""
    directory, name = os.path.split(path)
    if os.path.isdir(path):
        raise OSError(errno.EISDIR, "is a directory: name a file for the index", path)
    new = os.path.join(directory, f".{name}.{secrets.token_hex(4)}.new")
    try:
        fd = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as problem:
        number = problem.errno or errno.EIO
        text = f"cannot be written: {os.strerror(number).lower()}: name another place"
        raise SeekableError(f"{path}: {text}", number) from None
    try:
        with os.fdopen(fd, "w+b") as file:
            yield cast("BinaryIO", file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(new)
        raise
