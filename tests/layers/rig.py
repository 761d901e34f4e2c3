"""Layers made, indexed and seen: through the index and our reader, through the kernel, by tar."""

import asyncio
import contextlib
import gzip
import hashlib
import io
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.erofs import images, trees

from pagein.images.layers.build import Built, IndexBuilder
from pagein.images.layers.format import Layer
from pagein.images.layers.index import Index
from pagein.images.layers.point import INTERVAL
from pagein.images.layers.read import LayerOrigin, MetaOrigin
from pagein.origins.base import Origin, check_range

MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
DEADLINE = 60.0


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer_of(data: bytes, diff_id: str = "") -> Layer:
    return Layer(sha256(data), len(data), MEDIA_TYPE, diff_id)


def gzipped(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)


class Bytes(Origin):
    """A layer in memory, which counts what is asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []
        self.closed = False

    async def size(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        check_range("bytes", offset, length, len(self.data))
        self.asked.append((offset, length))
        return self.data[offset : offset + length]

    async def close(self) -> None:
        self.closed = True

    @property
    def bytes_asked(self) -> int:
        return sum(length for _, length in self.asked)


class Indexed:
    """A layer, its index in a file, and its data blob as building gave it out."""

    def __init__(
        self, data: bytes, path: Path, step: int = 1 << 18, interval: int = INTERVAL
    ) -> None:
        blob = bytearray()

        def sink(offset: int, view: memoryview) -> None:
            assert offset == len(blob)
            blob.extend(view)

        self.data = data
        self.path = path
        with (
            IndexBuilder(layer_of(data), sink=sink, interval=interval) as builder,
            path.open("w+b") as out,
        ):
            for at in range(0, len(data), step):
                builder.feed(data[at : at + step])
            self.built: Built = builder.finish(out)
        self.blob = bytes(blob)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Index]:
        with Index(self.path) as index:
            yield index

    def read(self) -> tuple[bytes, bytes]:
        """The metadata and the data blob, through the origins."""

        async def main() -> tuple[bytes, bytes]:
            with self.opened() as index:
                meta, data = MetaOrigin(index), LayerOrigin(index, Bytes(self.data))
                try:
                    return (
                        await meta.read(0, await meta.size()),
                        await data.read(0, await data.size()),
                    )
                finally:
                    await data.close()

        return asyncio.run(main())

    def seen(self) -> trees.Tree:
        """The tree, through the index and our reader."""
        meta, data = self.read()
        assert data == self.blob
        return trees.as_read(images.of_bytes(meta, *[data] * bool(data)))

    def mounted(self) -> trees.Tree:
        """The tree, through the index and the kernel."""
        meta, data = self.read()
        files = [self.path.with_suffix(".erofs"), self.path.with_suffix(".blob")]
        for file, content in zip(files, (meta, data), strict=True):
            file.write_bytes(content)
        if not data:
            del files[1:]
        images.fsck(files)
        with images.mounted(files) as top:
            return trees.as_mounted(top)

    def without_implied(self, tree: trees.Tree) -> trees.Tree:
        """`tree`, where attributes of directories that the archive does not name do not count."""
        implied = {b"/" + path if path else b"" for path in self.built.tree.implied}
        return {
            path: replace(seen, mode=0, uid=0, gid=0, mtime_ns=0) if path in implied else seen
            for path, seen in tree.items()
        }


def extracted(archive: bytes, directory: Path) -> trees.Tree:
    """What GNU tar makes of it, as root.

    libarchive does not write depth first: then times of directories are right only if set last.
    """
    directory.mkdir()
    command = ["tar", "-x", "-f", "-", "-C", str(directory), "--numeric-owner", "--same-owner"]
    command += [
        "--preserve-permissions",
        "--delay-directory-restore",
        "--xattrs",
        "--xattrs-include=*",
    ]
    subprocess.run(command, input=archive, check=True, timeout=DEADLINE, capture_output=True)
    return trees.as_mounted(directory)


def differences(found: trees.Tree, wanted: trees.Tree) -> list[str]:
    """One line for each difference, contents by their digest."""
    lines = []
    for path in sorted(found.keys() | wanted.keys()):
        one, other = found.get(path), wanted.get(path)
        if one != other:
            lines.append(f"{path!r}: {_short(one)}, wanted {_short(other)}")
    return lines


def _short(seen: trees.Seen | None) -> object:
    if seen is None:
        return None
    return replace(seen, content=hashlib.sha256(seen.content).digest()[:4])


def tar_of(*members: bytes) -> bytes:
    """An archive of hand-made members."""
    return b"".join(members) + bytes(1024)


def member(
    name: bytes,
    kind: bytes = b"0",
    data: bytes = b"",
    *,
    mode: int = 0o644,
    size: int | None = None,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    tail: bytes = b"",
    fields: dict[int, bytes] | None = None,
) -> bytes:
    """One header block, with `data` behind it. `fields` are put at their offsets at last."""
    block = bytearray(512)
    size = len(data) if size is None else size
    places = {
        0: name,
        100: b"%07o\0" % mode,
        108: b"%07o\0" % 0,
        116: b"%07o\0" % 0,
        124: b"%011o\0" % size,
        136: b"%011o\0" % 1_600_000_000,
        156: kind,
        157: link,
        257: magic,
        329: b"%07o\0" % 0,
        337: b"%07o\0" % 0,
        **(fields or {}),
    }
    for at, value in places.items():
        block[at : at + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    stored = tail + data
    return bytes(block) + stored + bytes(-len(stored) % 512)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """An extended header."""
    packed = io.BytesIO()
    for key, value in records:
        body = b" " + key + b"=" + value + b"\n"
        length = len(body) + 1
        while len(b"%d" % length) + len(body) != length:
            length += 1
        packed.write(b"%d" % length + body)
    return member(b"PaxHeaders/x", kind, packed.getvalue())


def old_gnu(name: bytes, pieces: list[tuple[int, int]], size: int) -> bytes:
    """A sparse member of old GNU tar, with at most four pieces."""
    pairs = b"".join(b"%011o\0%011o\0" % piece for piece in pieces)
    data = bytes(range(256)) * (sum(length for _, length in pieces) // 256)
    fields = {386: pairs, 483: b"%011o\0" % size}
    return member(name, b"S", data, magic=b"ustar  \0", fields=fields)
