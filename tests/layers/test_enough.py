"""How much of a span is asked for."""

from hypothesis import given
from hypothesis import strategies as st

from pagein.images.layers.chunks import Chunk
from pagein.images.layers.enough import enough
from pagein.images.layers.index import Place

KIB = 1 << 10


@given(st.integers(1, 8 << 20), st.integers(1, 2 << 20), st.data())
def test_of_a_frame(size: int, packed: int, data: st.DataObject) -> None:
    place = Place(0, 0, size, 1000, 1000 + packed)
    out = data.draw(st.integers(0, size - 1))
    at = 1000 + packed * out // size
    wanted = data.draw(st.integers(out + 1, size))
    end = enough(place, wanted, at, out)
    # In proportion, and more; what is left is worth a request, or there is nothing left.
    assert end >= min(place.end, at + (place.end - at) * (wanted - out) // (size - out))
    assert end == place.end or end + 192 * KIB < place.end
    assert enough(place, size, at, out) == place.end


@given(st.lists(st.tuples(st.integers(1, 300 * KIB), st.booleans()), min_size=1), st.data())
def test_of_chunks(sizes: list[tuple[int, bool]], data: st.DataObject) -> None:
    """`sizes`, packed to a third; a chunk may be in the stream of the one before."""
    chunks, at, skip = list[Chunk](), 1000, 0
    for size, joined in sizes:
        if chunks and not joined:
            at, skip = at + (skip + 2) // 3 + 1, 0
        chunks.append(Chunk(at, skip, size, bytes(32)))
        skip += size
    total = sum(size for size, _ in sizes)
    place = Place(0, 0, total, 1000, at + (skip + 2) // 3 + 1, tuple(chunks))
    wanted = data.draw(st.integers(1, total))
    end = enough(place, wanted, 1000, 0)
    needed, have = [], 0
    for chunk in chunks:
        if have < wanted:
            needed.append(chunk.start)
        have += chunk.size
    streams = sorted({chunk.start for chunk in chunks} | {place.end})
    exact = streams[streams.index(needed[-1]) + 1]
    assert end == (exact if exact + 192 * KIB < place.end else place.end)
