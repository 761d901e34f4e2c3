"""Places where a compressed layer can be entered."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Output = Callable[[memoryview], None]
"""Takes the next uncompressed bytes; the view holds until it has been called `KEPT` times more."""

KEPT = 4


class Point(NamedTuple):
    """Decoding can begin at `bit`, a bit offset in the compressed layer, given `window`.

    `out` is the offset in the uncompressed layer of the first byte that comes. `window` is what
    lies before it, as far as it is referred to; the rest of it is zeros.
    """

    out: int
    bit: int
    window: bytes
