"""A gzip layer (RFC 1951, RFC 1952): unpacked with points to enter it at, and entered.

One member or many, every header flag, padding of zeros at the end. A point is taken once in so many
bytes of output, or sooner where the data hardly compresses, so that what lies between two points
never costs more than about 1 MiB of download.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import cycle

from pagein.images.layers import window
from pagein.images.layers.deflate import ERRORS, decompressor
from pagein.images.layers.errors import LayerError
from pagein.images.layers.inflate import WINDOW, Inflate
from pagein.images.layers.point import INTERVAL, KEPT, PACKED_INTERVAL, Keep, Output, Point
from pagein.images.layers.worker import Worker

_BUFFER = 1 << 20
_WINDOWS = 8  # points whose windows are waiting to be cleared
_MOST_FOR_SPARSE = 64 << 10  # bytes of input that 32 KiB of output may take
_PIECE = 1 << 20
_TRAILER = 8  # CRC32 and ISIZE
_MAGIC = 0x1F


class GzipUnpacker:
    """Feed it the layer; `output` gets the tar, `keep` the points. `finish` checks the end.

    Points are `interval` bytes of output apart, and what the last deflate block adds; the first one
    has out 0. `keep` is called in order, in a thread; `finish` waits. `close` it in any case.
    """

    def __init__(self, output: Output, keep: Keep, interval: int = INTERVAL) -> None:
        self._output = output
        self._interval = interval
        self._keep = Worker("points", lambda point: keep(point.get()), _WINDOWS)
        self._last: tuple[int, int] | None = None  # out and bit of the last point
        self._inflate = Inflate()
        # Used in turn: memory that is new each time costs as much as the tar's digest.
        self._buffers = cycle([bytearray(WINDOW + _BUFFER) for _ in range(KEPT + 2)])
        self._buffer = next(self._buffers)  # what came before, then what comes
        self._base = -WINDOW  # offset in the output of the buffer's first byte
        self._inflate.into(self._buffer, WINDOW)
        self._in = 0  # bytes of input that came before the piece that is fed
        self._member = True
        self._padding = False
        self._member_start = 0  # in the output
        self._pending: _Pending | None = None

    def feed(self, data: bytes) -> None:
        """Unpack the next bytes of the layer; LayerError if they are damaged."""
        at = 0
        while at < len(data):
            if not self._member and not self._begin_member(data, at):
                break
            at = self._run(data, at)
        if self._pending is not None:
            self._pending.collect(data, len(data), self._in)
        self._in += len(data)

    def finish(self) -> None:
        """The layer is over: LayerError if that is in the middle of a member."""
        if self._member:
            raise LayerError(f"gzip: truncated: the layer ends after {self._in} bytes")
        self._flush()
        self._keep.finish()
        self.close()

    def close(self) -> None:
        """Give memory back and end the thread; twice is fine."""
        self._keep.close()
        self._inflate.close()
        # At once: what refers to each other, as threads do, waits long for the garbage collector.
        self._buffer, self._buffers = bytearray(), cycle([bytearray()])

    def _begin_member(self, data: bytes, at: int) -> bool:
        """Whether another member begins here: else only zeros may follow."""
        if not self._padding and data[at] == _MAGIC:
            self._inflate.next_member()
            self._member = True
            self._member_start = self._out
            return True
        self._padding = True
        rest = data[at:].lstrip(b"\0")
        if rest:
            raise LayerError(
                f"gzip: what follows the last member, at offset {self._in + len(data) - len(rest)},"
                " is neither another member nor zeros"
            )
        return False

    @property
    def _out(self) -> int:
        """Bytes of output so far."""
        return self._base + len(self._buffer) - self._inflate.room

    def _run(self, data: bytes, at: int) -> int:
        """Inflate `data` from `at`, to its end or to the end of a member; where that is."""
        inflate = self._inflate
        inflate.take(data, at)
        while True:
            try:
                progress = self._step(at)
            except LayerError as error:
                where = self._in + len(data) - inflate.unused
                raise LayerError(f"gzip: {error}, near offset {where}") from None
            at = len(data) - inflate.unused
            if inflate.member_ended:
                self._member = False
                self._resolve(data, at)
                return at
            pending = self._pending
            if pending is not None and self._out >= pending.out + WINDOW:
                self._resolve(data, at)
            if inflate.free_bits is not None:
                self._block_end((self._in + at) * 8 - inflate.free_bits)
            if not inflate.room:
                self._flush()
            elif not progress:  # with input used up there may still be output inside, so not before
                return at

    def _step(self, at: int) -> bool:
        """Inflate some; only where a block may become a point is it looked for."""
        if self._last is None:
            return self._inflate.step()
        last_out, last_bit = self._last
        # One byte less: the block that begins where a point is due must not be passed over.
        unpacked = last_out + self._interval - 1 - self._out
        packed = last_bit // 8 + PACKED_INTERVAL - 1 - (self._in + at)
        if unpacked > 0 and packed > 0:
            return self._inflate.run(unpacked, packed)
        return self._inflate.step()

    def _block_end(self, bit: int) -> None:
        """A block begins at `bit`: a point, if the last one is far enough."""
        out = self._out
        if self._pending is not None:
            return  # its window is not known yet: within the next 32 KiB
        if self._last is not None:
            last_out, last_bit = self._last
            near = out - last_out < self._interval and bit - last_bit < PACKED_INTERVAL * 8
            if near or out == last_out:
                return
        have = min(WINDOW, out - self._member_start)
        end = out - self._base
        point = Point(out, bit, bytes(self._buffer[end - have : end]))
        self._last = out, bit
        self._pending = _Pending(point)
        if not have:
            self._keep.submit(self._pending)
            self._pending = None

    def _resolve(self, data: bytes, at: int) -> None:
        """Enough is known of what follows the pending point to see what of its window is used."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        pending.collect(data, at, self._in)
        start = pending.out - self._base
        pending.output = bytes(self._buffer[start : min(start + WINDOW, self._out - self._base)])
        self._keep.submit(pending)

    def _flush(self) -> None:
        """Hand on what the buffer holds; the new one begins with the last 32 KiB."""
        full, end = self._buffer, self._out - self._base
        if end == WINDOW:
            return
        self._base += end - WINDOW
        self._buffer = next(self._buffers)
        self._buffer[:WINDOW] = full[end - WINDOW : end]
        self._inflate.into(self._buffer, WINDOW)
        self._output(memoryview(full)[WINDOW:end])


class _Pending:
    """A point of which the input that follows, and its output, are still being collected."""

    def __init__(self, point: Point) -> None:
        self.out = point.out
        self.output = b""
        self._point = point
        self._parts: list[bytes] = []
        self._next = point.bit // 8  # offset in the layer of what is to be kept
        self._end = self._next + _MOST_FOR_SPARSE

    def collect(self, data: bytes, end: int, base: int) -> None:
        """Keep what `data`, at offset `base` of the layer, has from the point up to `end`."""
        start, end = self._next - base, min(end, self._end - base)
        if 0 <= start < end:  # else the point lies in the last byte of an earlier piece
            self._parts.append(data[start:end])
            self._next = base + end

    def get(self) -> Point:
        """The point, its window cleared of what the output does not need."""
        point = self._point
        data = b"".join(self._parts)
        return point._replace(window=window.sparse(point.window, point.bit, data, self.output))


class GzipDecoder:
    """Decodes from a point on. Feed it the layer from byte `point.bit // 8` on.

    Without a point, from the header of a member on.
    """

    def __init__(self, point: Point | None = None) -> None:
        self._point = point
        self._decoder: zlib._Decompress | None = None
        self._skip = 0  # bytes of a member's trailer that are still to come
        self._between = point is None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` decodes to, in pieces of up to 1 MiB; LayerError if it is damaged."""
        try:
            yield from self._feed(data)
        except ERRORS as error:
            raise LayerError(f"gzip: {error}") from None

    def _feed(self, data: bytes) -> Iterator[bytes]:
        if self._point is not None and data:
            self._decoder, start = window.enter(self._point.bit, data[0], self._point.window)
            self._point = None
            data = start + data[1:]
            self._skip = _TRAILER
        while data:
            if self._between:
                skipped = min(self._skip, len(data))
                self._skip -= skipped
                data = data[skipped:]
                if not data:
                    return
                if data[0] != _MAGIC:
                    return  # padding
                self._between = False
                self._decoder = decompressor(31)
            decoder = self._decoder
            assert decoder is not None
            if piece := decoder.decompress(data, _PIECE):
                yield piece
            data = decoder.unconsumed_tail
            while not data and not decoder.eof and (piece := decoder.decompress(b"", _PIECE)):
                yield piece
            if decoder.eof:
                data = decoder.unused_data
                self._between = True
