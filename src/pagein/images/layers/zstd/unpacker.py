"""Unpacks a zstd layer, and finds points to enter it at."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from pagein.images.layers.errors import LayerError
from pagein.images.layers.point import PACKED_INTERVAL, Keep, Output, Point
from pagein.images.layers.worker import Worker
from pagein.images.layers.zstd import sections
from pagein.images.layers.zstd.checkpoints import Checkpoint, Piece
from pagein.images.layers.zstd.decoder import BLOCKS
from pagein.images.layers.zstd.framepoints import FramePoints
from pagein.images.layers.zstd.frames import COMPRESSED, Block, Frame, Walk
from pagein.images.layers.zstd.library import Damaged, Stream, library
from pagein.images.layers.zstd.planes import LEAST, Planes
from pagein.images.layers.zstd.sections import Sections

SPAN: Final = 8 << 20
"""Bytes of output between two points in a frame: at least this, and the frame's window."""

PACKED: Final = 1_600_000
"""Bytes of the layer between two points in a frame: with what is decoded at once, and the first
blocks of the next span for a read that lies in both, about 2 MiB."""

_FRAME = 256 << 10  # bytes of output before a frame that begins with a point: these cost nothing
_BATCH = 256 << 10  # bytes of blocks that are decoded at once, or so


class ZstdUnpacker:
    """As GzipUnpacker: feed it the layer; `output` gets the tar, `keep` the points, from a thread.

    The first point has out 0. Frames begin with one, unless they are short. `close` it in any case.
    """

    def __init__(self, output: Output, keep: Keep, span: int | None = None) -> None:
        self._output = output
        self._keep = keep
        self._span = span
        self._walk = Walk()
        self._in = 0
        self._out = 0
        self._last: tuple[int, int] | None = None  # out and byte of the last point
        self._frame: Frame | None = None
        self._stream: Stream | None = None
        self._points: FramePoints | None = None
        self._batch: list[bytes] = []
        self._blocks = 0
        self._planes: Planes | None = None
        self._lock = threading.Lock()
        self._waiting: deque[Checkpoint | Point] = deque()
        self._making = Worker("points", self._make, 1)

    def feed(self, data: bytes) -> None:
        """Unpack the next bytes of the layer; LayerError if they are damaged."""
        self._in += len(data)
        for event in self._walk.feed(data):
            if isinstance(event, Frame):
                self._begin(event)
            elif isinstance(event, Block):
                self._block(event)
            else:
                self._batch.append(event.checksum)
                self._end()

    def finish(self) -> None:
        """The layer is over: LayerError if that is in the middle of a frame."""
        if not self._walk.complete:
            raise LayerError(f"zstd: truncated: the layer ends after {self._in} bytes")
        if self._last is None:
            raise LayerError(f"zstd: truncated: no frame in {self._in} bytes")
        self._making.finish()
        self._release()
        self.close()

    def close(self) -> None:
        """End the thread, also half-way; twice is fine."""
        self._making.close()
        self._points = self._planes = self._stream = None
        self._waiting.clear()
        self._batch.clear()

    # ---- frames and blocks

    def _begin(self, frame: Frame) -> None:
        self._frame = frame
        self._stream = library().stream(None)
        self._batch.append(frame.header)
        if self._due(frame.at, _FRAME, PACKED_INTERVAL):
            self._last = self._out, frame.at
            self._waiting.append(Point(self._out, frame.at * 8, b""))
        self._points = FramePoints(
            frame.window,
            frame.checked,
            self._out,
            self._labels,
            self._making.submit,
        )

    def _block(self, block: Block) -> None:
        assert self._frame is not None and self._points is not None
        if not self._blocks and self._due(block.at, *self._apart(self._frame.window)):
            begun = self._points.begin(self._out, block.at)
            if begun is not None:
                self._last = self._out, block.at
                self._waiting.append(begun)
        self._points.block(block, self._parts(block))
        self._batch += (block.head, block.payload)
        self._blocks += 1
        if self._blocks == BLOCKS or sum(map(len, self._batch)) >= _BATCH:
            self._decode()

    def _end(self) -> None:
        self._decode()
        assert self._stream is not None and self._points is not None and self._frame is not None
        if not self._stream.eof:
            raise LayerError(f"zstd: the frame at offset {self._frame.at} is damaged")
        self._points.end(self._out)
        self._stream = self._points = None

    def _parts(self, block: Block) -> Sections | None:
        if block.kind != COMPRESSED:
            return None
        try:
            return sections.parse(block.payload)
        except IndexError:
            raise LayerError(f"zstd: damaged block at offset {block.at}") from None

    def _decode(self) -> None:
        assert self._stream is not None and self._points is not None and self._frame is not None
        data = b"".join(self._batch)
        self._batch.clear()
        self._blocks = 0
        if not data:
            return
        try:
            output = self._stream.decompress(data)
        except Damaged as error:
            where = self._frame.at
            raise LayerError(f"zstd: the frame at offset {where} is damaged: {error}") from None
        if output:
            out, self._out = self._out, self._out + len(output)
            self._points.output(out, output)
            self._output(memoryview(output))

    # ---- points

    def _apart(self, window: int) -> tuple[int, int]:
        """How far apart points in a frame are: bytes of the tar, and of the layer."""
        if self._span is not None:
            return self._span, PACKED
        # Each point costs as much time as decoding its frame's window several times.
        return (SPAN, PACKED) if window <= SPAN else (window, window)

    def _due(self, at: int, interval: int, packed: int) -> bool:
        """Whether a point is wanted here, before byte `at`."""
        if self._last is None:
            return True
        out, took = self._out - self._last[0], at - self._last[1]
        if packed <= PACKED and out < took + took // 4:
            packed = PACKED_INTERVAL  # it hardly compresses, and so a point takes hardly anything
        return out > 0 and (out >= interval or took >= packed)

    def _labels(self, have: int) -> Planes:
        """Windows of labels as large as one that holds `have` bytes. Called from both threads."""
        with self._lock:
            if self._planes is None or self._planes.size < have:
                self._planes = None  # first: they are large
                self._planes = Planes(1 << (have - 1).bit_length() if have > LEAST else have)
            return self._planes

    def _make(
        self, checkpoint: Checkpoint, planes: Callable[[int], Planes], after: Sequence[Piece]
    ) -> None:
        checkpoint.make(planes, after)
        self._release()

    def _release(self) -> None:
        """Give out the points that are known, in order. In the thread, or when it is idle."""
        while self._waiting:
            first = self._waiting[0]
            if isinstance(first, Checkpoint):
                if not first.known:
                    return
                found = first.point()
            else:
                found = first
            self._waiting.popleft()
            if found is not None:
                self._keep(found)
