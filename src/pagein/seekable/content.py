"""The content of a compressed file, chunk by chunk: decoded from the nearest point, verified, kept.

A chunk is given out once its digest was compared, whichever way it came. Decoders stay where the
last readers left them: who reads on pays for no more than that. What was passed over on the way
is kept as well, and verified if it is ever wanted.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression
from pagein.seekable.ahead import Ahead
from pagein.seekable.cursor import Cursor
from pagein.seekable.errors import SeekableError, check_library, told_of
from pagein.seekable.index import CHUNK, FileIndex
from pagein.seekable.sources import Source

MEMORY: Final = 64 << 20
"""Bytes of content that are kept, unless `open` is told another number."""

_IDLE = {Compression.GZIP: 4, Compression.ZSTD: 2}
"""Decoders that are kept: of zstd each has a window of megabytes."""

_TRIES = 2
_FOREVER = 3600.0  # seconds: whoever is waited for has deadlines of its own


class Content:
    """The content of `source`, which it closes, and so the index. Safe for threads."""

    def __init__(
        self,
        index: FileIndex,
        source: Source,
        memory: int = MEMORY,
        threads: int | None = None,
    ) -> None:
        """Keep up to `memory` bytes of decoded chunks; decode ahead in `threads`, see `Ahead`.

        SeekableError if a library is missing.
        """
        check_library(source.name, index.compression)
        self.index = index
        self.source = source
        self.size = index.size
        self.memory = memory
        self.closed = False
        self._threads = 0 if source.remote else threads
        self._begin()
        _living.add(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._chunks: OrderedDict[int, tuple[bytes, bool]] = OrderedDict()  # bool: verified
        self._idle: list[Cursor] = []
        self._busy: set[int] = set()  # spans that a thread decodes
        self._ahead = Ahead(self._threads)

    def forked(self) -> None:
        """In a child: begin anew, since a lock may have been copied while it was held."""
        self._begin()
        self.source.forked()

    def close(self) -> None:
        """Close the source and the index; twice is fine. Reads that run now fail."""
        self.closed = True
        with self._changed:
            self._chunks.clear()
            self._idle.clear()
            self._changed.notify_all()
        self._ahead.close()
        self.source.close()
        self.index.close()

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` on, short at the end only; the number of bytes.

        OSError: SeekableError for bytes that are not those of the index, BadIndex for a damaged
        index, OriginError for a source that cannot be read.
        """
        at = 0
        for part in self.parts(offset, len(view)):
            view[at : at + len(part)] = part
            at += len(part)
        return at

    def parts(self, offset: int, length: int) -> Iterator[memoryview]:
        """The bytes of `read_into`, as they become known."""
        end = min(offset + length, self.size)
        last = (end - 1) // CHUNK
        while offset < end:
            number, at = divmod(offset, CHUNK)
            part = memoryview(self._verified(number, last))[at : end - number * CHUNK]
            offset += len(part)
            yield part

    # ---- one chunk

    def _verified(self, number: int, last: int) -> bytes:
        """Chunk `number`; those up to `last` are wanted next."""
        for _ in range(_TRIES):
            data, verified = self._chunk(number, last)
            if verified or self._right(number, data):
                return data
            self._forget(number)
        begin = number * CHUNK
        text = "the file was damaged or changed after its index was built"
        raise SeekableError(f"{self.source.name}: wrong content from byte {begin} on: {text}")

    def _right(self, number: int, data: bytes) -> bool:
        if hashlib.sha256(data).digest() != self.index.chunk_digest(number):
            return False
        with self._changed:
            if number in self._chunks:
                self._chunks[number] = data, True
        return True

    def _forget(self, number: int) -> None:
        """A chunk is wrong: so may be what any decoder gives next."""
        with self._changed:
            self._chunks.pop(number, None)
            self._chunks = OrderedDict(each for each in self._chunks.items() if each[1][1])
            self._idle.clear()

    def _chunk(self, number: int, last: int) -> tuple[bytes, bool]:
        """A chunk, and whether it has been verified before. One thread decodes a span at a time."""
        span = self.index.span_of(number * CHUNK)
        with self._changed:
            if self._ahead.reads_on(number):
                self._decode_ahead(span)
            while True:
                if self.closed:
                    raise ValueError("I/O operation on closed file")
                found = self._chunks.get(number)
                if found is not None:
                    self._chunks.move_to_end(number)
                    return found
                if span not in self._busy:
                    break
                self._changed.wait(_FOREVER)
            self._busy.add(span)
            cursor = self._nearest(number)
        try:
            return self._decode(cursor, span, number, self._end(last)), False
        finally:
            with self._changed:
                self._busy.discard(span)
                self._changed.notify_all()

    def _nearest(self, number: int) -> Cursor | None:
        """The decoder that stands nearest before a chunk, if it is nearer than the last point."""
        begin = self.index.begin_of(self.index.span_of(number * CHUNK))
        able = [c for c in self._idle if begin <= c.chunk * CHUNK <= number * CHUNK]
        if not able:
            return None
        cursor = max(able, key=lambda each: each.chunk)
        self._idle.remove(cursor)
        return cursor

    def _end(self, last: int) -> int:
        """Where in the file the span ends that has the end of chunk `last`."""
        if not self.source.remote:
            return 0
        return self.index.place(self.index.span_of(min((last + 1) * CHUNK, self.size) - 1)).end

    def _decode(self, cursor: Cursor | None, span: int, number: int, end: int) -> bytes:
        """What cannot be decoded is read again, from its point on."""
        try:
            return self._run(cursor or Cursor(self.index, self.source, span), number, end)
        except LayerError:
            with told_of(self.source.name):
                return self._run(Cursor(self.index, self.source, span), number, end)

    def _run(self, cursor: Cursor, number: int, end: int) -> bytes:
        """Chunk `number`, and those that `cursor` gives before it. They are kept."""
        data = b""
        while cursor.chunk <= number:
            at, data = cursor.chunk, cursor.next(end)
            with self._changed:
                self._keep(at, data, verified=False)
        # What was right before a mistake is right, and whoever reads on will meet that.
        with suppress(LayerError, OSError):
            if self.source.remote:
                self._rest(cursor, number)
            with self._changed:
                self._idle.append(cursor)
                del self._idle[: -_IDLE[self.index.compression]]
        return data

    def _rest(self, cursor: Cursor, number: int) -> None:
        """Decode the rest of what was fetched for a chunk: it should not be fetched again."""
        room = number + self.memory // (2 * CHUNK)
        while (cursor.chunk + 1) * CHUNK <= cursor.fetched and cursor.chunk < room:
            at, data = cursor.chunk, cursor.next(0)
            with self._changed:
                self._keep(at, data, verified=False)

    def _keep(self, number: int, data: bytes, *, verified: bool) -> None:
        if verified or number not in self._chunks:
            self._chunks[number] = data, verified
        while len(self._chunks) * CHUNK > self.memory:
            self._chunks.popitem(last=False)

    # ---- many chunks

    def _decode_ahead(self, span: int) -> None:
        """Have those after `span` decoded, as far as there is room for them."""
        index, number = self.index, span + 1
        while number < index.points:
            size = index.begin_of(number + 1) - index.begin_of(number)
            if number - span > self._ahead.spans(size, self.memory):
                return
            if number not in self._busy and -(-index.begin_of(number) // CHUNK) not in self._chunks:
                self._busy.add(number)
                if not self._ahead.submit(self._decode_span, number):
                    self._busy.discard(number)
            number += 1

    def _decode_span(self, span: int) -> None:
        """In a thread. What goes wrong, whoever reads it will meet again."""
        try:
            cursor = Cursor(self.index, self.source, span)
            end = self.index.begin_of(span + 1)
            while (number := cursor.chunk) * CHUNK < end and not self.closed:
                data = cursor.next(0)
                if hashlib.sha256(data).digest() != self.index.chunk_digest(number):
                    return
                with self._changed:
                    self._keep(number, data, verified=True)
                    self._changed.notify_all()
        except (OSError, ValueError):
            return
        finally:
            with self._changed:
                self._busy.discard(span)
                self._changed.notify_all()


_living: weakref.WeakSet[Content] = weakref.WeakSet()


def _forked() -> None:
    for content in list(_living):
        content.forked()


os.register_at_fork(after_in_child=_forked)
