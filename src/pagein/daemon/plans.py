"""What to fetch of an image before it is read: by its trace, or by what its command names."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack

from pagein.daemon.prefetch import Plan
from pagein.images.foresight.closure import Closure
from pagein.images.foresight.command import Command
from pagein.images.foresight.tree import Place, Tree
from pagein.images.layerblob import LayerBlob
from pagein.images.layers.format import Compression
from pagein.images.layers.index import Index
from pagein.images.store import Store
from pagein.images.traces.document import Trace
from pagein.images.traces.plan import Piece, Want, plan
from pagein.images.traces.wanted import fitting, plan_layer


def traced(store: Store, trace: Trace) -> Plan:
    """What was touched, in that order."""

    def make(blobs: Sequence[LayerBlob]) -> Iterator[tuple[list[list[Piece]], str]]:
        skipped, found, diff_ids = 0, [], []
        for blob in blobs:
            with Index(store.path("indexes", blob.index), root=blob.root) as index:
                diff_ids.append(index.header.layer.diff_id)
                pieces, missed = plan_layer(index, trace)
            found.append(pieces)
            skipped += missed
        skipped += len(trace.touches) - fitting(trace, diff_ids)
        yield found, f"{skipped} touches of the trace skipped"

    return make


class Foreseen:
    """A plan: what a command names in an image's layers, all of them, lowest first."""

    def __init__(
        self, store: Store, layers: Sequence[tuple[LayerBlob, ...]], command: Command
    ) -> None:
        self._closure: Future[Closure] = Future()
        self._store = store
        self._layers = layers
        self._command = command

    async def over(self, timeout: float) -> Closure:
        """All that is named, once it was found. TimeoutError if it is not, in so many seconds."""
        async with asyncio.timeout(timeout):
            return await asyncio.shield(asyncio.wrap_future(self._closure))

    def __call__(self, blobs: Sequence[LayerBlob]) -> Iterator[tuple[list[list[Piece]], str]]:
        """What of these to fetch, programs first; waits for the disk."""
        with ExitStack() as stack:
            indexes = opened(self._store, self._layers, stack)
            numbers = [
                next(n for n, layer in enumerate(self._layers) if blob in layer) for blob in blobs
            ]
            closure = Closure(Tree(indexes))
            taken: list[set[int]] = [set() for _ in blobs]
            places = list(closure.programs(self._command))
            if not any(index.header.compression is Compression.ZSTD for index in indexes):
                yield _planned(indexes, numbers, places, taken, 0), f"{len(places)} files first"
            places += closure.modules()
            self._closure.set_result(closure)
            found = _planned(indexes, numbers, places, taken, 1)
        yield found, f"{len(places)} files are named"


def _planned(
    indexes: Sequence[Index],
    numbers: Sequence[int],
    places: Sequence[Place],
    taken: Sequence[set[int]],
    rank: int,
) -> list[list[Piece]]:
    """Of each of these layers, without the spans that are `taken`; `rank` is that of the first."""
    found = []
    for number, spans in zip(numbers, taken, strict=True):
        wanted = [
            Want(rank + at, place.start, place.start + place.length)
            for at, place in enumerate(places)
            if place.layer == number
        ]
        found.append(plan(indexes[number], wanted, spans))
    return found


def opened(store: Store, layers: Sequence[tuple[LayerBlob, ...]], stack: ExitStack) -> list[Index]:
    """The indexes of layers, which `stack` closes."""
    return [
        stack.enter_context(Index(store.path("indexes", meta.index), root=meta.root))
        for meta, *_ in layers
    ]


def tells(store: Store, layers: Sequence[tuple[LayerBlob, ...]]) -> bool:
    """Whether the indexes of all layers say what files name. Waits for the disk."""
    with ExitStack() as stack:
        return all(index.has_names for index in opened(store, layers, stack))
