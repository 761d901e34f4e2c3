"""Windows of labels, and what comes of them: which byte a decoder has taken from where.

A label is a place, a number to the base of 255, one digit a window: so a stencil is decoded with
three windows of 8 MiB, which differ in nothing but their content (four if they are larger than
16 MiB), and what comes out of all of them side by side names the places. Blanks stay blank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from pagein.images.layers.zstd import labels, synthetic
from pagein.images.layers.zstd.frames import END
from pagein.images.layers.zstd.labels import BASE, BLANK, DIGITS, VALUES
from pagein.images.layers.zstd.library import library

LEAST: Final = 1 << 20
"""Bytes: windows of labels are not smaller."""

STREAM: Final = 4 << 20
"""Places beyond the window: for labels that are put into frames."""

_STRIDE = 3

Body = Sequence[bytes]
"""What a frame has between its header and its end: the same for all planes, or one for each."""


class Planes:
    """Windows of labels for frames whose window is `window` bytes at most."""

    def __init__(self, window: int) -> None:
        self.size: Final = max(LEAST, window)
        """Bytes of a window of labels."""
        self.count: Final = 3 if self.size + STREAM <= BASE**3 else 4
        few = self.count == 3  # then they are kept: all points need them
        self._kept = [self._dictionary(plane) for plane in range(self.count)] if few else []

    def labels(self, plane: int, start: int, end: int) -> bytes:
        """Those of the places from `start` to `end`, in one window."""
        unit = int(BASE**plane)
        first, last = start // unit, -(-end // unit)
        if not plane:
            digits = DIGITS * (last // BASE + 1 - first // BASE)
            return digits[start % BASE :][: end - start]
        rows = [DIGITS[n % BASE : n % BASE + 1] * unit for n in range(first, last)[:BASE]]
        digits = b"".join([rows[n % BASE] for n in range(last - first)])
        return digits[start - first * unit :][: end - start]

    def ask(self, bodies: Sequence[Body]) -> list[list[bytes]]:
        """What becomes of each body, in each plane."""
        found: list[list[bytes]] = [[] for _ in bodies]
        for plane, dictionary in self._dictionaries():
            for outputs, body in zip(found, bodies, strict=True):
                stream = library().stream(dictionary)
                frame = synthetic.header(self.size) + body[plane % len(body)] + END
                outputs.append(stream.decompress(frame))
        return found

    def place(self, outputs: Sequence[bytes], at: int) -> int:
        """Which place the byte at `at` comes from; -1 for a blank."""
        digits = [output[at] for output in outputs]
        if BLANK in digits:
            return -1
        return sum(VALUES[digit] * BASE**plane for plane, digit in enumerate(digits))

    def sources(
        self, body: Iterable[bytes], skip: int, size: int, gap: int
    ) -> list[tuple[int, int]]:
        """Which ranges of the window come out, sorted; those no further apart than `gap` are one.

        `body` gives `skip` bytes that do not count, and `size` others. No match is shorter than
        three bytes (RFC 8878 3.1.1.3.2.1.1). So one byte in three is looked at, and two more are
        taken on either side of where it comes from.
        """
        frame = b"".join((synthetic.header(self.size, skip + size), *body, END))
        samples = bytearray(4 * -(-size // _STRIDE))
        for plane, dictionary in self._dictionaries():
            output = library().decode(frame, dictionary)
            labels.put(samples, plane, output, skip, _STRIDE)
            del output  # it is as large as the window
        firsts, lasts = labels.runs(samples, self.count, self.size, gap + 2 * _STRIDE - 2)
        reach = _STRIDE - 1
        found = [
            (first - reach, last + reach + 1) for first, last in zip(firsts, lasts, strict=True)
        ]
        if found:  # only at the edges they may be outside
            found[0] = max(0, found[0][0]), found[0][1]
            found[-1] = found[-1][0], min(self.size, found[-1][1])
        return found

    def _dictionaries(self) -> Iterator[tuple[int, Any]]:
        for plane in range(self.count):
            yield plane, self._kept[plane] if self._kept else self._dictionary(plane)

    def _dictionary(self, plane: int) -> Any:
        made, content = synthetic.dictionary(synthetic.START, self.size)
        content[:] = self.labels(plane, 0, self.size)
        return library().dictionary(made)
