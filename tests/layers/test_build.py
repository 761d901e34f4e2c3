"""Building an index: from a stream, once, and only of the layer that was asked for."""

import asyncio
import gc
import gzip
import hashlib
import io
import itertools
import os
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard
from tests.layers import rig
from tests.layers.rig import member, tar_of
from tests.layers.test_gzip import text

from pagein.images.layers import worker
from pagein.images.layers.build import IndexBuilder, build
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression, Layer
from pagein.images.layers.index import Index

ARCHIVE = tar_of(member(b"usr/f", data=text(300_000)), member(b"g", data=b"x"))
PACKED = rig.gzipped(ARCHIVE)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def index(layer: Layer, data: bytes, step: int = 10_000) -> None:
    with IndexBuilder(layer) as builder:
        for at in range(0, len(data), step):
            builder.feed(data[at : at + step])
        builder.finish(io.BytesIO())


@pytest.mark.parametrize(
    ("data", "compression"),
    [
        (ARCHIVE, Compression.NONE),
        (PACKED, Compression.GZIP),
        (zstandard.compress(ARCHIVE), Compression.ZSTD),
        (b"\x50\x2a\x4d\x18\1\0\0\0x" + zstandard.compress(ARCHIVE), Compression.ZSTD),
    ],
)
def test_the_compression_is_what_the_bytes_say(
    data: bytes, compression: Compression, tmp_path: Path
) -> None:
    indexed = rig.Indexed(data, tmp_path / "index", step=997)
    assert indexed.built.header.compression is compression
    assert indexed.built.header.layer.diff_id == rig.sha256(ARCHIVE)
    assert indexed.seen()[b"/usr/f"].content == text(300_000)


def test_an_empty_layer(tmp_path: Path) -> None:
    for data in (b"", bytes(1024), rig.gzipped(bytes(1024)), rig.gzipped(b"")):
        indexed = rig.Indexed(data, tmp_path / "index")
        assert indexed.built.header.blob_size == 0
        assert list(indexed.seen()) == [b""]


def test_the_sink_gets_the_blob(tmp_path: Path) -> None:
    blob = rig.Indexed(PACKED, tmp_path / "index").blob
    assert blob[:300_000] == text(300_000)
    assert blob[300_000:] == bytes(303_104 - 300_000) + b"x" + bytes(4095)


def test_between_files_there_are_zeros_also_where_a_buffer_is_used_again(tmp_path: Path) -> None:
    sizes = [1, 4095, 4097, 700_001, 4096, 8191] * 16
    files = [b"\xff" * size for size in sizes]
    archive = tar_of(*(member(b"%d" % n, data=data) for n, data in enumerate(files)))
    blob = rig.Indexed(archive, tmp_path / "index").blob
    assert blob == b"".join(data + bytes(-len(data) % 4096) for data in files)
    assert len(blob) > 10 << 20


def test_a_stream_of_pieces(tmp_path: Path) -> None:
    wanted = rig.Indexed(PACKED, tmp_path / "index").built

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(PACKED), 1000):
            await asyncio.sleep(0)
            yield PACKED[at : at + 1000]

    async def main() -> str:
        with (tmp_path / "streamed").open("w+b") as out:
            return (await build(pieces(), rig.layer_of(PACKED), out)).digest

    assert asyncio.run(main()) == wanted.digest
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "index").read_bytes()


def test_points_are_as_far_apart_as_is_asked_for(tmp_path: Path) -> None:
    few = bytes(byte % 200 for byte in range(256))  # packs, but refers to nothing
    content = random.Random(1).randbytes(4 << 20).translate(few)
    data = rig.gzipped(tar_of(member(b"f", data=content)))
    found = {}
    for interval in (1 << 19, 1 << 18):
        with rig.Indexed(data, tmp_path / "index", interval=interval).opened() as index:
            outs = [index.point_out(number) for number in range(index.points)]
        gaps = [b - a for a, b in itertools.pairwise(outs)]
        assert interval <= min(gaps)
        assert max(gaps) < interval + (1 << 17)  # and a deflate block
        found[interval] = len(gaps)
    assert found[1 << 18] > found[1 << 19] * 3 / 2 > 8


def test_a_cancelled_build_ends_its_threads(tmp_path: Path) -> None:
    fed = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield PACKED[: len(PACKED) // 2]
        fed.set()
        await asyncio.sleep(60)

    async def main() -> None:
        with (tmp_path / "out").open("w+b") as out:
            task = asyncio.create_task(build(pieces(), rig.layer_of(PACKED), out))
            await fed.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert not {"blob", "digest", "tar", "points", "index"} & threads()


def test_a_sink_that_fails_ends_the_build() -> None:
    def sink(_: int, __: memoryview) -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(OSError, match="No space"),
        IndexBuilder(rig.layer_of(PACKED), sink=sink) as b,
    ):
        b.feed(PACKED)
        b.finish(io.BytesIO())
    assert not {"blob", "digest", "tar", "points", "index"} & threads()


# ---- not the layer that was asked for -----------------------------------------------------------

OTHER = "sha256:" + "0" * 64


def test_a_wrong_digest_is_refused() -> None:
    layer = rig.layer_of(PACKED)
    with pytest.raises(LayerError, match=f"the layer is {layer.digest}, not {OTHER}"):
        index(layer._replace(digest=OTHER), PACKED)
    with pytest.raises(LayerError, match=f"the layer's tar is {rig.sha256(ARCHIVE)}, not {OTHER}"):
        index(layer._replace(diff_id=OTHER), PACKED)
    with pytest.raises(LayerError, match="only sha256 and sha512"):
        index(layer._replace(digest="md5:1234"), PACKED)


def test_sha512_layers() -> None:
    layer = rig.layer_of(PACKED)._replace(digest=f"sha512:{hashlib.sha512(PACKED).hexdigest()}")
    index(layer, PACKED)


def test_a_wrong_size_is_refused() -> None:
    layer = rig.layer_of(PACKED)
    with pytest.raises(LayerError, match=r"truncated: \d+ of the layer's \d+ bytes"):
        index(layer, PACKED[:-1])
    with pytest.raises(LayerError, match="longer than"):
        index(layer, PACKED + b"\0")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"BZh91AY&SY" + bytes(1000), "compressed by bzip2"),
        (b"\xfd7zXZ\0" + bytes(1000), "compressed by xz"),
        (b"not a tar at all" * 100, "tar: .*offset 0"),
        (PACKED[:5000], "gzip: truncated"),
        (rig.gzipped(ARCHIVE[:100_000]), "tar: truncated in the data of 'usr/f'"),
        (rig.gzipped(tar_of(member(b"n", b"1", link=b"usr/old"))), "'n': hard link to 'usr/old'"),
        (b"\x1f\x8b", "tar: truncated in a header|gzip: truncated"),
    ],
)
def test_what_is_no_layer_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(LayerError, match=says):
        index(rig.layer_of(data), data)
    assert not {"blob", "digest", "tar", "points", "index"} & threads()


# ---- memory -------------------------------------------------------------------------------------

MEMORY = """
import os, sys
from tests.memory import peak
from pagein.images.layers.build import IndexBuilder
from pagein.images.layers.format import Layer
path, digest = sys.argv[1:]
with (
    IndexBuilder(Layer(digest, os.path.getsize(path), "", "")) as builder,
    open(path, "rb") as layer,
    open(path + ".index", "w+b") as out,
):
    while piece := layer.read(1 << 18):
        builder.feed(piece)
    built = builder.finish(out)
print(built.header.tar_size, peak())
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_layer(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    sha256 = hashlib.sha256()
    noise = os.urandom(1 << 20)
    with path.open("wb") as out:
        for number in range(1200):
            part = gzip.compress(member(b"f%d" % number, data=noise), 1)
            sha256.update(part)
            out.write(part)
    command = [sys.executable, "-c", MEMORY, str(path), f"sha256:{sha256.hexdigest()}"]
    top = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=300, check=True)
    size, memory = map(int, done.stdout.split())
    assert size > 1 << 30
    assert memory < 256 << 20


def test_an_index_is_opened_by_what_was_built(tmp_path: Path) -> None:
    built = rig.Indexed(PACKED, tmp_path / "index").built
    with Index(tmp_path / "index") as opened:
        assert opened.header == built.header
        assert opened.header.file_size == built.size


def test_threads_take_turns_more_often_while_an_index_is_built() -> None:
    before, objects = sys.getswitchinterval(), gc.get_threshold()
    layer = Layer(rig.sha256(b""), 0, "", "")
    with IndexBuilder(layer) as one:
        with IndexBuilder(layer) as other:
            assert sys.getswitchinterval() == pytest.approx(worker.SWITCH)
        assert gc.get_threshold() == (worker.OBJECTS, *objects[1:])
        assert sys.getswitchinterval() == pytest.approx(worker.SWITCH)
        assert gc.get_threshold() == (worker.OBJECTS, *objects[1:])
        other.close()
    one.close()
    assert sys.getswitchinterval() == pytest.approx(before)
    assert gc.get_threshold() == objects
