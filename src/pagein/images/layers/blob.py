"""A layer's data blob: the data of its regular files, each from a 4 KiB boundary on, in tar order.

Between files there are zeros. What lies where is the extent table; the blob itself is only ever
made of it and the tar. All data is there, whatever its size: data in the metadata would be a
second place to verify and to fetch from, for a saving of a few bytes of chunk index a file.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable

from pagein.erofs.tree import Extent
from pagein.images.layers.entry import Entry
from pagein.images.layers.errors import LayerError, show

PAGE = 4096
CHUNK = 64 << 10
"""Bytes of a chunk, the unit of verification; as much as a random read fetches at least."""

DEVICE = 1
"""Number of the data blob in the metadata's device table."""

Sink = Callable[[int, memoryview], None]
"""Takes the blob's bytes at an offset, in order and complete; called from a thread. The view holds
during the call only."""

_BUFFER = 4 * CHUNK  # what is hashed soon after it was copied is still in the processor's cache
MAX_BLOB = PAGE << 32
"""Bytes: EROFS has 32 bits of block number."""
_FEW = 1 << 16  # entries of a chunk index that a sparse file may have: 512 KiB of metadata
_MAX_PADDING = 1 << 30  # bytes of zeros in the blob that one sparse file may cost


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class BlobBuilder:
    """Lays out and hashes the blob as entries (`place`) and their data (`data`) come by.

    In their thread: hashing lets others run, while one that hands each buffer over to another
    thread has both of them wait for the interpreter more often.
    """

    def __init__(self, sink: Sink | None = None) -> None:
        self.size = 0
        """Bytes of the blob so far, a multiple of 4096."""
        self.offsets = array("Q")
        self.positions = array("Q")
        self.lengths = array("Q")
        """The extent table in columns: offset in the blob, position in the tar, bytes."""
        self.digests = bytearray()
        """SHA-256 of each chunk, one after the other; complete after `finish`."""
        self._sink = sink
        self._buffer = bytearray(_BUFFER)
        self._filled = 0  # bytes of the buffer; behind them lies what it held before
        self._start = 0  # offset in the blob of the buffer, that of a chunk
        self._next = 0  # extent that the next data belongs to

    def place(self, entry: Entry) -> tuple[Extent, ...]:
        """Give the stored data of a regular file its place in the blob."""
        extents = self._whole(entry) if _is_whole(entry) else self._pieces(entry)
        if self.size > MAX_BLOB:
            raise LayerError(f"more than {MAX_BLOB} bytes of data in one layer: EROFS's limit")
        return tuple(extents)

    def _whole(self, entry: Entry) -> list[Extent]:
        """Of nearly all files: one extent."""
        at, size = self.size, entry.size
        self.offsets.append(at)
        self.positions.append(entry.segments[0].position)
        self.lengths.append(size)
        self.size = at + _up(size, PAGE)
        return [Extent(0, size, DEVICE, at)]

    def _pieces(self, entry: Entry) -> list[Extent]:
        unit = _granule(entry)
        extents: list[Extent] = []
        for offset, position, length in entry.segments:
            start, end = offset // unit * unit, _up(offset + length, unit)
            last = extents[-1] if extents else None
            if last is not None and start <= last.offset + last.length:
                last.length = max(last.length, end - last.offset)
            else:
                last = Extent(start, end - start, DEVICE, self.size)
                extents.append(last)
            self.size = last.position + _up(last.length, PAGE)
            self.offsets.append(last.position + offset - last.offset)
            self.positions.append(position)
            self.lengths.append(length)
        if extents:  # the last one ends with the file, not with its page
            extents[-1].length = min(extents[-1].length, entry.size - extents[-1].offset)
        return extents

    def data(self, position: int, view: memoryview) -> None:
        """Stored bytes from offset `position` in the tar."""
        at = self._next
        begin = self.offsets[at] + position - self.positions[at] - self._start
        end = begin + len(view)
        if len(view) == self.lengths[at] and end <= _BUFFER:  # a whole file, as nearly all are
            self._zeros(begin)
            self._buffer[begin:end] = view
            self._filled = end
            self._next = at + 1
            return
        while view:
            at = self._next
            past = position - self.positions[at]
            take = min(len(view), self.lengths[at] - past)
            self._write(self.offsets[at] + past, view[:take])
            position += take
            view = view[take:]
            if past + take == self.lengths[at]:
                self._next += 1

    def _write(self, offset: int, view: memoryview) -> None:
        while view:
            while offset >= self._start + _BUFFER:
                self._flush(_BUFFER)
            at = offset - self._start
            past = at % CHUNK
            if not past and len(view) >= CHUNK:
                if at:
                    self._flush(at)
                take = len(view) // CHUNK * CHUNK
                self._hash(view[:take])
            else:
                self._zeros(at)
                large = len(view) >= 2 * CHUNK  # then most of it need not be copied
                take = min(len(view), CHUNK - past if large else _BUFFER - at)
                self._filled = at + take
                self._buffer[at : at + take] = view[:take]
            offset += take
            view = view[take:]

    def _zeros(self, until: int) -> None:
        """Up to the next data."""
        if self._filled < until:
            self._buffer[self._filled : until] = bytes(until - self._filled)

    def _flush(self, length: int) -> None:
        """Hash the first `length` bytes of the buffer, which are all that it holds."""
        self._zeros(length)
        self._hash(memoryview(self._buffer)[:length])
        self._filled = 0

    def finish(self) -> None:
        """All data has come: hash what is left. The blob ends with a whole page."""
        while self._start < self.size:
            self._flush(min(_BUFFER, self.size - self._start))

    def _hash(self, view: memoryview) -> None:
        """What comes next of the blob."""
        if self._sink is not None:
            self._sink(self._start, view)
        for at in range(0, len(view), CHUNK):
            self.digests += hashlib.sha256(view[at : at + CHUNK]).digest()
        self._start += len(view)


def _is_whole(entry: Entry) -> bool:
    """Whether a file is stored in one piece, without holes."""
    return len(entry.segments) == 1 and entry.segments[0].length == entry.size


def _granule(entry: Entry) -> int:
    """Bytes that pieces of a file with holes are rounded to: pages, larger ones for a giant.

    EROFS wants one entry of the chunk index for each granule of the file, holes included: 2 GiB of
    them for a 1 TiB file in pages. A larger granule costs zeros in the blob, which compress away.
    """
    unit = PAGE
    while entry.size > _FEW * unit:
        unit *= 2
    padding = len(entry.segments) * unit
    if unit > PAGE and padding > _MAX_PADDING:
        raise LayerError(
            f"{show(entry.path)}: too many pieces ({len(entry.segments)}) "
            f"in a sparse file of {entry.size} bytes"
        )
    return unit
