"""A zstd layer (RFC 8878): each frame can be entered at its start, and nowhere else.

Frames and blocks are walked here, so that the decoder gets a few blocks at a time: a block gives
at most 128 KiB, whatever a damaged or hostile one claims. The decoder is python-zstandard's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from pagein.images.layers.errors import LayerError
from pagein.images.layers.point import Keep, Output, Point

if TYPE_CHECKING:
    import zstandard

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50  # to 5F
_BLOCKS = 8  # given to the decoder at a time: at most 1 MiB of output
_MAX_WINDOW = 128 << 20
_RLE, _RESERVED = 1, 3
_CHECKSUM = 4

_Steps = Generator[None, None, None]


class ZstdDecoder:
    """Decodes frames, from the start of the layer's first one or of that of `point` on."""

    def __init__(self, point: Point | None = None) -> None:
        self.frames: list[tuple[int, int]] = []
        """Offset in the output and in the input of the frames; of empty ones only the first."""
        self._in = point.bit // 8 if point is not None else 0
        self._out = point.out if point is not None else 0
        self._data = b""
        self._at = 0  # in the data
        self._ready: list[bytes] = []
        self._object: zstandard.ZstdDecompressionObj | None = None
        self._in_frame = False
        self._steps = self._layer()
        next(self._steps)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` decodes to, in pieces of up to 1 MiB; LayerError if it is damaged."""
        self._data = self._data[self._at :] + data
        self._at = 0
        while True:
            had = self._in
            next(self._steps)
            yield from self._ready
            self._ready.clear()
            if had == self._in:
                return

    @property
    def complete(self) -> bool:
        """Whether the input so far ends with a frame."""
        return bool(self.frames) and not self._in_frame and self._at == len(self._data)

    def _take(self, length: int) -> Generator[None, None, bytes]:
        while len(self._data) - self._at < length:
            yield
        taken = self._data[self._at : self._at + length]
        self._at += length
        self._in += length
        return taken

    def _layer(self) -> _Steps:
        yield
        while True:
            magic = yield from self._take(4)
            self._in_frame = True
            start = self._in - 4
            number = int.from_bytes(magic, "little")
            if number == _MAGIC:
                if not self.frames or self._out > self.frames[-1][0]:
                    self.frames.append((self._out, start))
                yield from self._frame(magic, start)
            elif number & ~0xF == _SKIPPABLE:
                length = int.from_bytes((yield from self._take(4)), "little")
                while length:
                    length -= len((yield from self._take(min(length, 1 << 16))))
            else:
                raise LayerError(f"zstd: no frame begins at offset {start}")
            self._in_frame = False

    def _frame(self, magic: bytes, start: int) -> _Steps:
        import zstandard

        descriptor = yield from self._take(1)
        flags = descriptor[0]
        single = flags >> 5 & 1
        sizes = (0, 1, 2, 4)[flags & 3], (single, 2, 4, 8)[flags >> 6]
        header = yield from self._take((1 - single) + sum(sizes))
        dictionary = header[1 - single :][: sizes[0]]
        if any(dictionary):
            number = int.from_bytes(dictionary, "little")
            raise LayerError(f"zstd: the frame at offset {start} needs dictionary {number}")
        self._object = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
        parts, blocks, last = [magic + descriptor + header], 0, 0
        while not last:
            head = yield from self._take(3)
            number = int.from_bytes(head, "little")
            last, kind, size = number & 1, number >> 1 & 3, number >> 3
            if kind == _RESERVED or size > 128 << 10:
                raise LayerError(f"zstd: damaged block at offset {self._in - 3}")
            parts += (head, (yield from self._take(1 if kind == _RLE else size)))
            blocks += 1
            if blocks == _BLOCKS and not last:
                self._decode(parts, start)
                parts, blocks = [], 0
                yield
        if flags & _CHECKSUM:
            parts.append((yield from self._take(4)))
        self._decode(parts, start)
        if not self._object.eof:
            raise LayerError(f"zstd: the frame at offset {start} is damaged")
        self._object = None
        yield

    def _decode(self, parts: list[bytes], start: int) -> None:
        import zstandard

        assert self._object is not None
        try:
            output = self._object.decompress(b"".join(parts))
        except zstandard.ZstdError as error:
            raise LayerError(f"zstd: the frame at offset {start} is damaged: {error}") from None
        if output:
            self._out += len(output)
            self._ready.append(output)


class ZstdUnpacker:
    """As GzipUnpacker: `output` gets the tar, `keep` one point a frame."""

    def __init__(self, output: Output, keep: Keep) -> None:
        self._output = output
        self._keep = keep
        self._decoder = ZstdDecoder()
        self._in = 0

    def feed(self, data: bytes) -> None:
        """Unpack the next bytes of the layer; LayerError if they are damaged."""
        self._in += len(data)
        for piece in self._decoder.feed(data):
            self._output(memoryview(piece))

    def finish(self) -> None:
        """The layer is over: LayerError if that is in the middle of a frame."""
        if not self._decoder.complete:
            raise LayerError(f"zstd: truncated: the layer ends after {self._in} bytes")
        for out, start in self._decoder.frames:
            self._keep(Point(out, start * 8, b""))

    def close(self) -> None:
        """Nothing to give back."""
