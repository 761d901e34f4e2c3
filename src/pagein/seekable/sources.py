"""Compressed files as they lie on a disk or behind a URL, read with plain calls.

What they give is checked as everywhere (`pagein.origins`): a file that changes under its reader, or
a server that lies about ranges, is an OriginError.
"""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, suppress
from typing import Any, Final, TypeVar

from pagein.origins import Identity, Origin, OriginError, open_origin, redact, resolve
from pagein.origins.file import FileOrigin, identify
from pagein.origins.identity import is_url

T = TypeVar("T")

PIECE: Final = 1 << 20
"""Bytes of a piece of a stream."""

_TRIES = 4
_PAUSE = 0.1  # seconds before another try; twice as long before the next one
_JOIN = 5.0
_CLOSED = "I/O operation on closed file"


class Source(ABC):
    """A compressed file. Threads may share it; after a fork it goes on in the child."""

    remote: bool
    """Whether each read is a request."""

    step: int
    """Bytes that are best read at a time."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    @property
    def name(self) -> str:
        """What errors call it; without passwords."""
        return redact(self.identity.source)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.identity.size

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes, or OSError."""

    def begin(self, offset: int, length: int) -> Callable[[], bytes] | None:
        """Have these bytes fetched; what is returned waits for them. None: that takes no time."""
        return None

    @abstractmethod
    def stream(self) -> Generator[bytes, None, None]:
        """All of it, once, in pieces; a reader that leaves before the end closes the iterator."""

    @abstractmethod
    def forked(self) -> None:
        """In a child: what belongs to the parent's threads is not used any more."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds; twice is fine."""


def open_source(source: str | os.PathLike[str], timeout: float) -> Source:
    """A path or an http(s) URL; `timeout` in seconds is that of each wait for a server.

    OriginError when it is missing, empty, or on a server that does not answer ranged requests.
    """
    text = os.fspath(source)
    return UrlSource(text, timeout) if is_url(text) else FileSource(os.path.abspath(text))


class FileSource(Source):
    """A local file."""

    remote = False
    step = 64 << 10

    def __init__(self, path: str) -> None:
        super().__init__(identify(path))
        self._origin = FileOrigin(self.identity, timeout=0)

    def read(self, offset: int, length: int) -> bytes:
        """Blocks for the disk; OriginError when the file is not what it was."""
        return self._origin.pread(offset, length)

    def stream(self) -> Generator[bytes, None, None]:
        for at in range(0, self.size, PIECE):
            yield self.read(at, min(PIECE, self.size - at))

    def forked(self) -> None:
        """The fd is the child's as well, and has no position."""

    def close(self) -> None:
        self._origin.close_now()


class UrlSource(Source):
    """A URL. Its requests are made on an event loop in a thread, which the first of them starts."""

    remote = True
    step = 8 << 20

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._line: _Line | None = None
        self._parents: list[_Line] = []  # never finalised here: they are not ours
        self._closed = False
        try:
            super().__init__(self._call(resolve(url, timeout=timeout)))
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """One request, unless it breaks off: then what is missing is asked for again."""
        return self._call(self._read(offset, length))

    def begin(self, offset: int, length: int) -> Callable[[], bytes]:
        future = self._submit(self._read(offset, length))
        return lambda: _result(future)

    async def _read(self, offset: int, length: int) -> bytes:
        async with aclosing(self._pieces(offset, length)) as pieces:
            return b"".join([piece async for piece in pieces])

    def stream(self) -> Generator[bytes, None, None]:
        pieces = self._pieces(0, self.size)
        try:
            while piece := self._call(_next(pieces)):
                yield piece
        finally:
            with suppress(OSError):
                self._call(pieces.aclose())

    async def _pieces(self, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        origin, end, tries = self._origin(), offset + length, 0
        while offset < end:
            began = offset
            try:
                async with aclosing(_stream(origin, offset, end - offset)) as pieces:
                    async for piece in pieces:
                        offset += len(piece)
                        yield piece
                return
            except OriginError as problem:
                tries = 0 if offset > began else tries + 1
                if not problem.retry or tries == _TRIES:
                    raise
            await asyncio.sleep(_PAUSE * 2**tries)

    def _origin(self) -> Origin:
        """On the loop: the origin whose session is of this loop."""
        line = self._line
        assert line is not None
        if line.origin is None:
            line.origin = open_origin(self.identity, timeout=self._timeout)
        return line.origin

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return _result(self._submit(work))

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._closed:
                work.close()
                raise ValueError(_CLOSED)
            if self._line is None:
                self._line = _Line()
            return self._line.submit(work)

    def forked(self) -> None:
        self._lock = threading.Lock()
        if self._line is not None:
            self._parents.append(self._line)
            self._line = None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            line, self._line = self._line, None
        if line is not None:
            line.close()


class _Line:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.origin: Origin | None = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="pagein seekable", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        await self._stop.wait()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        if self.origin is not None:
            await self.origin.close()
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()  # which looked up names

    def close(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:  # a finaliser may run there
            self._thread.join(_JOIN)


def _result(future: Future[T]) -> T:
    """What came of it; each of its waits has a deadline. ValueError if the source was closed."""
    try:
        return future.result()
    except CancelledError:
        raise ValueError(_CLOSED) from None
    except BaseException:
        future.cancel()
        raise


async def _stream(origin: Origin, offset: int, length: int) -> AsyncGenerator[bytes, None]:
    """A request's bytes in pieces that are worth a change of threads."""
    waiting = bytearray()
    async with aclosing(origin.stream(offset, length)) as pieces:  # type: ignore[type-var]
        try:
            async for piece in pieces:
                waiting += piece
                if len(waiting) >= PIECE:
                    yield bytes(waiting)
                    waiting.clear()
        except OriginError:
            if waiting:
                yield bytes(waiting)  # what came is right, and need not come again
            raise
    if waiting:
        yield bytes(waiting)


async def _next(pieces: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(pieces, b"")
