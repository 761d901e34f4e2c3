"""zstd frames written by hand, block by block, in ways that no encoder has: each table may be
predefined, of one symbol, described, or that of an earlier block; literals may lack their tree.

Blocks have few sequences, of few kinds, so that nothing has to be encoded: with tables of one
symbol there are no states, and with others there is one sequence, whose states are chosen.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from pagein.images.layers.zstd import synthetic
from pagein.images.layers.zstd.sections import fse_size

RAW, RLE, COMPRESSED = 0, 1, 2
PREDEFINED, SYMBOL, DESCRIBED, REPEAT = 0, 1, 2, 3
STORED, REPEATED, HUFFMAN, TREELESS = 0, 1, 2, 3
LL, OF, ML = 0, 1, 2

# What some states of the predefined tables mean (RFC 8878, appendix A), and their bits.
STATES: tuple[tuple[int, ...], ...] = ((0, 0, 1, 3, 4, 6, 7, 9, 10), (0, 6, 9), (0, 1, 2, 3, 5, 6))
BITS = (6, 5, 6)
SYMBOLS = (range(16), range(12), range(32))


def _descriptions() -> tuple[bytes, bytes, bytes]:
    """The predefined distributions, described."""
    data = bytes(synthetic.dictionary((1, 4, 8), 0)[0][10:-12])
    found, at = [], 0
    for _ in range(3):  # offsets, match lengths, literals lengths
        size = fse_size(data[at:])
        found.append(data[at : at + size])
        at += size
    return found[2], found[0], found[1]


DESCRIPTIONS = _descriptions()


class Writer:
    """One frame, of blocks that are drawn. `frame` is it so far, without an end."""

    def __init__(self, draw: random.Random, window: int = 1 << 17) -> None:
        self.window = synthetic.window(synthetic.window_descriptor(window))
        self.frame = bytearray(synthetic.header(window))
        self.size = 0
        """Bytes of its content."""
        self._draw = draw
        self._reps = [1, 4, 8]
        self._tables: list[int | None] = [-1] * 3  # a symbol; None for a whole table
        self._pair = b""  # letters of the last tree

    def end(self) -> bytes:
        """The frame."""
        return bytes(self.frame) + b"\1\0\0"

    def raw(self, size: int) -> None:
        """A block as it is."""
        self._put(RAW, size, self._draw.randbytes(size))

    def rle(self, size: int) -> None:
        """A block of one byte."""
        self._put(RLE, size, self._draw.randbytes(1))

    def _put(self, kind: int, size: int, payload: bytes, content: int | None = None) -> None:
        self.frame += synthetic.block(kind, size, payload)
        self.size += size if content is None else content

    def compressed(
        self,
        literals: int,
        modes: tuple[int, int, int] | None,
        *,
        sequences: int = 1,
        spare: int = 5,
        offset: Callable[[], int] | None = None,
    ) -> None:
        """A compressed block; no `modes` is no sequences. `spare` literals follow the last one.

        `offset` gives offset values: 1 to 3 are repeat offsets, others three less than themselves.
        """
        if modes is None:
            section, used, copied = b"\0", 0, 0
        else:
            section, used, copied = self._sequences(modes, sequences, spare, offset)
        payload = self._literals(literals, used + spare) + section
        self._put(COMPRESSED, len(payload), payload, used + spare + copied)

    # ---- literals

    def _literals(self, kind: int, size: int) -> bytes:
        draw = self._draw
        if kind in (STORED, REPEATED):
            header = (size << 4 | 3 << 2 | kind).to_bytes(3, "little")
            return header + draw.randbytes(size if kind == STORED else 1)
        tree = b""
        if kind == HUFFMAN:
            first = draw.randrange(1, 100)
            tree = bytes((127 + first + 1,)) + _nibbles([0] * first + [1])
        number = 1 << size | draw.getrandbits(size)  # each a bit, the first one uppermost
        stream = number.to_bytes(size // 8 + 1, "little")
        stored = len(tree) + len(stream)
        assert size < 1024 and stored < 1024
        return (stored << 14 | size << 4 | kind).to_bytes(3, "little") + tree + stream

    # ---- sequences

    def _sequences(
        self,
        modes: tuple[int, int, int],
        count: int,
        spare: int,
        offset: Callable[[], int] | None,
    ) -> tuple[bytes, int, int]:
        """The section, literals used before matches, bytes copied."""
        draw = self._draw
        parts, symbols, states = [], [0, 0, 0], []
        chosen = offset() if offset is not None else draw.choice([1, 2, 3, draw.randrange(4, 4000)])
        for table, mode in enumerate(modes):
            held = self._tables[table]
            if mode == SYMBOL:
                limit = SYMBOLS[table]
                held = chosen.bit_length() - 1 if table == OF else draw.choice(limit)
                parts.append(bytes((held,)))
            elif mode in (PREDEFINED, DESCRIBED):
                held = None
                parts.append(DESCRIPTIONS[table] if mode == DESCRIBED else b"")
            assert held != -1, "nothing to repeat"
            self._tables[table] = held
            if held is None:
                count = 1
                state = draw.randrange(len(STATES[table]))
                symbols[table] = STATES[table][state]
                states.append(format(state, f"0{BITS[table]}b"))
            else:
                symbols[table] = held
        bits = "1" + "".join(states)
        used = copied = 0
        for _ in range(count):
            value = self._value(symbols[OF], symbols[LL], self.size + used + copied + symbols[LL])
            if symbols[OF]:
                bits += format(value - (1 << symbols[OF]), f"0{symbols[OF]}b")
            used += symbols[LL]
            copied += symbols[ML] + 3
        stream = int(bits, 2).to_bytes(-(-len(bits) // 8), "little")
        byte = sum(mode << shift for mode, shift in zip(modes, (6, 4, 2), strict=True))
        assert count < 128
        return bytes((count, byte)) + b"".join(parts) + stream, used, copied

    def _value(self, code: int, literals: int, at: int) -> int:
        """An offset value of this code that is valid at `at`; keeps the repeat offsets.

        RFC 8878 3.1.1.5.
        """
        most = min(at, self.window)
        value = (1 << code) + self._draw.randrange(1 << code)
        if value > 3:
            value = max(1 << code, min(value, most + 3))
            assert value > 3 and value - 3 <= most, "no such offset yet"
            self._reps = [value - 3, *self._reps[:2]]
            return value
        reps, which = self._reps, value - 1 + (literals == 0)
        if which == 3:
            found = reps[0] - 1
            assert found, "no such offset yet"
            self._reps = [found, reps[0], reps[1]]
        else:
            found = reps.pop(which)
            reps.insert(0, found)
        assert found <= most
        return value


def _nibbles(weights: list[int]) -> bytes:
    weights = [*weights, *[0] * (len(weights) % 2)]
    return bytes(a << 4 | b for a, b in zip(weights[::2], weights[1::2], strict=True))


def drawn(draw: random.Random, blocks: int, window: int = 1 << 17) -> bytes:
    """A frame of so many blocks of every kind."""
    writer = Writer(draw, window)
    writer.raw(9000)
    tree, given = False, False
    for _ in range(blocks):
        kind = draw.randrange(10)
        if kind == 0:
            writer.raw(draw.choice([0, 1, 50, 3000]))
        elif kind == 1:
            writer.rle(draw.choice([1, 50, 3000]))
        else:
            literals = draw.choice([STORED, REPEATED, HUFFMAN, TREELESS if tree else HUFFMAN])
            tree = tree or literals == HUFFMAN
            choices = [PREDEFINED, SYMBOL, DESCRIBED, *([REPEAT] * 4 if given else [])]
            modes = (draw.choice(choices), draw.choice(choices), draw.choice(choices))
            if draw.randrange(8) == 0:
                writer.compressed(literals, None, spare=draw.randrange(1, 300))
            else:
                given = True
                count = draw.choice([1, 2, 5, 20])
                writer.compressed(literals, modes, sequences=count, spare=draw.randrange(1, 40))
    return writer.end()
