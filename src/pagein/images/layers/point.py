"""Places where a compressed layer can be entered."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Output = Callable[[memoryview], None]
"""Takes the next uncompressed bytes; the view holds until it has been called `KEPT` times more."""

KEPT = 4

INTERVAL = 512 << 10
"""Bytes of output between two points of a gzip layer, unless `build` is told another. What a read
fetches and decodes in vain is half of it on average; half of it again doubles what points take."""

PACKED_INTERVAL = 896 << 10
"""Bytes of input between two points at most, and a deflate block: two spans stay below 2 MiB."""


class Point(NamedTuple):
    """Decoding can begin at `bit`, a bit offset in the compressed layer, given `window`.

    `out` is the offset in the uncompressed layer of the first byte that comes. `window` is what
    lies before it, as far as it is referred to; the rest of it is zeros.
    """

    out: int
    bit: int
    window: bytes


Keep = Callable[[Point], None]
"""Takes the next point."""
