"""Entering deflate data in its middle with Python's own zlib, and windows of only what is used.

A block may begin at any bit. `preamble` is a few bytes of valid deflate data that produce nothing
and end at the same bit of a byte: fed first, with the block's first bits put into its last byte,
they let the rest follow untouched.

A block refers to at most the 32 KiB before it, to few of them in fact. Which, is found by decoding
again with two windows of labels: an output byte that comes from the window then differs between
the two, and both together tell from where. All others are the same in both, so this is exact.
"""

from __future__ import annotations

import zlib

from pagein.images.layers.deflate import ERRORS, decompressor
from pagein.images.layers.inflate import WINDOW

# An empty block with fixed codes is 10 bits, the shortest with dynamic codes that is odd is 97:
# HLIT 0, HDIST 0, HCLEN 15, lengths for 18:1 1:2 0:2, 255 zeros, symbols 255 and 256 of length 1,
# a distance code of none, end of block. Phase p is p/2 of the first; if odd, after one of these.
_PREAMBLES = tuple(
    bytes.fromhex(digits)
    for digits in (
        "",
        "04e081080000000020f8537f01",
        "0200",
        "04e081080000000020f8537f0500",
        "020800",
        "04e081080000000020f8537f051000",
        "02082000",
        "04e081080000000020f8537f05104000",
    )
)


def preamble(phase: int, first: int) -> bytes:
    """What to feed in place of the byte `first`, of which the upper 8 - `phase` bits are wanted."""
    start = _PREAMBLES[phase]
    if not phase:
        return bytes((first,))
    return start[:-1] + bytes((start[-1] | first >> phase << phase,))


def enter(bit: int, first: int, window: bytes) -> tuple[zlib._Decompress, bytes]:
    """A decompressor of raw deflate data that begins at `bit`, and what to feed it first.

    `first` is the byte which that bit lies in; feed what follows that byte next.
    """
    return decompressor(-15, window), preamble(bit % 8, first)


def sparse(window: bytes, bit: int, data: bytes, output: bytes) -> bytes:
    """`window` with zeros where it is not needed for `data`, which begins at `bit`.

    `output` is what data really decodes to: 32 KiB of it, or all up to the end of the member.
    Should anything be odd, the whole window is returned.
    """
    if not window or not data:
        return window
    count = len(window)
    try:
        a, b = (_decode(labels[:count], bit, data, len(output)) for labels in (_LOW, _HIGH))
        if not len(a) == len(b) == len(output):
            return window
        pairs = bytearray(2 * len(output))
        pairs[::2], pairs[1::2] = a, b
        kept = bytearray(count)
        for pair in set(memoryview(pairs).cast("H")):
            low, high = pair & 255, pair >> 8
            if low != high:  # else a literal, the same in both
                source = low + 255 * (high - low - 1 & 255)
                kept[source] = window[source]
        result = bytes(kept)
        return result if _decode(result, bit, data, len(output)) == output else window
    except ERRORS:
        return window


def _decode(window: bytes, bit: int, data: bytes, length: int) -> bytes:
    decoder, start = enter(bit, data[0], window)
    return decoder.decompress(start + data[1:], length) if length else b""


# What stands in place of the window's byte i in either decoding: never the same in both.
_LOW = bytes(i % 255 for i in range(WINDOW))
_HIGH = bytes((i % 255 + 1 + i // 255) % 256 for i in range(WINDOW))
