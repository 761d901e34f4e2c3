"""What a container's command will read, on its way before it reads it: `images.foresight` at work.

For `pagein run`, of layers that nobody had before, while no trace says more. It begins when the
indexes are here, while the image is still being mounted, and ends soon: it is about starts.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from pagein.daemon.objects import Blob
from pagein.daemon.plans import Foreseen, opened
from pagein.images.connections import Connections
from pagein.images.foresight.command import PATH, Command, command_of
from pagein.images.foresight.foresee import Foresight
from pagein.images.foresight.tree import Tree
from pagein.images.layerblob import LayerBlob
from pagein.images.layers.read import LayerOrigin
from pagein.images.layers.spans import Kept
from pagein.images.manifest import RunConfig
from pagein.images.store import Store
from pagein.origins.base import Origin

log = logging.getLogger("pagein.daemon")

LASTS: Final = 30.0
"""Seconds from the image's arrival on."""

_OPENED = 60.0  # seconds until a layer's blob is opened: its mount has failed otherwise
_PIECE = 1 << 20  # bytes that go into the cache as one: who waits for some waits for no more


class Foresights:
    """Those of a user half; made and used on its loop."""

    def __init__(
        self,
        store: Store,
        connections: Connections,
        spans: Kept,
        find: Callable[[bytes], Blob | None],
        claim: Callable[[LayerBlob], Origin | None],
    ) -> None:
        """`find` gives the blob of a cookie key, if it is open; `claim` a layer that is on its way
        already (`Prefetcher`)."""
        self._claim = claim
        self._store = store
        self._connections = connections
        self._spans = spans
        self._find = find
        self._sources: dict[bytes, _Source] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(
        self,
        name: str,
        layers: list[tuple[LayerBlob, ...]],
        new: frozenset[str],
        command: Command,
        plan: Foreseen | None = None,
    ) -> None:
        """Look ahead for a command in an image; `new`: layers of which nothing is in the cache.

        `plan` is what fetches all that the command names, if the indexes say that.
        """
        sources: dict[int, _Source] = {}
        try:
            for number, (_, *data) in enumerate(layers):
                for blob in data:
                    if blob.layer in new and (source := await self._source(blob)) is not None:
                        sources[number] = source
        except OSError as problem:
            log.info("%s: no foresight: %s", name, problem)
        task = asyncio.get_running_loop().create_task(self._run(layers, sources, command, plan))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def claim(self, blob: LayerBlob) -> Origin | None:
        """The origin of a blob, if it is open already; its new owner closes it."""
        source = self._sources.get(blob.key())
        if source is None or source.claimed:
            return None
        source.claimed = True
        return source.origin

    def opened(self, blob: Blob) -> None:
        """A blob was opened: now it can be filled."""
        source = self._sources.get(blob.key[1])
        if source is None or blob.seeding is None:
            return

        def seeded(_: object) -> None:
            if not source.blob.done():
                source.blob.set_result(blob)

        blob.seeding.add_done_callback(seeded)

    async def close(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for source in list(self._sources.values()):  # of those that had not begun
            await self._end(source)

    async def _run(
        self,
        layers: list[tuple[LayerBlob, ...]],
        sources: dict[int, _Source],
        command: Command,
        plan: Foreseen | None,
    ) -> None:
        with ExitStack() as stack:

            def make() -> Tree:
                return Tree(opened(self._store, layers, stack))

            foresight = Foresight(make, sources)
            try:
                if plan is None:
                    foresight.begin(command)
                else:
                    closure = await plan.over(LASTS)
                    foresight.known(closure.program, closure.seen)
                for number, source in sources.items():
                    source.watch(foresight, number)
                await asyncio.sleep(LASTS)
            except TimeoutError:
                log.info("no foresight: nobody planned it")
            finally:
                await foresight.close()
                for source in sources.values():
                    await self._end(source)

    async def _source(self, blob: LayerBlob) -> _Source | None:
        """A layer that nobody has open, and that has to be fetched."""
        key = blob.key()
        local = self._store.has("layers", blob.layer)
        if key in self._sources or local or self._find(key) is not None:
            return None
        layer = self._claim(blob)
        try:
            origin = await blob.open(self._store, self._connections, self._spans, layer=layer)
        except BaseException:
            if layer is not None:
                await layer.close()
            raise
        assert isinstance(origin, LayerOrigin), "of a part that is data"
        source = self._sources[key] = _Source(key, origin)
        return source

    async def _end(self, source: _Source) -> None:
        source.origin.watcher = None
        self._sources.pop(source.key, None)
        if not source.claimed:
            await source.origin.close()


class _Source:
    """A layer's data blob, its origin open before it is itself."""

    def __init__(self, key: bytes, origin: LayerOrigin) -> None:
        self.key = key
        self.origin = origin
        self.claimed = False
        self.blob: asyncio.Future[Blob] = asyncio.get_running_loop().create_future()

    def watch(self, foresight: Foresight, number: int) -> None:
        """Tell it what is waited for."""
        self.origin.watcher = lambda start, end: foresight.touched(number, start, end)

    async def read(self, start: int, length: int) -> bytes:
        return await self.origin.read(start, length)

    async def expect(self, start: int, end: int, rank: int, *, whole: bool) -> None:
        if self.blob.done() and self.blob.result().fill.covers(start, end - start):
            return
        if not await self.origin.expect(start, end, rank) or not whole:
            return
        await asyncio.wait([self.blob], timeout=_OPENED)
        if not self.blob.done():
            raise OSError(errno.ETIMEDOUT, "not opened")
        fill = self.blob.result().fill
        while start < end:
            upto = min(start // _PIECE * _PIECE + _PIECE, end)
            fill.prefetch(start, upto - start)
            start = upto

    def file_at(self, start: int, most: int) -> int:
        return self.origin.file_at(start, most)


def command_in(config: RunConfig, asked: dict[str, object]) -> Command:
    """The command of a container that was asked for with these words, options and all."""
    given = asked.get("command") or ()
    entrypoint = asked.get("entrypoint")
    assert isinstance(given, list | tuple)
    words = command_of(
        config.entrypoint or (),
        config.cmd or (),
        entrypoint if isinstance(entrypoint, str) else None,
        [str(word) for word in given],
    )
    path = next((each[5:] for each in config.env or () if each.startswith("PATH=")), "")
    directory = asked.get("workdir") or config.working_dir or "/"
    return Command(
        words,
        path.encode("utf-8", "surrogateescape") or PATH,
        str(directory).encode("utf-8", "surrogateescape"),
    )
