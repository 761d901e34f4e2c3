"""zstd layers: a frame is one span, several frames are several."""

import random
import struct

import pytest
import zstandard

from pagein.images.layers.errors import LayerError
from pagein.images.layers.point import Point
from pagein.images.layers.zstd import ZstdDecoder, ZstdUnpacker

TEXT = b" ".join(b"%d" % n for n in range(400_000))


def frame(data: bytes, level: int = 3, *, sized: bool = True, checked: bool = False) -> bytes:
    made = zstandard.ZstdCompressor(level=level, write_content_size=sized, write_checksum=checked)
    return made.compress(data)


def skippable(data: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A57, len(data)) + data


def unpack(data: bytes, step: int = 1 << 16) -> tuple[bytes, list[Point]]:
    out: list[memoryview] = []
    points: list[Point] = []
    unpacker = ZstdUnpacker(out.append, points.append)
    for at in range(0, len(data), step):
        unpacker.feed(data[at : at + step])
    unpacker.finish()
    return b"".join(out), points


@pytest.mark.parametrize("step", [1, 5, 1000, 1 << 20])
def test_frames_of_every_kind(step: int) -> None:
    parts = [TEXT[:n] for n in (0, 1, 255, 256, 70_000, 200_000)]
    frames = [
        frame(part, sized=sized, checked=checked)
        for part in parts
        for sized, checked in [(True, True), (False, False)]
    ]
    data = skippable(b"first") + b"".join(frames) + skippable(b"x" * 100_000)
    content = b"".join(part for part in parts for _ in range(2))
    out, points = unpack(data, step)
    assert out == content
    assert [point.out for point in points] == [0, 341_024]  # short frames have none of their own
    for point in points:
        decoder = ZstdDecoder(point)
        assert b"".join(decoder.feed(data[point.bit // 8 :])) == content[point.out :]


@pytest.mark.parametrize("level", [-5, 1, 3, 10, 19])
def test_levels(level: int) -> None:
    assert unpack(frame(TEXT[:600_000], level))[0] == TEXT[:600_000]


def test_what_is_not_to_be_compressed() -> None:
    noise = random.Random(1).randbytes(1 << 20)
    assert unpack(frame(noise))[0] == noise
    assert unpack(frame(bytes(1 << 26)))[0] == bytes(1 << 26)


def test_zeros_come_in_pieces() -> None:
    rle = b"".join(struct.pack("<I", 0x20000 << 3 | 1 << 1)[:3] + b"\0" for _ in range(4000))
    data = b"\x28\xb5\x2f\xfd\0\x60" + rle + b"\1\0\0"
    sizes: list[int] = []
    unpacker = ZstdUnpacker(lambda view: sizes.append(len(view)), lambda _: None)
    unpacker.feed(data)
    unpacker.finish()
    assert sum(sizes) == 4000 * (128 << 10)
    assert max(sizes) <= 2 << 20


GOOD = frame(TEXT[:100_000], checked=True)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated"),
        (GOOD[:3], "truncated"),
        (GOOD[:-1], "truncated"),
        (GOOD + GOOD[:20], "truncated"),
        (GOOD + b"garbage", f"no frame begins at offset {len(GOOD)}"),
        (GOOD[:-1] + bytes((GOOD[-1] ^ 1,)), "is damaged"),
        (GOOD[:500] + bytes(50) + GOOD[550:], "damaged"),
        (b"\x28\xb5\x2f\xfd\x01\x60\x07" + GOOD[6:], "needs dictionary 7"),
        (b"\x28\xb5\x2f\xfd\0\xf8\1\0\0", "damaged"),  # a window of 2 TiB
        (b"\x28\xb5\x2f\xfd\0\x60\x07\0\0", "damaged block at offset 6"),
    ],
)
def test_damage_is_named(data: bytes, says: str) -> None:
    with pytest.raises(LayerError, match=f"zstd: .*{says}"):
        unpack(data)
