"""Decodes a layer from a point on: from the start of a frame, or from the middle of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pagein.images.layers.errors import LayerError
from pagein.images.layers.point import Point
from pagein.images.layers.zstd import state, synthetic
from pagein.images.layers.zstd.frames import Block, Frame, Walk
from pagein.images.layers.zstd.library import Damaged, Stream, library
from pagein.images.layers.zstd.patch import Splicer
from pagein.images.layers.zstd.state import State

BLOCKS: Final = 8
"""Given to the decoder at a time: at most 1 MiB of output, whatever a damaged layer claims."""


class ZstdDecoder:
    """Feed it the layer from byte `point.bit // 8` on; without a point, from its start."""

    def __init__(self, point: Point | None = None) -> None:
        self._point = point
        self._start = point.bit // 8 if point is not None else 0
        self._walk: Walk | None = None
        self._state: State | None = None
        self._splicer: Splicer | None = None
        self._stream: Stream | None = None
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` decodes to, in pieces of up to 1 MiB; LayerError if it is damaged."""
        if self._walk is None:
            self._walk = self._enter()
        if self._splicer is not None:
            data = self._splicer.feed(data)
        blocks = 0
        for event in self._walk.feed(data):
            if isinstance(event, Frame):
                self._start = event.at
                self._stream = library().stream(None)
                self._parts.append(event.header)
            elif isinstance(event, Block):
                self._parts += (event.head, event.payload)
                blocks += 1
                if blocks == BLOCKS:
                    yield from self._decode()
                    blocks = 0
            else:
                if self._state is None:  # else it is that of more than what is decoded
                    self._parts.append(event.checksum)
                yield from self._decode()
                blocks = 0
                if self._stream is not None and not self._stream.eof:
                    raise LayerError(f"zstd: the frame at offset {self._start} is damaged")
                self._stream = self._state = None
        yield from self._decode()

    def _enter(self) -> Walk:
        """Become what a decoder is that has come to the point."""
        point, self._point = self._point, None
        if point is None or not point.window:
            return Walk(self._start)
        entered = self._state = state.unpack(point.window)
        self._splicer = Splicer(entered.splices)
        try:
            dictionary = library().dictionary(entered.dictionary())
            self._stream = library().stream(dictionary)
        except Damaged as error:
            raise LayerError(
                f"zstd: the point at offset {self._start} is damaged: {error}"
            ) from None
        self._parts.append(synthetic.header(entered.window))
        return Walk(self._start, checked=entered.checked)

    def _decode(self) -> Iterator[bytes]:
        if not any(self._parts):
            return
        data = b"".join(self._parts)
        self._parts.clear()
        assert self._stream is not None
        try:
            output = self._stream.decompress(data)
        except Damaged as error:
            where = self._start
            raise LayerError(f"zstd: the frame at offset {where} is damaged: {error}") from None
        if output:
            yield output
