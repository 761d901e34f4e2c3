"""Frames and blocks that no encoder has written: what a decoder is asked questions with."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from pagein.images.layers.zstd.frames import MAGIC, MAX_BLOCK, RAW, RLE
from pagein.images.layers.zstd.labels import BLANK
from pagein.images.layers.zstd.sections import Sections

Reps = tuple[int, int, int]
"""The three repeat offsets, in bytes; the latest first."""

START: Final[Reps] = (1, 4, 8)
"""Those that a frame begins with (RFC 8878 3.1.1.5)."""

JUNK: Final = 9
"""Bytes that `setting` puts out."""

_CONTENT_SIZE = 0xC0  # of eight bytes, in a frame header

# Magic, ID 1, a Huffman tree of two symbols, and the predefined tables of offsets, match lengths
# and literals lengths, described (RFC 8878 3.1.1.3.2.2, 5).
_ENTROPY = bytes.fromhex(
    "37a430ec01000000801020841042664644444444244902002114c418638c21841042082184104208214444444444"
    "444444240900005110638c31c618630c21c4186366668646920400"
)


def header(window: int, size: int | None = None) -> bytes:
    """That of a frame without checksum. Blocks of 128 KiB are fine in it, whatever the window.

    `size`, of its content, is what decoding at once needs.
    """
    descriptor = window_descriptor(window)
    if size is None:
        return MAGIC + bytes((0, descriptor))
    return MAGIC + bytes((_CONTENT_SIZE, descriptor)) + size.to_bytes(8, "little")


def window_descriptor(window: int) -> int:
    """For a window of at least so many bytes, and a block (RFC 8878 3.1.1.1.2)."""
    window = max(window, MAX_BLOCK)
    exponent = window.bit_length() - 1
    mantissa = -(-8 * (window - (1 << exponent)) // (1 << exponent))
    return (exponent - 10) * 8 + mantissa  # a mantissa of 8 is the next exponent


def window(descriptor: int) -> int:
    """Bytes of the window that a descriptor tells."""
    return (8 + (descriptor & 7)) << (7 + (descriptor >> 3))


def dictionary(reps: Reps, length: int) -> tuple[bytearray, memoryview]:
    """One whose tables nothing uses, and the part of it that is for its content: `length` zeros.

    They are at least as many as the largest of `reps`.
    """
    head = _ENTROPY + struct.pack("<3I", *reps)
    made = bytearray(len(head) + length)
    made[: len(head)] = head
    return made, memoryview(made)[len(head) :]


def block(kind: int, size: int, payload: bytes, *, last: bool = False) -> bytes:
    """`size` as in its head."""
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + payload


def raw(data: bytes) -> Iterator[bytes]:
    """Blocks with `data` as it is."""
    for at in range(0, len(data), MAX_BLOCK):
        piece = data[at : at + MAX_BLOCK]
        yield block(RAW, len(piece), piece)


def blank(size: int) -> bytes:
    """One block of blanks."""
    return block(RLE, size, bytes((BLANK,)))


def stencil(parts: Sections, sequences: bytes) -> bytes:
    """A compressed block with blanks for literals, and `sequences`."""
    size = parts.literals.regenerated
    if size < 32:
        literals = (size << 3 | 1).to_bytes(1, "little")
    elif size < 4096:
        literals = (size << 4 | 1 << 2 | 1).to_bytes(2, "little")
    else:
        literals = (size << 4 | 3 << 2 | 1).to_bytes(3, "little")
    payload = literals + bytes((BLANK,)) + sequences
    return block(2, len(payload), payload)


def setting(reps: Iterable[int]) -> bytes:
    """Blocks behind which the repeat offsets are `reps`: three sequences that copy three bytes.

    No literals, all tables of one symbol: literals length 0, match length 3, and the offset is that
    which the bits give, less three.
    """
    blocks = []
    for rep in reversed(tuple(reps)):
        value = rep + 3
        code = value.bit_length() - 1  # the marker that ends the bits is the value's upper bit
        bits = value.to_bytes(code // 8 + 1, "little")
        payload = bytes((0, 1, 0x54, 0, code, 0)) + bits
        blocks.append(block(2, len(payload), payload))
    return b"".join(blocks)


def copying(number: int) -> bytes:
    """A block of a blank, and three bytes at repeat offset `number`, 1 to 3: with a literal before
    them these are as they stand (RFC 8878 3.1.1.5)."""
    payload = bytes((1 << 3, BLANK, 1, 0x54, 1, number.bit_length() - 1, 0, number))
    return block(2, len(payload), payload)
