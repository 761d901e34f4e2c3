"""Builds the index of a layer while the layer streams by, once.

Compressed bytes are hashed, unpacked, hashed again, and parsed as a tar which is laid out as the
data blob, each in a thread of its own. What is held is the tree, the extent table and a few
buffers, never the layer. Nothing is an index before both digests, the layer's and the tar's, are
those wanted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterable, Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

from pagein.erofs import writer
from pagein.erofs.tree import Device, Extent
from pagein.images.layers import blob, indexwriter, names
from pagein.images.layers.entry import Entry, Limits
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression, Header, Layer
from pagein.images.layers.gzip import GzipUnpacker
from pagein.images.layers.magic import HEAD, compression_of
from pagein.images.layers.point import INTERVAL, KEPT, Output
from pagein.images.layers.pointlist import PointList
from pagein.images.layers.scan import Scanner
from pagein.images.layers.tar import TarParser
from pagein.images.layers.tree import Tree, TreeBuilder
from pagein.images.layers.worker import Worker, switching

if TYPE_CHECKING:
    from pagein.images.layers.zstd import ZstdUnpacker

P = TypeVar("P")
T = TypeVar("T")

_FEED = 512 << 10  # bytes given to a thread at a time


class Built(NamedTuple):
    """What an index says; sizes in bytes. `digest` is that of the whole file, its name."""

    digest: str
    size: int
    header: Header
    tree: Tree


class IndexBuilder:
    """`feed` it the layer as it comes, then `finish`. Close it in any case (`with`).

    The compression is what the first bytes say, as in containerd: media types are wrong too often.
    With a `sink` the data blob's bytes are given out as they become known, not yet verified: they
    may be used once `finish` has returned. Points of a gzip layer are `interval` bytes of its tar
    apart.
    """

    def __init__(
        self,
        layer: Layer,
        *,
        sink: blob.Sink | None = None,
        interval: int = INTERVAL,
        limits: Limits = Limits(),  # noqa: B008
    ) -> None:
        self.received = 0
        """Bytes of the layer so far."""
        self._layer = layer
        self._interval = interval
        self._head: bytes | None = b""
        self._unpacker: _Plain | GzipUnpacker | ZstdUnpacker | None = None
        self._compression = Compression.NONE
        self._points = PointList()
        self._blob = blob.BlobBuilder(sink)
        self._members = _Members(self._blob, limits)
        self._parser = TarParser(self._members, limits)
        self._parsing = Worker("tar", self._parser.feed, KEPT)
        self._packed = _Digest(layer.digest)
        self._tar = _Digest(layer.diff_id or "sha256:")
        self.tar_size = 0
        """Bytes of the tar so far."""
        self._closed = False
        switching.enter()

    def __enter__(self) -> IndexBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; twice is fine."""
        if not self._closed:
            self._closed = True
            switching.leave()
        for worker in (self._parsing, self._packed, self._tar):
            worker.close()
        if self._unpacker is not None:
            self._unpacker.close()
            self._unpacker = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the layer; LayerError if it cannot be what it should be."""
        self.received += len(data)
        if self.received > self._layer.size:
            raise LayerError(f"the layer is longer than the {self._layer.size} bytes it should be")
        self._packed.submit(memoryview(data))
        if self._head is not None:
            self._head += data
            if len(self._head) < HEAD and self.received < self._layer.size:
                return
            data, self._head = self._head, None
            self._compression = compression_of(data)
        if self._unpacker is None:
            self._unpacker = self._open()
        self._unpacker.feed(data)

    def _open(self) -> _Plain | GzipUnpacker | ZstdUnpacker:
        match self._compression:
            case Compression.GZIP:
                return GzipUnpacker(self._take_tar, self._points.add, self._interval)
            case Compression.ZSTD:
                from pagein.images.layers.zstd import ZstdUnpacker

                return ZstdUnpacker(self._take_tar, self._points.add)
            case _:
                return _Plain(self._take_tar)

    def _take_tar(self, view: memoryview) -> None:
        self._tar.submit(view)
        self.tar_size += len(view)
        self._parsing.submit(view)

    def finish(self, out: BinaryIO) -> Built:
        """Write the index to `out`, an empty file open for reading and writing.

        LayerError when the layer, or its tar, is not the one that was asked for.
        """
        layer = self._layer
        if self.received != layer.size:
            raise LayerError(f"truncated: {self.received} of the layer's {layer.size} bytes came")
        # Before anything is said of the content: if the bytes are wrong, that is what is wrong.
        _same("the layer", self._packed.result(), layer.digest)
        if self._unpacker is not None:
            self._unpacker.finish()
        self._parsing.finish()
        self._parser.close()
        self._blob.finish()
        diff_id = self._tar.result()
        _same("the layer's tar", diff_id, layer.diff_id or diff_id)
        return self._write(out, layer._replace(diff_id=diff_id))

    def _write(self, out: BinaryIO, layer: Layer) -> Built:
        tree = self._members.tree.finish()
        size = self._blob.size
        header = Header(layer, self._compression, 0, self.tar_size, size, 0, blob.CHUNK)
        header = indexwriter.write(
            out,
            header,
            metadata=metadata_of(tree, layer, size),
            extents=(self._blob.offsets, self._blob.positions, self._blob.lengths),
            points=self._points.blocks(layer.size),
            digests=self._blob.digests,
            implied=tree.implied,
            names=names.blocks(self._members.scanner.found),
        )
        out.seek(0)
        digest = f"sha256:{hashlib.file_digest(out, 'sha256').hexdigest()}"  # type: ignore[arg-type]
        return Built(digest, header.file_size, header, tree)


async def build(
    stream: AsyncIterable[bytes],
    layer: Layer,
    out: BinaryIO,
    *,
    sink: blob.Sink | None = None,
    interval: int = INTERVAL,
) -> Built:
    """Build the index of `layer`, whose bytes `stream` gives, into `out`; work is in threads.

    LayerError as `IndexBuilder`; what the stream raises goes through. How long it may wait is the
    stream's to say.
    """
    with IndexBuilder(layer, sink=sink, interval=interval) as builder:
        waiting = bytearray()
        async for piece in stream:
            waiting += piece
            if len(waiting) >= _FEED:
                data, waiting = bytes(waiting), bytearray()
                await in_thread(builder.feed, data)
        await in_thread(builder.feed, bytes(waiting))
        return await in_thread(builder.finish, out)


async def in_thread(call: Callable[[P], T], argument: P) -> T:
    """`call` in a thread, waited for also when we are cancelled: it uses what is then closed."""
    import asyncio

    task = asyncio.ensure_future(asyncio.to_thread(call, argument))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class _Plain:
    """A layer that is the tar."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def feed(self, data: bytes) -> None:
        self._output(memoryview(data))

    def finish(self) -> None:
        """A tar says itself whether it is whole."""

    def close(self) -> None:
        """Nothing to give back."""


class _Members:
    """The parser's visitor: entries to the tree, data to the blob, and what it names is noted."""

    def __init__(self, data: blob.BlobBuilder, limits: Limits) -> None:
        self.scanner = Scanner()
        self.tree = TreeBuilder(self._place, limits)
        self.entry = self.tree.add
        self._blob = data

    def data(self, position: int, view: memoryview) -> None:
        self._blob.data(position, view)
        if self.scanner.wants(position, view):
            self.scanner.take(position, view)

    def _place(self, entry: Entry) -> tuple[Extent, ...]:
        start = self._blob.size
        extents = self._blob.place(entry)
        if len(extents) == 1:
            self.scanner.file(entry, start)
        return extents


class _Digest(Worker[memoryview]):
    """A digest that is computed in a thread of its own."""

    def __init__(self, wanted: str) -> None:
        self._algorithm, _, _ = wanted.partition(":")
        if self._algorithm not in ("sha256", "sha512"):
            raise LayerError(f"digest {wanted!r}: only sha256 and sha512 are known")
        self._hash = hashlib.new(self._algorithm)
        super().__init__("digest", self._hash.update, KEPT)

    def result(self) -> str:
        self.finish()
        return f"{self._algorithm}:{self._hash.hexdigest()}"


def _same(what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise LayerError(f"{what} is {found}, not {wanted}")


def metadata_of(tree: Tree, layer: Layer, blob_size: int) -> Iterator[bytes]:
    """The EROFS image; the same one for the same layer, on every machine."""
    algorithm, _, digits = layer.digest.partition(":")
    uuid = hashlib.sha256(f"pagein layer {algorithm} {digits}".encode()).digest()[:16]
    devices = [Device(digits[:64].encode(), blob_size // blob.PAGE)] if blob_size else []
    try:
        usual = _usual_time(tree)
        return writer.stream(tree.root, uuid=uuid, devices=devices, build_time_ns=usual)
    except ValueError as error:
        raise LayerError(f"not to be held by EROFS: {error}") from None


def _usual_time(tree: Tree) -> int:
    """The most frequent mtime: inodes with it are half the size.

    Not that of directories that the archive left out, which is 0: they have to look like those of
    lower layers one day, and only an inode of full size has room for that (`images.implied`).
    """
    times: Counter[int] = Counter()
    todo = [tree.root]
    while todo:
        node = todo.pop()
        times[node.mtime_ns] += 1
        todo += (node.children or {}).values()
    if tree.implied:
        del times[0]
    usual = times.most_common(1)
    return usual[0][0] if usual else 1
