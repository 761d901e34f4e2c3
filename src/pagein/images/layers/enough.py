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

_REST: Final = 192 << 10  # bytes of the layer that are not worth a request of their own


def enough(place: Place, wanted: int, at: int, out: int) -> int:
    """Where in the layer those blocks end, most likely, that give `wanted` bytes of a span.

    Up to `at` in the layer there are `out` bytes of it.
    """
    if place.chunks:
        end = _of_chunks(place, wanted)
    else:
        give, left = wanted + MAX_BLOCK - out, max(1, place.size - out)
        end = at + (place.end - at) * max(0, give) // left + LITTLE
    return end if end + _REST < place.end else place.end


def _of_chunks(place: Place, wanted: int) -> int:
    """Of a layer in chunks: where the stream ends, at most, that has the last byte."""
    out, last = 0, -1
    for chunk in place.chunks:
        if last >= 0 and chunk.start > last:
            return chunk.start
        out += chunk.size
        if out >= wanted:
            last = chunk.start
    return place.end
