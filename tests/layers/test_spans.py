"""Spans of a gzip layer: fetched once, given out while they arrive, guessed within limits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.layers import rig
from tests.layers.rig import Bytes, Indexed, member, tar_of

from pagein.images.layers import deflate
from pagein.images.layers.guesses import FREE, SHARE, Guesses
from pagein.images.layers.index import Index
from pagein.images.layers.read import LayerOrigin
from pagein.images.layers.spans import Kept
from pagein.origins.base import OriginError

DEADLINE = 60.0
FILE = 24 << 10


@dataclass(eq=False)
class Link(Bytes):
    """A layer that comes in pieces; counts what went out, breaks off or waits when told."""

    data: bytes
    piece: int = 32 << 10
    breaks: Callable[[int], bool] = lambda _: False
    """Whether to break off at an offset."""
    gate: asyncio.Event | None = None
    """What goes beyond the first piece of a request waits for it."""
    sent: list[tuple[int, int]] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)
    closed: bool = False

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes]:
        self.asked.append((offset, length))
        end, first = offset + length, True
        while offset < end:
            await asyncio.sleep(0)
            if self.gate is not None and not first:
                await self.gate.wait()
            if self.breaks(offset):
                raise OriginError(5, "broken off", retry=True)
            piece = self.data[offset : min(offset + self.piece, end)]
            self.sent.append((offset, len(piece)))
            offset, first = offset + len(piece), False
            yield piece

    @property
    def twice(self) -> int:
        """Bytes that were sent more than once, but for those that neighbouring requests share."""
        unique = bytearray(len(self.data))
        for offset, length in self.sent:
            unique[offset : offset + length] = b"\1" * length
        return max(0, sum(n for _, n in self.sent) - sum(unique) - len(self.asked))


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Indexed]:
    """Some twelve spans, of files that hardly compress."""
    content = random.Random(7).randbytes(10 << 20)
    files = [
        member(b"f%d" % at, data=content[at : at + FILE]) for at in range(0, len(content), FILE)
    ]
    packed = rig.gzipped(tar_of(*files), level=1)
    yield Indexed(packed, tmp_path_factory.mktemp("spans") / "index")


def run(
    layer: Indexed,
    use: Callable[[LayerOrigin, Link, Index], Awaitable[None]],
    link: Link | None = None,
    kept: Callable[[], Kept] = Kept,
) -> Link:
    """Use an origin of the layer; nothing of it runs on when it was closed."""
    source = Link(layer.data) if link is None else link

    async def main() -> None:
        with layer.opened() as index:
            origin = LayerOrigin(index, source, kept())
            try:
                async with asyncio.timeout(DEADLINE):
                    await use(origin, source, index)
            finally:
                await origin.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    return source


def span_of(index: Index, offset: int) -> int:
    """The number of the span that the byte at `offset` of the blob is in."""
    (piece,) = index.pieces(offset, offset + 1)
    return index.point_before(piece.position)


async def read(origin: LayerOrigin, layer: Indexed, offset: int, length: int = 4096) -> None:
    assert await origin.read(offset, length) == layer.blob[offset : offset + length]


# ---- how often ----------------------------------------------------------------------------------


def test_two_files_of_one_span_are_one_request(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, link: Link, index: Index) -> None:
        first, second = 1, 8
        assert span_of(index, first * FILE) == span_of(index, second * FILE + FILE - 1) == 0
        await read(origin, layer, first * FILE, FILE)
        await read(origin, layer, second * FILE, FILE)
        assert len(link.asked) == 1

    run(layer, use)


def test_a_walk_in_any_order_fetches_each_byte_once(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, link: Link, index: Index) -> None:
        places = list(range(0, len(layer.blob) - FILE, FILE))
        random.Random(1).shuffle(places)
        for place in places:
            await read(origin, layer, place, FILE)
        assert link.twice == 0

    run(layer, use)


def test_many_readers_at_once_fetch_each_byte_once(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, link: Link, index: Index) -> None:
        places = range(0, len(layer.blob) - FILE, FILE)
        await asyncio.gather(*(read(origin, layer, place, FILE) for place in places))
        assert link.twice == 0

    run(layer, use)


def test_a_stream_over_all_spans_has_the_next_request_under_way(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, link: Link, index: Index) -> None:
        found = bytearray()
        async for piece in origin.stream(0, len(layer.blob)):
            found += piece
            if len(found) < 1 << 20:
                assert len(link.asked) <= 2  # and no more than that: memory is not endless
        assert found == layer.blob
        assert len(link.asked) < index.points / 2
        assert link.twice == 0

    run(layer, use)


# ---- while it arrives ---------------------------------------------------------------------------


def test_a_chunk_is_given_out_before_the_rest_of_its_span_arrives(layer: Indexed) -> None:
    async def main() -> None:
        gate = asyncio.Event()
        link = Link(layer.data, piece=256 << 10, gate=gate)
        with layer.opened() as index:
            origin = LayerOrigin(index, link)
            await asyncio.wait_for(read(origin, layer, 0), DEADLINE)
            late = asyncio.create_task(read(origin, layer, 20 * FILE))
            assert span_of(index, 20 * FILE) == 0
            await asyncio.wait([late], timeout=0.05)
            assert not late.done()
            gate.set()
            await asyncio.wait_for(late, DEADLINE)
            assert len(link.asked) == 1
            await origin.close()

    asyncio.run(main())


def test_what_broke_off_goes_on_where_it_ended(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, link: Link, index: Index) -> None:
        broken = 400_000
        link.breaks = lambda at: at >= broken
        with pytest.raises(OriginError, match="broken off") as caught:
            await read(origin, layer, 20 * FILE)
        assert caught.value.retry
        received = max(offset + length for offset, length in link.sent)
        link.breaks = lambda _: False
        await read(origin, layer, 20 * FILE)
        assert [offset for offset, _ in link.asked][1:] == [received]
        assert link.twice == 0

    run(layer, use)


def test_who_leaves_takes_the_request_along_only_if_nobody_else_waits(layer: Indexed) -> None:
    async def main() -> None:
        gate = asyncio.Event()
        link = Link(layer.data, piece=1000, gate=gate)
        with layer.opened() as index:
            origin = LayerOrigin(index, link)
            first, second = (
                asyncio.create_task(read(origin, layer, place)) for place in (0, 5 * FILE)
            )
            spans = origin._tar._spans
            while not link.sent or sum(each.users for each in spans.values()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            third = asyncio.create_task(read(origin, layer, 9 * FILE))
            await asyncio.wait([second, third], timeout=0.05)
            assert len(link.asked) == 1
            for task in (second, third):
                task.cancel()
            await asyncio.gather(second, third, return_exceptions=True)
            link.gate = None
            await read(origin, layer, 0)  # all who waited gave up: asked anew, from there on
            began, again = (offset for offset, _ in link.asked)
            assert again == began + 1000
            await origin.close()

    asyncio.run(main())


# ---- what is kept -------------------------------------------------------------------------------


def test_spans_of_all_layers_share_the_memory(layer: Indexed) -> None:
    async def main() -> None:
        kept = Kept(3 << 20)
        with layer.opened() as index:
            links = [Link(layer.data), Link(layer.data)]
            origins = [LayerOrigin(index, link, kept) for link in links]
            away = 200 * FILE
            for origin in origins:
                await read(origin, layer, away)
            await read(origins[0], layer, away)
            assert [len(link.asked) for link in links] == [1, 1]
            for number in range(8):  # a third one's would do as well
                await read(origins[1], layer, number * 45 * FILE)
            before = len(links[0].asked)
            await read(origins[0], layer, away)
            assert len(links[0].asked) == before + 1
            for origin in origins:
                await origin.close()
        assert not kept._spans

    asyncio.run(main())


def test_what_comes_along_is_all_chunks_that_are_in_memory(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, _: Link, index: Index) -> None:
        chunk = index.header.chunk
        edge = next(at for at in range(0, len(layer.blob), chunk) if span_of(index, at) == 1)
        shared = edge - chunk  # begins in span 0, ends in span 1
        assert await origin.around(0, 4096) == (0, shared, False)
        start, stop = (await origin.around(edge, edge + 4096))[:2]
        assert (start, stop % chunk) == (edge, 0)
        await read(origin, layer, 0, edge)
        assert await origin.around(edge, edge + 4096) == (shared, stop, False)

    run(layer, use)


def test_layers_are_read_without_zlib_ng_as_well(
    layer: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zlib

    monkeypatch.setattr(deflate, "_library", zlib)

    async def use(origin: LayerOrigin, _: Link, index: Index) -> None:
        await read(origin, layer, 0, len(layer.blob))

    run(layer, use)


# ---- guesses ------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 1 << 20)), max_size=300))
def test_guesses_that_nobody_used_stay_within_their_share(steps: list[tuple[int, int]]) -> None:
    guesses, asked, made = Guesses(), 0, list[int]()
    for what, size in steps:
        if what == 0:
            guesses.asked(size)
            asked += size
        elif what == 1 and guesses.allow(size):
            made.append(size)
        elif what == 2 and made:
            asked += made[0]
            guesses.came_true(made.pop(0))
        assert sum(made) <= SHARE * asked
        if asked <= FREE:
            assert not made


def test_random_reads_waste_little(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, link: Link, index: Index) -> None:
        used = set()
        for place in random.Random(3).sample(range(0, len(layer.blob) - FILE, FILE), 8):
            await read(origin, layer, place)
            chunk = index.header.chunk
            start, end = place // chunk * chunk, -(-(place + FILE) // chunk) * chunk
            for piece in index.pieces(start, end):  # of whole chunks, which may end in the next one
                used.add(index.point_before(piece.position))
                used.add(index.point_before(piece.position + piece.length - 1))
            places = [index.place(number) for number in used]
            needed = sum(place.end - place.start for place in places)
            assert sum(length for _, length in link.asked) <= needed / 0.7 + (1 << 20)

    run(layer, use)


def test_who_reads_on_finds_the_next_span_under_way(layer: Indexed) -> None:
    async def use(origin: LayerOrigin, link: Link, index: Index) -> None:
        waited = 0
        for place in range(0, len(layer.blob) - FILE, FILE):
            before = len(link.sent)
            number = span_of(index, place)
            known = number in origin._tar._spans
            await read(origin, layer, place)
            waited += not known and len(link.sent) > before
        assert waited < index.points / 2
        assert link.twice == 0

    run(layer, use)


# ---- anything -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    place: int
    length: int
    patience: float | None


STEPS = st.lists(
    st.builds(
        Step,
        place=st.integers(0, (10 << 20) - (1 << 20)),
        length=st.sampled_from([1, 4096, 100_000, 1 << 20]),
        patience=st.sampled_from([None, None, 0.0, 0.003]),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(
    steps=STEPS,
    breaks=st.lists(st.booleans(), max_size=12),
    piece=st.sampled_from([5000, 60_000, 1 << 20]),
    budget=st.sampled_from([0, 2 << 20, 64 << 20]),
)
def test_whatever_happens_what_comes_is_right(
    layer: Indexed, steps: list[Step], breaks: list[bool], piece: int, budget: int
) -> None:
    left = iter(breaks)
    link = Link(layer.data, piece, breaks=lambda _: next(left, False))

    async def one(origin: LayerOrigin, step: Step) -> None:
        for _ in range(len(breaks) + 1):
            try:
                async with asyncio.timeout(step.patience):
                    await read(origin, layer, step.place, step.length)
            except OriginError as error:
                assert error.retry  # broken off, for this reader or for one that waited with it
                continue
            except TimeoutError:
                return
            return
        pytest.fail("broke off more often than it was told to")

    async def use(origin: LayerOrigin, _: Link, index: Index) -> None:
        await asyncio.gather(*(one(origin, step) for step in steps))
        if budget >= 64 << 20 and not any(step.patience == 0.003 for step in steps):
            assert link.twice == 0

    run(layer, use, link, lambda: Kept(budget))
