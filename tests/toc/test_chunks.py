"""Chunks read out of a layer: large ones, far ones, wrong ones; how little is asked for."""

import asyncio
import gzip
import hashlib
import random
from array import array
from pathlib import Path

import pytest
from tests.layers.rig import Bytes, member, tar_of
from tests.toc.rig import Opened
from tests.toc.writers import Document, Options, estargz, zstd_chunked

from pagein.images.layers import format as layout
from pagein.images.layers.chunks import MAX_CHUNK, Chunk, ChunkDecoder, pack, unpack
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression, Header, Layer
from pagein.images.layers.gzip import GzipDecoder
from pagein.images.layers.index import Index
from pagein.images.layers.indexwriter import write
from pagein.images.layers.read import LayerOrigin
from pagein.images.toc.makeindex import GROUP


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class Wrong(Bytes):
    """Gives one wrong byte, as often as it is told to."""

    def __init__(self, data: bytes, at: int, times: int) -> None:
        super().__init__(data)
        self._at = at
        self._times = times

    async def read(self, offset: int, length: int) -> bytes:
        data = bytearray(await super().read(offset, length))
        if self._times and offset <= self._at < offset + length:
            self._times -= 1
            data[self._at - offset] ^= 1
        return bytes(data)


def read(opened: Opened, source: Bytes, offset: int, length: int) -> bytes:
    async def main() -> bytes:
        with Index(opened.path) as index:
            origin = LayerOrigin(index, source)
            try:
                return await origin.read(offset, length)
            finally:
                await origin.close()

    return asyncio.run(main())


def test_a_chunk_too_large_for_a_span(tmp_path: Path) -> None:
    """It is decoded whole before any of it is given out, whatever of it is asked for."""
    content = noise(64 << 10) * 200
    made = estargz(tar_of(member(b"a", data=content)), Options(chunk=1 << 30))
    opened = Opened(made, tmp_path / "index")
    for offset in (0, 5_000_000, len(content) - 100):
        found = read(opened, Bytes(made.data), offset, 100)
        assert found == content[offset : offset + 100]
    damaged = bytearray(made.data)
    damaged[-5000] ^= 1
    with pytest.raises(OSError, match="the chunk at offset"):
        read(opened, Bytes(bytes(damaged)), 0, 100)


@pytest.mark.parametrize("times", [1, 2])
def test_wrong_bytes_are_asked_for_once_more(times: int, tmp_path: Path) -> None:
    content = noise(100_000)
    made = zstd_chunked(tar_of(member(b"a", data=content)), Options(chunk=20_000))
    opened = Opened(made, tmp_path / "index")
    source = Wrong(made.data, 50_000, times)
    if times == 2:
        with pytest.raises(OSError, match=r"wrong bytes in the chunk at offset 4\d+ of the layer"):
            read(opened, source, 0, len(content))
    else:
        assert read(opened, source, 0, len(content)) == content


def test_what_is_far_away_is_not_asked_for(tmp_path: Path) -> None:
    """Between two files lies what no TOC names: it may be as large as somebody likes."""

    def without(toc: Document) -> None:
        toc["entries"] = [each for each in toc["entries"] if each["name"] != "gap"]

    gap = noise(5_000_000)
    tar = tar_of(member(b"a", data=b"a" * 100), member(b"gap", data=gap), member(b"b", data=b"b"))
    made = estargz(tar, Options(change=without))
    opened = Opened(made, tmp_path / "index")
    source = Bytes(made.data)
    blob = read(opened, source, 0, 8192)
    assert (blob[:100], blob[4096:4097]) == (b"a" * 100, b"b")
    assert len(source.asked) == 2
    assert source.bytes_asked < 200_000


def test_a_random_read_takes_a_group_or_two(tmp_path: Path) -> None:
    files = [member(b"%d" % number, data=noise(10_000, number)) for number in range(400)]
    made = estargz(tar_of(*files))
    opened = Opened(made, tmp_path / "index")
    for number in (0, 7, 200, 399):
        source = Bytes(made.data)
        at = number * 12288
        assert read(opened, source, at, 10_000) == noise(10_000, number)
        assert source.bytes_asked <= 2 * GROUP + 100_000


def test_many_tiny_files(tmp_path: Path) -> None:
    """More than a point has room for."""
    members = [member(b"%d" % number, data=b"%d" % number) for number in range(3000)]
    opened = Opened(zstd_chunked(tar_of(*members)), tmp_path / "index")
    with Index(opened.path) as index:
        assert index.points == 3
    assert opened.seen()[b"/2999"].content == b"2999"


def test_a_toc_larger_than_the_end_that_is_asked_for_first(tmp_path: Path) -> None:
    members = [member(noise(40, number).hex().encode(), kind=b"5") for number in range(2000)]
    made = estargz(tar_of(*members))
    opened = Opened(made, tmp_path / "index")
    assert len(opened.source.asked) == 2
    (at, length), (before, rest) = opened.source.asked
    assert at + length == len(made.data)
    assert before + rest == at  # no byte twice
    assert len(opened.seen()) == 2001


def test_a_layer_without_data(tmp_path: Path) -> None:
    tar = tar_of(member(b"a", kind=b"5"), member(b"empty"))
    for made in (estargz(tar), zstd_chunked(tar), estargz(tar_of()), zstd_chunked(tar_of())):
        opened = Opened(made, tmp_path / "index")
        assert len(opened.seen()) in (1, 3)
        assert opened.read()[1] == b""


def test_zeros_cost_nothing(tmp_path: Path) -> None:
    content = b"begin" + bytes(1_000_000) + b"end"
    made = zstd_chunked(tar_of(member(b"a", data=content)))
    opened = Opened(made, tmp_path / "index")
    source = Bytes(made.data)
    assert read(opened, source, 65536, 900_000) == bytes(900_000)
    assert source.asked == []
    assert read(opened, source, 0, len(content)) == content


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_fed_in_pieces(step: int) -> None:
    """Two members with other things between them, two chunks in the first one."""
    first, second = noise(5000), b"second"
    packed = [gzip.compress(first), gzip.compress(second)]
    data = packed[0] + b"between" + packed[1] + b"behind"
    start = len(packed[0]) + 7
    wanted = [first[100:300], first[4000:4500], second[1:4]]
    chunks = [
        Chunk(0, 100, 200, sha256(wanted[0])),
        Chunk(0, 4000, 500, sha256(wanted[1])),
        Chunk(start, 1, 3, sha256(wanted[2])),
    ]
    decoder = ChunkDecoder(0, len(data), chunks, lambda _: GzipDecoder())
    found = [
        piece for at in range(0, len(data), step) for piece in decoder.feed(data[at : at + step])
    ]
    assert found == wanted


def test_a_stream_that_is_too_short() -> None:
    data = gzip.compress(b"short")
    for chunk in (Chunk(0, 0, 6, bytes(32)), Chunk(0, 9, 1, bytes(32))):
        decoder = ChunkDecoder(0, len(data), [chunk], lambda _: GzipDecoder())
        with pytest.raises(LayerError, match="chunk at offset 0 of the layer: it ends before"):
            list(decoder.feed(data))


GOOD = [Chunk(5, 0, 1, bytes(32)), Chunk(5, 1, 1, bytes(32)), Chunk(9, 0, 1, bytes(32))]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pack(10, []),
        pack(10, GOOD)[:-1],
        pack(9, GOOD),
        pack(10, GOOD[::-1]),
        pack(10, [GOOD[0], GOOD[0]]),
        pack(10, [Chunk(5, 0, 0, bytes(32))]),
        pack(10, [Chunk(5, 1, MAX_CHUNK, bytes(32))]),
    ],
)
def test_points_that_cannot_be(content: bytes) -> None:
    assert unpack(pack(10, GOOD)) == (10, GOOD)
    with pytest.raises(LayerError):
        unpack(content)


@pytest.mark.parametrize(
    ("bit", "size", "end", "said"),
    [
        (40, 11, 10, "not of the size that it should be"),
        (48, 1, 10, "not within the layer"),
        (40, 1, 101, "not within the layer"),
        (40, 1, 5, "chunks out of order"),
    ],
)
def test_points_that_do_not_fit(bit: int, size: int, end: int, said: str, tmp_path: Path) -> None:
    content = bit.to_bytes(8, "little") + pack(end, GOOD[:1])
    nothing = array("Q"), array("Q"), array("Q")
    layer = Layer("sha256:" + "0" * 64, 100, "", "")
    with (tmp_path / "index").open("w+b") as out:
        write(
            out,
            Header(layer, Compression.GZIP_CHUNKS, 0, size, 0, 0, 65536),
            metadata=[],
            extents=nothing,
            points=[layout.pack(0, content)],
            digests=b"",
            implied=[],
        )
    with (
        Index(tmp_path / "index") as index,
        pytest.raises(LayerError, match=f"point 0 of the index: {said}"),
    ):
        index.place(0)
