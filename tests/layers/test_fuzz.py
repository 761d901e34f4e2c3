"""Damaged archives, layers and indexes: an error or a tree, never anything else."""

import gc
import hashlib
import io
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from tests.erofs import images
from tests.layers import rig
from tests.layers.rig import member, old_gnu, pax, tar_of
from tests.memory import forget_peak, peak

from pagein.images.layers.build import IndexBuilder
from pagein.images.layers.entry import Limits
from pagein.images.layers.errors import LayerError
from pagein.images.layers.index import Index

MEMORY = 512 << 20
EACH = 60.0  # seconds: a hang, not a measure

ARCHIVE = tar_of(
    pax((b"comment", b"c"), kind=b"g"),
    member(b"./", b"5", mode=0o755),
    pax((b"mtime", b"1.5"), (b"SCHILY.xattr.user.a", b"v"), (b"path", b"usr/long")),
    member(b"a", data=b"x" * 700),
    member(b"././@LongLink", b"L", b"n/" * 60 + b"\0"),
    member(b"n", data=b"y" * 5000),
    member(b"link", b"2", link=b"usr"),
    member(b"hard", b"1", link=b"usr/long"),
    member(b"dev", b"3", fields={329: b"0000001\0", 337: b"0000003\0"}),
    pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"20000")),
    member(b"s", data=b"2\n0\n3\n8192\n4\n".ljust(512, b"\0") + b"abcdefg"),
    pax((b"GNU.sparse.size", b"9000"), (b"GNU.sparse.map", b"0,3,5000,4")),
    member(b"s2", data=b"abcdefg"),
    old_gnu(b"s3", [(0, 512), (4096, 512)], 9000),
    member(b"d/.wh.gone"),
    member(b"d/.wh..wh..opq"),
)


def mend(archive: bytearray) -> bytes:
    """Right checksums again, so that what was changed is looked at."""
    for at in range(0, len(archive) - 511, 512):
        block = archive[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            archive[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(archive)


def damage(data: bytes, draw: random.Random) -> bytearray:
    """Bytes changed, removed, doubled, or cut off."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5, 30])):
        at = draw.randrange(len(changed) or 1)
        match draw.randrange(6):
            case 0 | 1:
                changed[at : at + 1] = draw.choice([b"\0", b"\xff", b"/", b"7", b"-", b".", b"\n"])
            case 2:
                changed[at : at + 1] = bytes((draw.randrange(256),))
            case 3:
                at -= at % 512
                changed[at:at] = changed[at : at + 512 * draw.randrange(1, 4)]
            case 4:
                del changed[at : at + draw.choice([1, 3, 512, 1024])]
            case 5:
                changed[at : at + 8] = struct.pack(">q", draw.choice([-1, 1 << 62, 1 << 33]))
    if draw.randrange(8) == 0:
        del changed[draw.randrange(len(changed) + 1) :]
    return changed


def archive(draw: random.Random) -> bytes:
    return mend(damage(ARCHIVE, draw))


def gzip_layer(draw: random.Random) -> bytes:
    return bytes(damage(rig.gzipped(ARCHIVE, draw.randrange(10)), draw))


def zstd_layer(draw: random.Random) -> bytes:
    return bytes(damage(zstandard.compress(ARCHIVE), draw))


def in_gzip(draw: random.Random) -> bytes:
    return rig.gzipped(archive(draw), 1)


LAYERS: list[Callable[[random.Random], bytes]] = [archive, gzip_layer, zstd_layer, in_gzip]


def index_of(data: bytes) -> bytes | None:
    """The index, or None where the layer was refused. Anything but LayerError goes through."""
    out = io.BytesIO()
    limits = Limits(nodes=10_000, names=1 << 20)
    try:
        with IndexBuilder(rig.layer_of(data), limits=limits) as builder:
            for at in range(0, len(data), 1000):
                builder.feed(data[at : at + 1000])
            builder.finish(out)
    except LayerError as error:
        assert str(error).isprintable()
        return None
    return out.getvalue()


def check_names(index: Index) -> None:
    """No name leads out of the tree."""
    devices = [b""] * bool(index.header.blob_size)
    image = images.of_bytes(index.metadata(0, index.header.metadata_size), *devices)
    for inode in image.walk():
        parts = inode.path.split(b"/")[1:]
        assert not {b".", b".."} & {*parts}


def fuzz_layers(count: int, directory: Path) -> None:
    accepted = refused = 0
    path = directory / "index"
    for seed in range(count):
        draw = random.Random(seed)
        began = time.monotonic()
        found = index_of(draw.choice(LAYERS)(draw))
        assert time.monotonic() - began < EACH, f"seed {seed}"
        if found is None:
            refused += 1
            continue
        accepted += 1
        path.write_bytes(found)
        with Index(path) as index:
            check_names(index)
    assert min(accepted, refused) > count // 20  # both ways were gone


def fuzz_indexes(count: int, directory: Path) -> None:
    """Indexes with damage, half of them with a header that says it is whole."""
    good = index_of(rig.gzipped(ARCHIVE))
    assert good is not None
    path = directory / "index"
    for seed in range(count):
        draw = random.Random(seed)
        changed = damage(good, draw)
        if draw.randrange(2):
            changed = reseal(changed)
        path.write_bytes(changed)
        try:
            with Index(path) as index:
                index.verify()
                list(index.pieces(0, 1 << 63))
                [index.point(number) for number in range(min(index.points, 100))]
                index.implied()
        except LayerError as error:
            assert str(error).isprintable()


def reseal(data: bytearray) -> bytearray:
    """Right digest and file size in the header, if it still has a size."""
    if len(data) < 100:
        return data
    size = int.from_bytes(data[12:16], "little")
    if 100 < size < len(data):
        data[16:24] = struct.pack("<Q", len(data))
        data[size - 32 : size] = hashlib.sha256(data[: size - 32]).digest()
    return data


def test_damaged_layers(tmp_path: Path) -> None:
    fuzz_layers(400, tmp_path)


def test_damaged_indexes(tmp_path: Path) -> None:
    fuzz_indexes(300, tmp_path)


def test_memory_is_given_back_without_the_garbage_collector() -> None:
    layers = [choice(random.Random(seed)) for seed in range(10) for choice in LAYERS]
    gc.collect()
    gc.disable()
    try:
        before = forget_peak()
        for layer in layers:
            index_of(layer)
        assert peak() - before < 100 << 20  # of one layer some ten; all of them kept 300
    finally:
        gc.enable()


@pytest.mark.long
def test_damaged_layers_and_indexes_in_numbers(tmp_path: Path) -> None:
    before = forget_peak()
    fuzz_layers(8000, tmp_path)
    fuzz_indexes(4000, tmp_path)
    assert peak() - before < MEMORY
