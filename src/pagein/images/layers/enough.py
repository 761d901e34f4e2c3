"""How much of a span of zstd has to be fetched for its first so many bytes.

A span is decoded from its start, so who wants some of it needs no more than what lies before. Where
in the layer that ends nothing says; but what lies together compresses alike. So it is what the span
as a whole says, a block of the largest size more, and a little: for one place in 14 that is too
little, and the next few blocks cost another request; on average it is a seventh too much.
"""

from __future__ import annotations

from typing import Final

from pagein.images.layers.index import Place
from pagein.images.layers.zstd.frames import MAX_BLOCK

LITTLE: Final = 64 << 10
"""Bytes of the layer beyond that."""

_REST: Final = 8  # an eighth of a span: what is left then is not worth a request of its own


def enough(place: Place, wanted: int, at: int, out: int) -> int:
    """Where in the layer those blocks end, most likely, that give `wanted` bytes of a span.

    Up to `at` in the layer there are `out` bytes of it.
    """
    give = wanted + MAX_BLOCK - out
    left = max(1, place.size - out)
    end = at + (place.end - at) * max(0, give) // left + LITTLE
    return end if end + (place.end - place.start) // _REST < place.end else place.end
