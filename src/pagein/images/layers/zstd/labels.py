"""Which labels there are among millions of samples, as runs of places.

A sample is a 32-bit number, little endian, each byte of which is what one window of labels gave;
windows that are not used give zero. As digits to the base of 255 stand in the order of their
bytes, so do the numbers.

This is most of what a point costs. numpy marks each number in a field of bytes, in a sixth of the
time that a set of Python's takes; without it the result is the same.
"""

from __future__ import annotations

import functools
import importlib
from array import array
from collections.abc import Sequence
from operator import sub
from typing import Any, Final

BASE: Final = 255
BLANK: Final = 0x20
"""What stands for all literals in a stencil, and for nothing else."""
DIGITS: Final = bytes(byte for byte in range(256) if byte != BLANK)
VALUES: Final = bytes(max(0, DIGITS.find(byte)) for byte in range(256))

_AT_ONCE = 1 << 18  # samples: a megabyte, which stays in the processor's cache

Runs = tuple[Sequence[int], Sequence[int]]
"""The first and the last place of each."""


@functools.cache
def numpy() -> Any:
    """None if it is not here. It is not loaded before an index is built: that takes 0.1 s."""
    try:
        return importlib.import_module("numpy")
    except ImportError:
        return None


def put(samples: bytearray, plane: int, output: bytes, start: int, stride: int) -> None:
    """Every `stride`-th byte of `output`, from `start` on, is the digit of the next sample."""
    np = numpy()
    if np is None:
        samples[plane::4] = output[start::stride]
    else:
        columns = np.frombuffer(samples, np.uint8).reshape(-1, 4)
        columns[:, plane] = np.frombuffer(output, np.uint8)[start::stride]


def runs(samples: bytearray, planes: int, size: int, apart: int) -> Runs:
    """The places that `samples` name, blanks aside, of `planes` digits, all below `size`.

    A run ends where the next number is more than `apart` away, or a little less where a digit is
    carried; and where two are.
    """
    if numpy() is None:
        return _by_set(samples, planes, apart)
    return _marked(samples, planes, size, apart)


def place(number: int) -> int:
    """The place whose digits are the bytes of `number`."""
    carried = (number >> 8) + BASE * (number >> 16) + BASE**2 * (number >> 24)
    return number - carried


def _blank(planes: int) -> int:
    return int.from_bytes(bytes((BLANK,)) * planes, "little")


def _by_set(samples: bytearray, planes: int, apart: int) -> Runs:
    with memoryview(samples) as view, view.cast("I") as numbers:
        different = set(numbers)
    different.discard(_blank(planes))
    if not different:
        return (), ()
    raw = array("I", sorted(different)).tobytes()
    found = array("I", raw.translate(VALUES))
    breaks = [at for at, by in enumerate(map(sub, found[1:], found)) if by > apart]
    firsts = [found[0], *(found[at + 1] for at in breaks)]
    lasts = [*(found[at] for at in breaks), found[-1]]
    return list(map(place, firsts)), list(map(place, lasts))


def _marked(samples: bytearray, planes: int, size: int, apart: int) -> Runs:
    np, blank = numpy(), _blank(planes)
    numbers = np.frombuffer(samples, np.uint32)
    highest = DIGITS[(size - 1) // BASE ** (planes - 1)]
    marks = np.zeros(highest + 1 << 8 * (planes - 1), bool)
    for at in range(0, len(numbers), _AT_ONCE):
        some = numbers[at : at + _AT_ONCE]
        marks[some[some != blank]] = True
    raw = np.flatnonzero(marks)
    del marks  # it is as large as the window
    raw = raw.astype(np.uint32)
    if not len(raw):
        return (), ()
    found = np.frombuffer(VALUES, np.uint8)[raw.view(np.uint8)].view(np.uint32)
    breaks = np.flatnonzero(np.diff(found) > apart)
    firsts = np.concatenate((found[:1], found[breaks + 1]))
    lasts = np.concatenate((found[breaks], found[-1:]))
    return _places(firsts), _places(lasts)


def _places(numbers: Any) -> list[int]:
    """As `place`, of an array."""
    carried = (numbers >> 8) + BASE * (numbers >> 16) + BASE**2 * (numbers >> 24)
    found: list[int] = (numbers - carried).tolist()
    return found
