"""Compressed files of every kind, as programs write them."""

import gzip
import random
import struct
import subprocess
import zlib
from collections.abc import Callable

import zstandard

SIZE = (3 << 20) + 4321


def text(size: int = SIZE, seed: int = 1) -> bytes:
    """Compresses to a half or so, and refers far back."""
    draw = random.Random(seed)
    words = [draw.randbytes(draw.randrange(3, 12)) for _ in range(400)]
    out = bytearray()
    while len(out) < size:
        out += b" ".join(draw.choices(words, k=200)) + draw.randbytes(100)
    return bytes(out[:size])


CONTENT = text()


def run(*command: str) -> Callable[[bytes], bytes]:
    """What a program makes of its standard input."""
    return lambda data: subprocess.run(command, input=data, capture_output=True, check=True).stdout


def members(data: bytes, size: int = 300_000) -> bytes:
    """A member for each piece, an empty one in between."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return gzip.compress(b"").join(gzip.compress(piece) for piece in pieces or [b""])


def bgzip(data: bytes, size: int = 65280) -> bytes:
    """As htslib: a member for each 64 KiB, its size in an extra field, and an empty one last."""
    out = bytearray()
    for at in [*range(0, len(data), size), len(data)]:
        piece = data[at : at + size]
        deflate = zlib.compressobj(6, wbits=-15)
        packed = deflate.compress(piece) + deflate.flush()
        out += b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H2sHH", 6, b"BC", 2, 0)
        struct.pack_into("<H", out, len(out) - 2, 18 + len(packed) + 8 - 1)
        out += packed + struct.pack("<II", zlib.crc32(piece), len(piece))
    return bytes(out)


def named(data: bytes) -> bytes:
    """A member with every field that a header may have."""
    extra = struct.pack("<H", 6) + b"BC\2\0ab"
    head = b"\x1f\x8b\x08" + bytes((1 | 2 | 4 | 8 | 16,)) + bytes(6) + extra + b"n\0c\0"
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    deflate = zlib.compressobj(6, wbits=-15)
    packed = deflate.compress(data) + deflate.flush()
    return head + packed + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def padded(data: bytes) -> bytes:
    """As a tape has it: zeros at the end."""
    return gzip.compress(data) + bytes(100_000)


def frames(data: bytes, size: int = 200_000) -> bytes:
    """As pzstd: a skippable frame before each; these have a checksum and no size."""
    made = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    skippable = struct.pack("<III", 0x184D2A50, 4, 0)
    return b"".join(skippable + made.compress(piece) for piece in pieces or [b""])


KINDS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "stored": lambda data: gzip.compress(data, 0),
    "members": members,
    "pigz": run("pigz", "-c", "-p2"),
    "bgzip": bgzip,
    "named": named,
    "padded": padded,
    "frame": zstandard.ZstdCompressor(write_checksum=True).compress,
    "frames": frames,
    "zstd": run("zstd", "-c", "-3"),
    "long": run("zstd", "-c", "-9", "--long=27"),
}
