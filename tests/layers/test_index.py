"""The index file: every byte of it is covered, and opening it reads little of it."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from tests.layers import rig
from tests.layers.rig import member, tar_of

from pagein.images.layers import format as layout
from pagein.images.layers import indexwriter
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression, Header, Kind, Layer
from pagein.images.layers.index import Index, Piece
from pagein.images.layers.names import SOURCE, Named
from pagein.images.layers.point import Point
from pagein.images.layers.pointlist import PointList

LAYER = Layer("sha256:" + "1" * 64, 1000, "type/x", "sha256:" + "2" * 64)


def small(tmp_path: Path) -> rig.Indexed:
    archive = tar_of(
        member(b"usr/a", data=b"x" * 5000),
        member(b"usr/b", data=b"y"),
        member(b"c", b"2", link=b"t"),
        member(b"usr/m.py", data=b"import a\n"),
    )
    return rig.Indexed(rig.gzipped(archive), tmp_path / "index")


def write_extents(
    path: Path, columns: tuple[array[int], array[int], array[int]], size: int
) -> None:
    header = Header(LAYER, Compression.NONE, 0, size, size, 4096, 65536)
    with path.open("wb") as out:
        indexwriter.write(
            out,
            header,
            metadata=[bytes(4096)],
            extents=columns,
            points=[],
            digests=bytes(32 * -(-size // 65536)),
            implied=[],
        )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    indexed = small(tmp_path)
    with indexed.opened() as index:
        assert index.header == indexed.built.header
        assert index.header.layer == rig.layer_of(indexed.data, rig.sha256(gzip_content(indexed)))
        assert index.header.compression is Compression.GZIP
        assert index.implied() == [b"", b"usr"]
        pieces = [Piece(0, 512, 5000), Piece(8192, 6144, 1), Piece(12288, 7680, 9)]
        assert list(index.pieces(0, 1 << 40)) == pieces
        assert index.names(12288) == Named(SOURCE, b"", (b"a",))
        assert [index.names(start) for start in (0, 8192, 12289, 1 << 40)] == [None] * 4
        assert list(index.pieces(100, 200)) == [Piece(100, 612, 100)]
        assert list(index.pieces(5000, 8192)) == []
        assert index.point(0)[::2] == (0, b"")
        index.verify()
    assert rig.sha256(indexed.path.read_bytes()) == indexed.built.digest


def gzip_content(indexed: rig.Indexed) -> bytes:
    return gzip.decompress(indexed.data)


def test_the_same_layer_gives_the_same_index(tmp_path: Path) -> None:
    first = small(tmp_path).path.read_bytes()
    (tmp_path / "again").mkdir()
    assert small(tmp_path / "again").path.read_bytes() == first


def test_each_flipped_bit_is_found_and_named(tmp_path: Path) -> None:
    good = small(tmp_path).path.read_bytes()
    path = tmp_path / "flipped"
    named = set()
    for at in range(len(good)):
        flipped = bytearray(good)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(LayerError, match="flipped") as caught, Index(path) as index:
            index.verify()
        named.add(str(caught.value).split(": ")[1].split(",")[0].removesuffix(" of the index"))
    wanted = {kind.name.lower() for kind in Kind} - {"metadata"}
    assert {"metadata", "the header", *wanted} <= {
        name.removeprefix("the table of ") for name in named
    }


def test_cut_and_grown_files_are_refused(tmp_path: Path) -> None:
    good = small(tmp_path).path.read_bytes()
    path = tmp_path / "index2"
    for bad in (b"", good[:10], good[:100], good[:-1], good + b"\0", b"x" * 500):
        path.write_bytes(bad)
        with pytest.raises(LayerError, match="index2"):
            Index(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    good = bytearray(small(tmp_path).path.read_bytes())
    good[8] += 1
    path = tmp_path / "newer"
    path.write_bytes(good)
    with pytest.raises(LayerError, match="index version 4: 3 is known"):
        Index(path)


def test_the_root_digest_tells_indexes_apart(tmp_path: Path) -> None:
    indexed = small(tmp_path)
    with indexed.opened() as index:
        root = index.root
    Index(indexed.path, root=root).close()
    with pytest.raises(LayerError, match=f"this index is {root}, not sha256:00"):
        Index(indexed.path, root="sha256:00")


def test_pieces_are_those_of_a_plain_search(tmp_path: Path) -> None:
    draw = random.Random(3)
    pieces, offset, position = [], 0, 0
    for _ in range(5 * layout.EXTENTS + 7):
        length = draw.randrange(1, 20_000)
        position += draw.choice([512, 1024, 1536])
        pieces.append(Piece(offset, position, length))
        offset += -(-length // 4096) * 4096
        position += -(-length // 512) * 512
    columns = tuple(array("Q", column) for column in zip(*pieces, strict=True))
    write_extents(tmp_path / "index", columns, max(offset, position))  # type: ignore[arg-type]
    with Index(tmp_path / "index") as index:
        assert list(index.pieces(0, offset)) == pieces
        for _ in range(200):
            start = draw.randrange(offset)
            end = start + draw.randrange(1, 300_000)
            wanted = []
            for at, tar, length in pieces:
                first, last = max(at, start), min(at + length, end)
                if first < last:
                    wanted.append(Piece(first, tar + first - at, last - first))
            assert list(index.pieces(start, end)) == wanted


MEASURE = """
import resource, sys, time
from pagein.images.layers.index import Index
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
before, begun = rss(), time.perf_counter()
with Index(sys.argv[1]) as index:
    seconds = time.perf_counter() - begun
    found = list(index.pieces(2_000_000_000, 2_000_065_536))
    print(len(found), rss() - before, seconds)
"""


def test_a_million_extents_take_little_memory(tmp_path: Path) -> None:
    """How long opening takes is printed by bench/index.py: the suite asserts no times."""
    count = 1_000_000
    offsets = array("Q", range(0, count * 4096, 4096))
    positions = array("Q", range(512, 512 + count * 1536, 1536))
    write_extents(
        tmp_path / "index", (offsets, positions, array("Q", [1000]) * count), count * 4096
    )
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "index")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    found, grown, _ = done.stdout.split()
    assert int(found) == 16 or int(found) == 17
    assert int(grown) < 20 << 20


# ---- an index that is whole, and lies -----------------------------------------------------------


def test_points_outside_are_refused(tmp_path: Path) -> None:
    header = Header(LAYER, Compression.GZIP, 0, 5000, 0, 4096, 65536)
    for points, says in [
        ([], "none at the start"),
        ([Point(1, 80, b"")], "none at the start"),
        ([Point(0, 8000, b"")], "point 0 of the index: beyond the layer"),
    ]:
        path = tmp_path / "liar"
        kept = PointList()
        for point in points:
            kept.add(point)
        with path.open("wb") as out:
            indexwriter.write(
                out,
                header,
                metadata=[bytes(4096)],
                extents=(array("Q"), array("Q"), array("Q")),
                points=kept.blocks(LAYER.size),
                digests=b"",
                implied=[],
            )
        with pytest.raises(LayerError, match=says), Index(path) as index:
            index.point(0)
