"""From a trace to requests: everything that it names, in few of them, whatever the index."""

import asyncio
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.traces.rig import KIB, MIB, IndexedLayer, Slow, noise

from pagein.images.ahead import Ahead, Traffic
from pagein.images.layers.read import LayerOrigin
from pagein.images.traces.document import Touch, Trace
from pagein.images.traces.files import Files
from pagein.images.traces.plan import GAP, PIECE, Piece, Want, plan
from pagein.images.traces.record import made_of
from pagein.images.traces.wanted import fitting, plan_layer

FILES = {f"f{number:02}": noise(f"f{number}", 300 * KIB + 123 * number) for number in range(24)}


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> IndexedLayer:
    return IndexedLayer(FILES, tmp_path_factory.mktemp("layer") / "index")


def planned(layer: IndexedLayer, trace: Trace) -> tuple[list[Piece], int]:
    with layer.opened() as index:
        return plan_layer(index, trace)


def brought(layer: IndexedLayer, pieces: list[Piece]) -> tuple[dict[int, bytes], Slow]:
    """What landing `pieces` one by one gives, by offset; and the origin, after that."""
    origin = Slow(layer.packed)

    async def main() -> dict[int, bytes]:
        with layer.opened() as index:
            ahead = Ahead(origin, Traffic())
            ahead.guided = True
            data = LayerOrigin(index, ahead)
            found = {}
            try:
                for piece in pieces:
                    await ahead.download(piece.low, piece.high)
                    if piece.start < piece.end:
                        found[piece.start] = await data.read(piece.start, piece.end - piece.start)
            finally:
                await data.close()
            return found

    return asyncio.run(main()), origin


def covers(
    layer: IndexedLayer, found: dict[int, bytes], path: str, offset: int, length: int
) -> bool:
    """Whether all of a range of a file was brought, and is right."""
    with layer.opened() as index:
        (part,) = Files(index).find(path.encode())
    start = part.position + offset - part.offset
    have = bytearray(len(layer.blob))
    seen = bytearray(len(layer.blob))
    for at, data in found.items():
        have[at : at + len(data)] = data
        seen[at : at + len(data)] = b"\1" * len(data)
    assert have[start : start + length] == FILES[path][offset : offset + length]
    return all(seen[start : start + length])


def test_neighbours_are_one_request_and_distant_ones_several(layer: IndexedLayer) -> None:
    pieces, skipped = planned(layer, layer.trace([("f03", 0, 100 * KIB), ("f04", 0, 100 * KIB)]))
    assert (len(pieces), skipped) == (1, 0)
    pieces, _ = planned(layer, layer.trace([("f22", 0, KIB), ("f03", 0, KIB)]))
    assert len(pieces) == 2
    assert pieces[0].low > pieces[1].low, "what was touched first comes first"
    assert all(piece.high - piece.low < MIB for piece in pieces)


def test_a_whole_layer_is_cut_into_requests_of_some_megabytes(layer: IndexedLayer) -> None:
    trace = layer.trace([(name, 0, len(data)) for name, data in FILES.items()])
    pieces, _ = planned(layer, trace)
    assert all(piece.high - piece.low <= PIECE for piece in pieces)
    assert len(pieces) <= len(layer.packed) // (PIECE // 2)
    assert [piece.end for piece in pieces[:-1]] == [piece.start for piece in pieces[1:]]
    found, origin = brought(layer, pieces)
    assert b"".join(found.values()) == layer.blob
    assert origin.streams == [(piece.low, piece.high) for piece in pieces]


@settings(max_examples=10)
@given(
    st.lists(
        st.tuples(st.integers(0, 23), st.integers(0, 290 * KIB), st.integers(1, 10 * KIB)),
        min_size=1,
        max_size=12,
    )
)
def test_all_that_is_touched_comes_in_the_requests_that_were_planned(
    layer: IndexedLayer, picked: list[tuple[int, int, int]]
) -> None:
    touches = [(f"f{number:02}", offset, length) for number, offset, length in picked]
    pieces, skipped = planned(layer, layer.trace(touches))
    assert not skipped
    found, origin = brought(layer, pieces)
    assert origin.streams == [(piece.low, piece.high) for piece in pieces]
    assert all(covers(layer, found, *touch) for touch in touches)


@pytest.mark.parametrize("level", [None, 2])
@pytest.mark.parametrize("interval", [128 * KIB, MIB])
def test_a_trace_is_good_for_the_same_layer_packed_and_indexed_anew(
    layer: IndexedLayer, tmp_path: Path, level: int | None, interval: int
) -> None:
    other = IndexedLayer(FILES, tmp_path / "index", level=level, interval=interval)
    assert other.diff_id == layer.diff_id
    assert other.path.read_bytes() != layer.path.read_bytes()
    touches = [("f07", 5000, 200 * KIB), ("f21", 0, 10), ("f00", 299 * KIB, KIB)]
    pieces, skipped = planned(other, layer.trace(touches))
    assert not skipped
    found, _ = brought(other, pieces)
    assert all(covers(other, found, *touch) for touch in touches)


def test_what_is_not_there_is_skipped_and_counted(layer: IndexedLayer) -> None:
    missing = [("gone", 0, 1), ("f02/below", 0, 1), ("/", 0, 1), ("f%GG", 0, 1)]
    beyond = ("f01", MIB, KIB)
    pieces, skipped = planned(layer, layer.trace([*missing, beyond, ("f01", 0, KIB)]))
    assert (len(pieces), skipped) == (1, len(missing) + 1)
    assert planned(layer, layer.trace(missing)) == ([], len(missing))
    outside, _ = planned(layer, layer.trace([("../../f01", 0, KIB)]))
    assert [piece.start for piece in outside] == [piece.start for piece in pieces], "below a root"
    other = Trace("", ("sha256:" + "0" * 64,), (Touch(0, "/f01", 0, 1, 0),))
    assert planned(layer, other) == ([], 0)
    assert fitting(other, [layer.diff_id]) == 0


def test_a_trace_that_says_everything_many_times_costs_no_more(layer: IndexedLayer) -> None:
    once = [(name, 0, len(data)) for name, data in FILES.items()]
    assert planned(layer, layer.trace(once * 500)) == planned(layer, layer.trace(once))


def test_wants_beyond_the_blob_are_nothing(layer: IndexedLayer) -> None:
    with layer.opened() as index:
        size = index.header.blob_size
        assert plan(index, [Want(0, size, size + KIB), Want(1, 4 * size, 5 * size)]) == []
        assert plan(index, []) == []
    assert GAP < PIECE


def test_reads_of_a_blob_are_reads_of_its_files(layer: IndexedLayer) -> None:
    with layer.opened() as index:
        files = Files(index)
        rng = random.Random(1)
        for name in rng.sample(sorted(FILES), 10):
            (part,) = files.find(name.encode())
            assert layer.blob[part.position :][: part.length] == FILES[name]
            # A read of whole pages goes beyond the end of a file: that is the padding behind it.
            end = -(-part.length // 4096) * 4096
            (found,) = files.at(part.position, end)
            assert (found.path, found.offset, found.length) == (f"/{name}".encode(), 0, part.length)
            (page,) = files.at(part.position + 8192, 4096)
            assert (page.path, page.offset, page.length) == (f"/{name}".encode(), 8192, 4096)
        assert len(list(files.at(0, len(layer.blob)))) == len(FILES)


def test_a_recording_becomes_a_trace(layer: IndexedLayer) -> None:
    one, other = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    trace = made_of(
        "docker://x/y:1",
        [
            (other, "/b", 0, 10, 70),
            (one, "/a", 0, 4096, 50),
            (one, "/a", 4096, 100, 60),
            (one, "/a", 0, 1, 80),
        ],
    )
    assert trace.layers == (one, other)
    assert list(trace.touches) == [
        Touch(0, "/a", 0, 4196, 0),
        Touch(1, "/b", 0, 10, 20),
        Touch(0, "/a", 0, 1, 30),
    ]
