"""gzip layers: members, headers, ends; and every point entered."""

import gzip
import itertools
import random
import shutil
import struct
import subprocess
import zlib
from collections import deque

import pytest

from pagein.images.layers import inflate, window
from pagein.images.layers.errors import LayerError
from pagein.images.layers.gzip import GzipDecoder, GzipUnpacker
from pagein.images.layers.inflate import Library
from pagein.images.layers.point import INTERVAL, KEPT, Point


def text(size: int, seed: int = 1) -> bytes:
    """Compresses to a third or so, and refers far back."""
    draw = random.Random(seed)
    words = [draw.randbytes(draw.randrange(3, 12)) for _ in range(400)]
    out = bytearray()
    while len(out) < size:
        out += b" ".join(draw.choices(words, k=200)) + draw.randbytes(100)
    return bytes(out[:size])


def unpack(data: bytes, step: int = 1 << 16, interval: int = INTERVAL) -> tuple[bytes, list[Point]]:
    out: list[bytes] = []
    points: list[Point] = []
    unpacker = GzipUnpacker(lambda view: out.append(bytes(view)), points.append, interval)
    try:
        for at in range(0, len(data), step):
            unpacker.feed(data[at : at + step])
        unpacker.finish()
    finally:
        unpacker.close()
    return b"".join(out), points


def enter(data: bytes, point: Point, step: int = 1 << 16) -> bytes:
    decoder = GzipDecoder(point)
    start = point.bit // 8
    pieces = (data[at : at + step] for at in range(start, len(data), step))
    return b"".join(part for piece in pieces for part in decoder.feed(piece))


def header(flags: int, *fields: bytes) -> bytes:
    head = b"\x1f\x8b\x08" + bytes((flags,)) + bytes(6) + b"".join(fields)
    return head + struct.pack("<H", zlib.crc32(head) & 0xFFFF) * (flags >> 1 & 1)


def raw_member(head: bytes, content: bytes) -> bytes:
    deflate = zlib.compressobj(6, wbits=-15)
    packed = deflate.compress(content) + deflate.flush()
    return head + packed + struct.pack("<II", zlib.crc32(content), len(content))


@pytest.fixture(params=[False, True], ids=["zlib", "zlib-ng"])
def each_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """zlib and zlib-ng, whichever is preferred."""
    one = inflate.library() if request.param else Library("libz.so.1", ng=False)
    if one.ng is not request.param:
        pytest.skip("needs zlib-ng")
    monkeypatch.setattr(inflate, "library", lambda: one)


FHCRC, FEXTRA, FNAME, FCOMMENT = 2, 4, 8, 16
EXTRA = struct.pack("<H", 6) + b"BC\2\0ab"
HEADERS = [
    header(0),
    header(FHCRC),
    header(FEXTRA, EXTRA),
    header(FNAME, b"a name\0"),
    header(FCOMMENT, b"a comment\0"),
    header(1 | FHCRC | FEXTRA | FNAME | FCOMMENT, EXTRA, b"n\0", b"c\0"),
]


@pytest.mark.usefixtures("each_library")
@pytest.mark.parametrize("step", [1, 3, 1000, 1 << 20])
def test_every_header_and_many_members(step: int) -> None:
    parts = [text(1000 * n, n) for n in range(1, 7)]
    data = b"".join(map(raw_member, HEADERS, parts)) + bytes(100)
    assert unpack(data, step)[0] == b"".join(parts)


def test_a_wrong_header_checksum_is_seen() -> None:
    head = bytearray(header(FHCRC | FNAME, b"n\0"))
    head[-4] ^= 1
    with pytest.raises(LayerError, match="header crc mismatch"):
        unpack(raw_member(bytes(head), b"x"))


@pytest.mark.usefixtures("each_library")
@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_every_point_is_a_way_in(level: int) -> None:
    content = text(7 << 20)
    data = gzip.compress(content, level)
    out, points = unpack(data)
    assert out == content
    assert len(points) >= 3
    assert points[0][0] == 0
    for point in points:
        assert enter(data, point) == content[point.out :]


@pytest.mark.usefixtures("each_library")
def test_blocks_are_passed_over_but_not_those_where_a_point_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mixed = text(3 << 20) + random.Random(2).randbytes(3 << 20) + bytes(3 << 20)
    data = gzip.compress(mixed, 6) + gzip.compress(text(50_000), 1)
    found = unpack(data, 70_000, 100_000)
    monkeypatch.setattr(GzipUnpacker, "_step", lambda self, _: self._inflate.step())
    assert found == unpack(data, 70_000, 100_000)
    assert len(found[1]) > 40


def test_a_view_holds_as_long_as_it_is_said_to() -> None:
    content = text(12 << 20)
    views: deque[memoryview] = deque(maxlen=KEPT + 1)
    copies: deque[bytes] = deque(maxlen=KEPT + 1)

    def output(view: memoryview) -> None:
        views.append(view)
        copies.append(bytes(view))
        assert list(views) == list(copies)

    unpacker = GzipUnpacker(output, lambda _: None)
    unpacker.feed(gzip.compress(content, 6))
    unpacker.finish()
    assert len(views) == KEPT + 1


def test_points_stand_in_every_phase() -> None:
    content = text(5 << 20)
    data = gzip.compress(content, 5)
    points = unpack(data, interval=40_000)[1]
    assert {point.bit % 8 for point in points} == set(range(8))
    for point in points:
        start = point.bit // 8
        found = b"".join(GzipDecoder(point).feed(data[start : start + 40_000]))
        assert found
        assert found == content[point.out :][: len(found)]


def test_members_between_points() -> None:
    parts = [text(700_000, n) for n in range(12)]
    data = b"".join(gzip.compress(part, 6) for part in parts) + bytes(512)
    content = b"".join(parts)
    out, points = unpack(data)
    assert out == content
    for point in points:
        assert enter(data, point, 1000) == content[point.out :]


@pytest.mark.skipif(shutil.which("pigz") is None, reason="needs pigz")
@pytest.mark.parametrize("options", [["-p2"], ["-p2", "-i", "-b", "128"]])
def test_pigz(options: list[str]) -> None:
    content = text(3 << 20)
    command = ["pigz", *options]
    data = subprocess.run(command, input=content, capture_output=True, check=True, timeout=200)
    out, points = unpack(data.stdout)
    assert out == content
    for point in points:
        assert enter(data.stdout, point) == content[point.out :]


def test_data_that_does_not_compress_has_points_as_near() -> None:
    data = gzip.compress(random.Random(1).randbytes(8 << 20), 6)
    points = unpack(data)[1]
    packed = [(b.bit - a.bit) // 8 for a, b in itertools.pairwise(points)]
    assert max(packed) <= 1 << 20
    assert not any(point.window.strip(b"\0") for point in points)


def test_windows_hold_what_is_needed_and_no_more() -> None:
    content = text(12 << 20)
    points = unpack(gzip.compress(content, 6))[1]
    for point in points[1:]:
        whole = content[point.out - len(point.window) : point.out]
        assert all(have in (0, want) for have, want in zip(point.window, whole, strict=True))
        assert 0 < len(zlib.compress(point.window)) < len(zlib.compress(whole)) * 0.8


def test_a_window_that_seems_wrong_stays_whole() -> None:
    real = bytes(range(256)) * 128
    assert window.sparse(real, 3, b"\xff" * 100, b"output") == real
    assert window.sparse(real, 0, b"", b"output") == real


def test_zeros_by_the_gigabyte_take_little() -> None:
    deflate = zlib.compressobj(9, wbits=31)
    data = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(100)) + deflate.flush()
    sizes: list[int] = []
    points: list[Point] = []
    unpacker = GzipUnpacker(lambda view: sizes.append(len(view)), points.append)
    unpacker.feed(data)
    unpacker.finish()
    assert sum(sizes) == 100 << 20
    assert max(sizes) <= 1 << 20
    assert len(points) >= 100 // 5  # blocks of zeros are as long


# ---- the end, and damage ------------------------------------------------------------------------

SMALL = gzip.compress(text(50_000), mtime=0)  # a part of it is in names of tests


@pytest.mark.parametrize("end", [b"", b"\0", bytes(100_000)])
def test_zeros_may_follow(end: bytes) -> None:
    assert unpack(SMALL + end, 1000)[0] == text(50_000)


@pytest.mark.usefixtures("each_library")
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated: the layer ends after 0 bytes"),
        (SMALL[:5], "truncated: the layer ends after 5"),
        (SMALL[:-1], "truncated"),
        (SMALL + SMALL[:-9], "truncated"),
        (SMALL + b"\x1f", "truncated"),
        (SMALL + b"garbage", f"follows the last member, at offset {len(SMALL)},"),
        (SMALL + b"\0\0" + SMALL, f"at offset {len(SMALL) + 2},"),
        (SMALL[:-5] + b"\xff" + SMALL[-4:], "incorrect data check, near offset"),
        (SMALL[:-1] + b"\xff", "incorrect length check, near offset"),
        (b"\x1f\x8c" + SMALL[2:], "incorrect header check"),
        (SMALL[:1000] + bytes(500) + SMALL[1500:], "gzip: .*near offset"),
    ],
)
def test_damage_is_named(data: bytes, says: str) -> None:
    with pytest.raises(LayerError, match=says):
        unpack(data, 777)


def test_a_wrong_window_gives_other_bytes_or_an_error() -> None:
    """The decoder cannot know: that is what the digests of chunks are for."""
    content = text(12 << 20)
    data = gzip.compress(content, 6)
    point = unpack(data)[1][2]
    wrong = Point(point.out, point.bit, bytes(len(point.window)))
    try:
        found = enter(data, wrong)[: 1 << 20]
    except LayerError:
        return
    assert found != content[point.out :][: 1 << 20]
