"""Entering deflate data in its middle with Python's own zlib, and windows of only what is used.

A block may begin at any bit. `preamble` is a few bytes of valid deflate data that produce nothing
and end at the same bit of a byte: fed first, with the block's first bits put into its last byte,
they let the rest follow untouched.

A block refers to at most the 32 KiB before it, to few of them in fact. Which, is found by decoding
again with two windows of labels: an output byte that comes from the window then differs between
the two, and both together tell from where. All others are the same in both.

It is enough to look at every third byte of output, and to keep two bytes more on either side of
where each comes from, since no match is shorter than three bytes (RFC 1951 3.2.5). Those at the
edges may have less than that of the window, or of the output: the window's last two bytes and the
output's last one are always among them. What a match copies of an earlier one's output, that one
has copied whole. A few bytes too many are kept so, for half the time.
"""

from __future__ import annotations

import sys
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
    Should anything be odd, or more data be needed for that, the whole window is returned.
    """
    if not window or not data:
        return window
    count = len(window)
    try:
        a, unused = _decode(_LOW[:count], bit, data, len(output))
        data = data[: len(data) - unused]
        b, _ = _decode(_HIGH[:count], bit, data, len(output))
        if not len(a) == len(b) == len(output):
            return window
        if a == b:
            return bytes(count)
        kept = _kept(_sources(a[::_STRIDE] + a[-1:], b[::_STRIDE] + b[-1:]))
        result = (int.from_bytes(window, "little") & kept).to_bytes(count, "little")
        result = result[:-2] + window[-2:]
        return result if _decode(result, bit, data, len(output))[0] == output else window
    except ERRORS:
        return window


def _sources(a: bytes, b: bytes) -> bytes:
    """A byte for each of the window's: 255 if some of the output comes from there, else 0.

    What is equal in both does not; for the rest `a` says which column, and how they differ which
    row. All bytes at once, as numbers of that many bytes, until only those are left.
    """
    low = int.from_bytes(a, "little")
    differ = low ^ int.from_bytes(b, "little")
    some = ((differ & _SEVENS) + _SEVENS | differ) & _EIGHTHS  # the upper bit of each such byte
    columns = (low & (some >> 7) * 255).to_bytes(len(a), "little").translate(None, b"\0")
    rows = differ.to_bytes(len(a), "little").translate(None, b"\0")
    places = bytearray(2 * len(rows))
    places[_COLUMN::2], places[1 - _COLUMN :: 2] = columns, rows
    found = bytearray(1 << 16)
    for place in memoryview(places).cast("H"):
        found[place] = 255
    return b"".join([found[row + 1 : row + 256] for row in range(256, 256 * (_ROWS + 1), 256)])


def _kept(sources: bytes) -> int:
    """The bytes of `sources`, and two more on either side of each, as a number."""
    found = int.from_bytes(sources, "little")
    found |= found << 8 | found >> 8
    return found | found << 8 | found >> 8


def _decode(window: bytes, bit: int, data: bytes, length: int) -> tuple[bytes, int]:
    """So many bytes of output, and how much of `data` they did not take."""
    if not length:
        return b"", 0
    decoder, start = enter(bit, data[0], window)
    output = decoder.decompress(b"".join((start, memoryview(data)[1:])), length)
    return output, len(decoder.unconsumed_tail)


_STRIDE = 3
_COLUMN = int(sys.byteorder != "little")  # which byte of a place is its column
_SAMPLES = WINDOW // _STRIDE + 2
_SEVENS = int.from_bytes(b"\x7f" * _SAMPLES, "little")
_EIGHTHS = int.from_bytes(b"\x80" * _SAMPLES, "little")

# What stands in place of the window's byte i in either decoding: its column, 1 + i % 255, and that
# with the number of its row, i // 255 + 1, as what differs. So they never are the same.
_ROWS = WINDOW // 255 + 1
_COLUMNS = bytes(range(1, 256))
_ALL = int.from_bytes(_COLUMNS * _ROWS, "little")
_NUMBERS = int.from_bytes(b"".join(bytes((row,)) * 255 for row in range(1, _ROWS + 1)), "little")
_LOW = (_COLUMNS * _ROWS)[:WINDOW]
_HIGH = (_ALL ^ _NUMBERS).to_bytes(255 * _ROWS, "little")[:WINDOW]
