"""What is known that an image's start will read, of a trace or by foresight: brought here before.

It begins when the indexes of an image are here, while it is still being mounted. Of a layer that
nobody had before nothing can be in the cache, so its pieces are downloaded at once; of the others
it has to be known first what is missing, which it is when their blob is open. What is downloaded is
decoded, verified and stored by the blob's `Fill`, as everything is: each byte once, and after what
a reader waits for.

All of it is a hint. What it gets wrong costs a request; when the network fails it ends, and leaves
the errors to whoever reads.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pagein.daemon.objects import Blob
from pagein.images.ahead import Ahead, Traffic
from pagein.images.connections import Connections
from pagein.images.layerblob import LayerBlob, compressed
from pagein.images.layers.errors import LayerError
from pagein.images.store import Store
from pagein.images.traces.plan import Piece

log = logging.getLogger("pagein.daemon")

DOWNLOADS: Final = 4
"""Requests of one image at a time: while one waits for its first byte, others fill the link."""
LANDINGS: Final = 3
"""Pieces that are decoded and stored at a time; more would only wait for a processor."""
BUFFERED: Final = 48 << 20
"""Bytes that are downloaded and not yet stored, over all images."""

_TRIES = 2  # of a piece: a fetch that is held back for too long gives way
_OPENED = 60.0  # seconds until the blob of a layer is opened: its mount has failed otherwise


Plan = Callable[[Sequence[LayerBlob]], Iterator[tuple[list[list[Piece]], str]]]
"""What to fetch of each of these data blobs, the lowest ranks first, and what is to be said of it;
then what else. Called in a thread; LayerError or ErofsError when an index is damaged."""


@dataclass(eq=False)
class _Layer:
    """A layer of an image that is prefetched."""

    blob: LayerBlob
    key: bytes
    new: bool
    ahead: Ahead | None
    """Its downloads; None when it is here already, or was open before."""
    open: asyncio.Future[Blob] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Done when it is open, and known what is missing."""
    claimed: bool = False
    """Whether `ahead` belongs to the blob's origin."""

    @property
    def ready(self) -> bool:
        """Whether it is known what is missing: that is, also when nothing can be here."""
        return self.open.done() or (self.new and self.ahead is not None)


@dataclass(eq=False)
class _Work:
    """A piece of a layer, its neighbours in the same run, and whether it is in the cache."""

    layer: _Layer
    piece: Piece
    before: _Work | None = None
    after: _Work | None = None
    landed: bool = False

    @property
    def size(self) -> int:
        """Bytes of its request."""
        return self.piece.high - self.piece.low

    @property
    def over(self) -> bool:
        """Whether nobody needs its bytes: the next one has the chunk that lies across the two."""
        return self.landed and (self.after is None or self.after.landed)


class Prefetcher:
    """The prefetches of a user half; made and used on its loop."""

    def __init__(
        self, store: Store, connections: Connections, find: Callable[[bytes], Blob | None]
    ) -> None:
        """`find` gives the blob of a cookie key, if it is open."""
        self._store = store
        self._connections = connections
        self._find = find
        self._traffic = Traffic()
        self._room = _Room(BUFFERED)
        self._layers: dict[bytes, _Layer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, blobs: Iterable[LayerBlob], new: Iterable[str], plan: Plan) -> None:
        """Prefetch the data blobs of an image as `plan` says; returns at once.

        `new`: digests of the layers of which nothing can be in the cache.
        """
        layers = [
            self._layer(blob, blob.layer in new)
            for blob in {each.key(): each for each in blobs if each.part == "data"}.values()
            if blob.key() not in self._layers  # another mount of it is under way
        ]
        self._layers |= {layer.key: layer for layer in layers}
        image = _Image(name, layers, plan, self._room)
        task = asyncio.get_running_loop().create_task(self._run(image))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def claim(self, blob: LayerBlob) -> Ahead | None:
        """The compressed layer that the origin of `blob` is to read, and close; None: its own."""
        layer = self._layers.get(blob.key()) if blob.part == "data" else None
        if layer is None or layer.claimed or layer.ahead is None:
            return None
        layer.claimed = True
        return layer.ahead

    def opened(self, blob: Blob) -> None:
        """A blob was opened: now it can be filled."""
        layer = self._layers.get(blob.key[1])
        if layer is None or blob.seeding is None:
            return

        def seeded(_: object) -> None:
            if not layer.open.done():
                layer.open.set_result(blob)
                self._room.changed()

        blob.seeding.add_done_callback(seeded)

    @property
    def running(self) -> bool:
        """Whether there is any."""
        return bool(self._tasks)

    async def close(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _layer(self, blob: LayerBlob, new: bool) -> _Layer:
        opened = self._find(blob.key())
        local = self._store.has("layers", blob.layer)
        ahead = None
        if opened is None and not local:
            ahead = Ahead(compressed(self._store, self._connections, blob), self._traffic)
            ahead.guided = True
        layer = _Layer(blob, blob.key(), new, ahead)
        if opened is not None:
            layer.open.set_result(opened)
        return layer

    async def _run(self, image: _Image) -> None:
        try:
            await image.run()
            log.info("%s: prefetch done", image.name)
        except (OSError, LayerError) as problem:
            log.info("%s: prefetch ended: %s", image.name, str(problem) or type(problem).__name__)
        finally:
            for layer in image.layers:
                self._layers.pop(layer.key, None)
                if layer.ahead is not None:
                    layer.ahead.guided = False
                    if not layer.claimed:
                        await layer.ahead.close()


class _Room:
    """Bytes of downloads that are not stored yet; and what may have to be looked at again."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changes: list[asyncio.Future[None]] = []

    def take(self, size: int) -> bool:
        """Whether there is room: then it is taken. A single piece has it, whatever its size."""
        if self._used and self._used + size > self._limit:
            return False
        self._used += size
        return True

    def give(self, size: int) -> None:
        """So much has been stored, or given up."""
        self._used -= size
        self.changed()

    def changed(self) -> None:
        """Have those who wait look again."""
        changes, self._changes = self._changes, []
        for future in changes:
            if not future.done():
                future.set_result(None)

    async def change(self, timeout: float) -> None:
        """Wait for that. Raises TimeoutError."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.append(future)
        async with asyncio.timeout(timeout):
            await future


class _Image:
    """One prefetch: the pieces of all layers in their order."""

    def __init__(
        self,
        name: str,
        layers: list[_Layer],
        plan: Plan,
        room: _Room,
    ) -> None:
        self.name = name
        self.layers = layers
        self._make = plan
        self._room = room
        self._pending: list[_Work] = []
        self._planned = False
        self._landing = asyncio.Semaphore(LANDINGS)
        self._held: set[_Work] = set()

    async def run(self) -> None:
        """Until all of it is in the cache. Raises OSError or LayerError when it is over sooner."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._plan())
                for _ in range(DOWNLOADS):
                    group.create_task(self._work(group))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            for work in list(self._held):
                self._let_go(work)

    async def _plan(self) -> None:
        """Make the pieces; the first ones are on their way while the next ones are found."""
        plans = self._make([layer.blob for layer in self.layers])
        try:
            while (planned := await asyncio.to_thread(next, plans, None)) is not None:
                found, note = planned
                works = [each for works in map(_works, self.layers, found) for each in works]
                self._pending = sorted(self._pending + works, key=lambda work: work.piece.rank)
                size = sum(work.size for work in works)
                text = "%s: prefetch of %d bytes in %d requests; %s"
                log.info(text, self.name, size, len(works), note)
                self._room.changed()
        finally:
            self._planned = True
            self._room.changed()

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """Download one piece after the other, and have each land."""
        while (work := await self._next()) is not None:
            landing = group.create_task(self._land(work))
            if work.layer.ahead is not None:
                await work.layer.ahead.download(work.piece.low, work.piece.high)
            else:
                await asyncio.wait([landing])

    async def _next(self) -> _Work | None:
        """The next piece that is missing, as soon as there is room for it; None at the end."""
        while self._pending or not self._planned:
            work = next((each for each in self._pending if each.layer.ready), None)
            if work is not None and _is_here(work):
                self._pending.remove(work)
                self._landed(work)
            elif work is not None and self._room.take(work.size):
                self._pending.remove(work)
                self._held.add(work)
                return work
            else:
                await self._room.change(_OPENED)
        return None

    async def _land(self, work: _Work) -> None:
        """Have the blob's fill take a piece."""
        layer, piece = work.layer, work.piece
        await asyncio.wait([layer.open], timeout=_OPENED)
        if not layer.open.done():
            raise OSError(errno.ETIMEDOUT, f"{layer.blob.label} was not opened")
        blob, length = layer.open.result(), piece.end - piece.start
        async with self._landing:
            gaps = blob.fill.present.gaps(*blob.fill.pages(piece.start, length))
            missing = sum(high - low for low, high in gaps)
            for _ in range(_TRIES):
                if await blob.fill.prefetched(piece.start, length):
                    break
            else:
                raise OSError(errno.EIO, f"{layer.blob.label}: not all of it came")
            blob.prefetched += missing
        self._landed(work)

    def _landed(self, work: _Work) -> None:
        work.landed = True
        for each in (work.before, work):
            if each is not None and each.over:
                self._let_go(each)

    def _let_go(self, work: _Work) -> None:
        """Its bytes are not needed any more."""
        if work in self._held:
            self._held.remove(work)
            self._room.give(work.size)
            if work.layer.ahead is not None:
                work.layer.ahead.drop(work.piece.low, work.piece.high)


def _works(layer: _Layer, pieces: list[Piece]) -> list[_Work]:
    works = [_Work(layer, piece) for piece in pieces]
    for one, other in itertools.pairwise(works):
        if one.piece.end == other.piece.start:
            one.after, other.before = other, one
    return works


def _is_here(work: _Work) -> bool:
    """Whether somebody has fetched it already."""
    if not work.layer.open.done():
        return False
    fill, piece = work.layer.open.result().fill, work.piece
    return fill.covers(piece.start, piece.end - piece.start)
