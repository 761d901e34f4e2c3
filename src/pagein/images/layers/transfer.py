"""One request for neighbouring spans of a layer: what of it comes is theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pagein.images.layers.errors import LayerError
from pagein.origins.base import Origin, OriginError
from pagein.origins.pace import measured, pace_of

if TYPE_CHECKING:
    from pagein.images.layers.spans import Kept, Span


class Transfer:
    """One request for neighbouring spans."""

    def __init__(
        self,
        spans: Sequence[Span],
        origin: Origin,
        kept: Kept,
        tasks: set[asyncio.Task[None]],
        came: Callable[[int], None] | None = None,
    ) -> None:
        """Begin it; it stands in `tasks` while it runs. It ends where the last span is `due`.

        `came` is told of each few bytes that have come.
        """
        self._spans = spans
        self._came = came
        self._origin = origin
        self._kept = kept
        for span in spans:
            span.error = None
            span.transfer = self
        self._task = own(tasks, self._run())

    async def over(self) -> None:
        """Wait until it has ended, well or not."""
        await asyncio.wait([self._task])

    def give_up(self) -> None:
        """Who waited for one of its spans does not do so any more: end it if nobody else does."""
        if sum(span.users for span in self._spans if span.at < span.end) <= 1:
            self._task.cancel()
            self._leave(OriginError.of(str(self._origin), "the request was given up", retry=True))

    async def _run(self) -> None:
        error: Exception | None = None
        try:
            async with self._kept.slots:
                await self._receive()
        except Exception as problem:
            error = problem
        finally:
            self._leave(error)
            self._kept.shrink()

    def _leave(self, error: Exception | None) -> None:
        """Others may fetch what is missing now."""
        for span in self._spans:
            if span.transfer is self:
                span.transfer = None
                if error is not None and span.at < span.end:
                    span.fail(error)
                else:
                    span.tell()

    async def _receive(self) -> None:
        at = self._spans[0].at
        while at < self._spans[-1].due:  # more may be asked for while it runs
            at = await self._range(at, self._spans[-1].due)

    async def _range(self, at: int, end: int) -> int:
        """[at, end) of the layer; returns where that ends."""
        first = 0
        stream = measured(pace_of(self._origin.server), self._origin.stream(at, end - at))
        async with closing(stream) as pieces:
            async for piece in pieces:
                for span in self._spans[first:]:
                    span.receive(at, piece)
                at += len(piece)
                if self._came is not None:
                    self._came(len(piece))
                while first < len(self._spans) and self._spans[first].at == self._spans[first].end:
                    self._spans[first].transfer = None
                    first += 1
        if at != end:
            raise LayerError(f"the layer ends at byte {at}, not {end}")
        return at


@asynccontextmanager
async def closing(
    stream: AsyncIterator[bytes | memoryview],
) -> AsyncGenerator[AsyncIterator[bytes | memoryview], None]:
    """As aclosing, of an iterator that may have nothing to close."""
    try:
        yield stream
    finally:
        if (aclose := getattr(stream, "aclose", None)) is not None:
            await aclose()


def own(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `work` as a task that stands in `tasks` until it is over."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
