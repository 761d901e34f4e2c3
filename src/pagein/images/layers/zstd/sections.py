"""What stands in a compressed block (RFC 8878 3.1.1.3), as far as entering frames needs it.

Nothing is decoded. IndexError, or LayerError, for what cannot be a block.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pagein.images.layers.errors import LayerError

STORED, REPEATED, HUFFMAN, TREELESS = 0, 1, 2, 3
"""Types of literals sections."""
PREDEFINED, SYMBOL, DESCRIBED, REPEAT = 0, 1, 2, 3
"""Modes of a table of the sequences section."""

TABLES: Final = 3
"""Literals lengths, offsets, match lengths: in this order, everywhere."""
_MODE_SHIFTS: Final = (6, 4, 2)
_MAX_DESCRIPTION = 128  # bytes: 53 symbols of at most 10 bits, and repeats, are fewer


class Literals(NamedTuple):
    """The header of a literals section; sizes in bytes."""

    kind: int
    format: int
    header: int
    """Size of the header itself."""
    regenerated: int
    stored: int
    """Bytes that follow the header."""


class Sections(NamedTuple):
    """A compressed block, taken apart."""

    literals: Literals
    sequences: bytes
    """The sequences section."""
    amount: int
    """Sequences in it."""
    modes_at: int
    """Where in it the byte stands that has the modes; 0 if there are no sequences."""

    @property
    def modes(self) -> tuple[int, ...]:
        """How each of the three tables is given."""
        byte = self.sequences[self.modes_at]
        return tuple(byte >> shift & 3 for shift in _MODE_SHIFTS)


def parse(payload: bytes) -> Sections:
    """The payload of a compressed block."""
    literals = parse_literals(payload)
    sequences = payload[literals.header + literals.stored :]
    first = sequences[0]
    if first < 128:
        count, size = first, 1
    elif first < 255:
        count, size = ((first - 128) << 8) + sequences[1], 2
    else:
        count, size = sequences[1] + (sequences[2] << 8) + 0x7F00, 3
    if count and size == len(sequences):
        raise IndexError
    return Sections(literals, sequences, count, size if count else 0)


def parse_literals(payload: bytes) -> Literals:
    """RFC 8878 3.1.1.3.1.1."""
    kind, form = payload[0] & 3, payload[0] >> 2 & 3
    if kind in (STORED, REPEATED):
        header = (1, 2, 1, 3)[form]
        number = int.from_bytes(payload[:header], "little")
        regenerated = number >> (4 if form & 1 else 3)
        stored = regenerated if kind == STORED else 1
    else:
        header, bits = ((3, 10), (3, 10), (4, 14), (5, 18))[form]
        number = int.from_bytes(payload[:header], "little") >> 4
        regenerated = number & ((1 << bits) - 1)
        stored = number >> bits
    return Literals(kind, form, header, regenerated, stored)


def widened(literals: Literals, more: int) -> bytes | None:
    """The header of `literals` once they are HUFFMAN and `more` bytes; None if it cannot be."""
    stored = literals.stored + more
    form = literals.format
    while True:
        header, bits = ((3, 10), (3, 10), (4, 14), (5, 18))[form]
        if stored < 1 << bits:
            break
        if form in (0, 3):  # 0 is one stream, the others are four: only those are alike
            return None
        form += 1
    number = stored << (4 + bits) | literals.regenerated << 4 | form << 2 | HUFFMAN
    return number.to_bytes(header, "little")


def with_modes(modes: tuple[int, ...]) -> int:
    """The byte that has the modes."""
    return sum(mode << shift for mode, shift in zip(modes, _MODE_SHIFTS, strict=True))


def tree_size(tree: bytes) -> int:
    """Bytes of the Huffman tree that `tree` begins with (RFC 8878 4.2.1)."""
    head = tree[0]
    return 1 + head if head < 128 else 1 + (head - 127 + 1) // 2


def descriptions(block: Sections) -> list[bytes]:
    """How the block gives each table, without its mode: nothing for PREDEFINED and REPEAT."""
    at, found = block.modes_at + 1, []
    for mode in block.modes:
        end = at
        if mode == SYMBOL:
            end = at + 1
        elif mode == DESCRIBED:
            end = at + fse_size(block.sequences[at : at + _MAX_DESCRIPTION])
        if end > len(block.sequences):
            raise LayerError("zstd: a damaged block: its tables do not end")
        found.append(block.sequences[at:end])
        at = end
    return found


def fse_size(data: bytes) -> int:
    """Bytes of the FSE table description that `data` begins with (RFC 8878 4.1.1)."""
    bits = int.from_bytes(data, "little")
    remaining = (1 << ((bits & 15) + 5)) + 1  # probabilities that are left, and one
    at = 4
    while remaining > 1:
        width = remaining.bit_length()
        value = bits >> at & ((1 << width) - 1)
        low = value & ((1 << (width - 1)) - 1)
        spare = (1 << width) - 1 - remaining  # so many values need one bit less
        if low < spare:
            value, at = low, at + width - 1
        else:
            at += width
            if value >> (width - 1):
                value -= spare
        remaining -= abs(value - 1)
        if value == 1:  # a probability of zero: two bits say how many more follow
            while True:
                repeat = bits >> at & 3
                at += 2
                if repeat < 3 or at > 8 * len(data):
                    break
        if at > 8 * len(data):
            break
    if remaining != 1 or at > 8 * len(data):
        raise LayerError("zstd: a damaged block: no table of probabilities")
    return (at + 7) // 8
