"""Layers of files that do not compress, so that spans have the size of what is in them."""

import asyncio
import contextlib
import gzip
import hashlib
import io
import tarfile
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

from tests.layers.rig import sha256

from pagein.images.layers.build import IndexBuilder
from pagein.images.layers.format import Layer
from pagein.images.layers.index import Index
from pagein.images.traces.document import Touch, Trace
from pagein.origins.base import Origin, OriginError, check_range

KIB, MIB = 1 << 10, 1 << 20
TYPE = "application/vnd.oci.image.layer.v1.tar"


def noise(name: str, size: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(size)


def tar_of(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


class IndexedLayer:
    """A layer of `files`, and its index in a file: `packed` by gzip's `level`, None: not at all."""

    def __init__(
        self,
        files: dict[str, bytes],
        path: Path,
        *,
        level: int | None = 1,
        interval: int = 256 * KIB,
    ) -> None:
        self.files = files
        self.path = path
        tar = tar_of(files)
        self.diff_id = sha256(tar)
        self.packed = tar if level is None else gzip.compress(tar, level, mtime=0)
        media_type = TYPE if level is None else f"{TYPE}+gzip"
        layer = Layer(sha256(self.packed), len(self.packed), media_type, self.diff_id)
        blob = bytearray()

        def sink(offset: int, view: memoryview) -> None:
            assert offset == len(blob)
            blob.extend(view)

        with IndexBuilder(layer, sink=sink, interval=interval) as builder, path.open("w+b") as out:
            for at in range(0, len(self.packed), MIB):
                builder.feed(self.packed[at : at + MIB])
            builder.finish(out)
        self.blob = bytes(blob)

    def opened(self) -> Index:
        return Index(self.path)

    def trace(self, touches: Iterable[tuple[str, int, int]]) -> Trace:
        """A trace of (path, offset, length), a millisecond each."""
        found = [
            Touch(0, path, offset, length, ms) for ms, (path, offset, length) in enumerate(touches)
        ]
        return Trace("an image", (self.diff_id,), tuple(found))


class Slow(Origin):
    """Bytes that come in pieces, one a step; counts, and does what it is told to."""

    def __init__(self, data: bytes, *, piece: int = 64 * KIB, delay: float = 0.0) -> None:
        self.data = data
        self.piece = piece
        self.delay = delay
        self.streams: list[tuple[int, int]] = []
        self.given: list[tuple[int, int]] = []
        self.fails_at: int | None = None
        """Offset that no request gets past."""
        self.wrong_at: int | None = None
        """Offset that is wrong the first time."""
        self.closed = False

    async def size(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        async with contextlib.aclosing(self.stream(offset, length)) as pieces:
            return b"".join([bytes(piece) async for piece in pieces])

    async def stream(self, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        check_range("slow", offset, length, len(self.data))
        self.streams.append((offset, offset + length))
        end = offset + length
        while offset < end:
            await asyncio.sleep(self.delay)
            upto = min(offset + self.piece, end)
            if self.fails_at is not None and offset <= self.fails_at < upto:
                raise OriginError.of("slow", "broke off", retry=True)
            piece = bytearray(self.data[offset:upto])
            if self.wrong_at is not None and offset <= self.wrong_at < upto:
                piece[self.wrong_at - offset] ^= 1
                self.wrong_at = None
            self.given.append((offset, upto))
            yield bytes(piece)
            offset = upto

    async def close(self) -> None:
        self.closed = True
