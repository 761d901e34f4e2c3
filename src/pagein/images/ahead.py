"""A compressed layer, parts of which are downloaded before anybody asks for them.

The parts are those of a trace. They are taken over the network while nothing can be stored yet,
because the blob is not open, and while earlier ones are decoded: so a link is never idle between
two of them. Whoever reads a part that is on its way waits for its bytes; whatever is not on its way
is asked for at once, and downloads pause until it has come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Final

from pagein.origins.base import Origin, OriginError

_GIVEN: Final = 256 << 10  # bytes given out at a time
_PATIENCE: Final = 1.0  # seconds that a download pauses at most: nothing may wait in a ring


class Traffic:
    """Who waits for the network right now, of all layers that share it."""

    def __init__(self) -> None:
        self._direct = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @contextmanager
    def direct(self) -> Iterator[None]:
        """For as long as the next bytes of a request are waited for that is no download."""
        self._direct += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._direct -= 1
            if not self._direct:
                self._quiet.set()

    async def quiet(self) -> None:
        """Return when nobody waits, or after a while."""
        if not self._quiet.is_set():
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._quiet.wait()
            except TimeoutError:
                pass


class _Download:
    """[low, high) of the layer, as far as it is here."""

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high
        self.data = bytearray()
        self.over = False
        """Whether no more will come."""
        self._changes: list[asyncio.Future[None]] = []

    def take(self, piece: bytes | memoryview) -> None:
        """More has come."""
        self.data += piece
        self._changed()

    def end(self) -> None:
        """No more will come."""
        self.over = True
        self._changed()

    async def get(self, offset: int) -> bytes:
        """Some bytes from `offset` on, which lies within; none if they will not come."""
        at = offset - self.low
        while at >= len(self.data) and not self.over:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._changes.append(future)
            await future
        return bytes(self.data[at : at + _GIVEN])

    def _changed(self) -> None:
        changes, self._changes = self._changes, []
        for future in changes:
            if not future.done():
                future.set_result(None)


class Ahead(Origin):
    """The compressed layer `origin`, which it closes; without downloads it is just that."""

    def __init__(self, origin: Origin, traffic: Traffic) -> None:
        self._origin = origin
        self.server = origin.server
        self._traffic = traffic
        self._downloads: list[_Download] = []
        self.closed = False

    def __str__(self) -> str:
        return str(self._origin)

    async def size(self) -> int:
        """The layer's size in bytes."""
        return await self._origin.size()

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, or OSError."""
        if self._find(offset) is None and self._next(offset) >= offset + length:
            with self._traffic.direct():
                return await self._origin.read(offset, length)
        async with aclosing(self.stream(offset, length)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def stream(self, offset: int, length: int) -> AsyncGenerator[bytes | memoryview, None]:
        """The bytes of `read` in pieces: one request for each part that is not on its way."""
        end = offset + length
        while offset < end:
            download = self._find(offset)
            if download is not None:
                source = self._downloaded(download, offset, min(end, download.high))
            else:
                source = self._direct(offset, min(end, self._next(offset)))
            async with aclosing(source) as pieces:
                async for piece in pieces:
                    offset += len(piece)
                    yield piece

    def forget(self) -> bool:
        """Something that came from here was wrong: what is asked again is fetched again."""
        self._downloads.clear()
        return self._origin.forget()

    async def close(self) -> None:
        """End it, downloads and all."""
        self.closed = True
        for download in self._downloads:
            download.end()
        self._downloads.clear()
        await self._origin.close()

    # ---- for who knows what will be wanted

    async def download(self, low: int, high: int) -> None:
        """Bring [low, high) here, one request; OSError if that fails. `drop` it some time."""
        download = _Download(low, high)
        self._downloads.append(download)
        try:
            async with aclosing(self._origin.stream(low, high - low)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    download.take(piece)
                    await self._traffic.quiet()
        finally:
            download.end()

    def drop(self, low: int, high: int) -> None:
        """Nobody will begin to read [low, high) any more."""
        self._downloads = [d for d in self._downloads if (d.low, d.high) != (low, high)]

    # ---- odds and ends

    async def _downloaded(
        self, download: _Download, offset: int, end: int
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """As much of [offset, end) as comes; all of it also when it is dropped meanwhile."""
        while offset < end:
            piece = (await download.get(offset))[: end - offset]
            if not piece:
                self._forget(download)
                return
            offset += len(piece)
            yield piece

    async def _direct(self, offset: int, end: int) -> AsyncGenerator[bytes | memoryview, None]:
        """A request of its own. While its reader does something else, it holds nobody back."""
        stream = aiter(self._origin.stream(offset, end - offset))
        try:
            while offset < end:
                with self._traffic.direct():
                    piece = await anext(stream, None)
                if piece is None:
                    raise OriginError.of(str(self), f"ends at byte {offset}", retry=True)
                offset += len(piece)
                yield piece
        finally:
            if (aclose := getattr(stream, "aclose", None)) is not None:
                await aclose()

    def _find(self, offset: int) -> _Download | None:
        """The download that has `offset`, or will have it."""
        for download in self._downloads:
            end = download.low + len(download.data) if download.over else download.high
            if download.low <= offset < end:
                return download
        return None

    def _next(self, offset: int) -> int:
        """Where the next download after `offset` begins."""
        return min((d.low for d in self._downloads if d.low > offset), default=1 << 62)

    def _forget(self, download: _Download) -> None:
        if download in self._downloads:
            self._downloads.remove(download)
