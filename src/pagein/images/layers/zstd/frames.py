"""Frames and blocks, as they stand in a layer (RFC 8878 3.1), found while the layer comes by."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

from pagein.images.layers.errors import LayerError
from pagein.images.layers.zstd.library import MAX_WINDOW

MAGIC: Final = b"\x28\xb5\x2f\xfd"
MAX_BLOCK: Final = 128 << 10
"""Bytes: no block is larger, packed or not."""
RAW, RLE, COMPRESSED = 0, 1, 2
END: Final = b"\1\0\0"
"""A last block, and empty."""

_SKIPPABLE = 0x184D2A50  # to 5F
_RESERVED = 3
_CHECKSUM, _SINGLE = 4, 32
_SKIP = 1 << 16


class Frame(NamedTuple):
    """A frame begins at byte `at` of the layer. `window` in bytes."""

    at: int
    header: bytes
    window: int
    checked: bool
    """Whether four bytes of checksum follow its last block."""


class Block(NamedTuple):
    """A block begins at byte `at` of the layer: three bytes `head`, then `payload`.

    `size` is what the head says: bytes of the payload, but of an RLE block those of its output.
    """

    at: int
    kind: int
    size: int
    last: bool
    head: bytes
    payload: bytes


class End(NamedTuple):
    """A frame ends before byte `at`; `checksum` is what followed its last block."""

    at: int
    checksum: bytes


Event = Frame | Block | End
_Steps = Generator["Event | None", None, None]


class Walk:
    """What `feed` is given, as frames and blocks. LayerError where there are none.

    `checked` of None: a frame or the end of the layer comes first. Else the walk begins in the
    middle of a frame, at a block.
    """

    def __init__(self, at: int = 0, *, checked: bool | None = None) -> None:
        self.at = at
        """Where the next frame or block begins, in the layer."""
        self.inside = checked is not None
        """Whether the last event was not the end of a frame."""
        self._data = bytearray()
        self._pos = 0
        self._steps = self._layer(checked)

    def feed(self, data: bytes) -> Iterator[Event]:
        """What has become known by `data`."""
        del self._data[: self._pos]
        self._pos = 0
        self._data += data
        while (event := next(self._steps)) is not None:
            yield event

    @property
    def complete(self) -> bool:
        """Whether all that was fed ends with the end of a frame."""
        return not self.inside and self._pos == len(self._data)

    def _take(self, length: int) -> Generator[None, None, bytes]:
        end = self._pos + length
        while len(self._data) < end:
            yield
            end = self._pos + length
        with memoryview(self._data) as view:
            taken = bytes(view[self._pos : end])
        self._pos = end
        self.at += length
        return taken

    def _layer(self, checked: bool | None) -> _Steps:
        if checked is not None:
            yield from self._blocks(checked)
        while True:
            start = self.at
            magic = yield from self._take(4)
            self.inside = True
            number = int.from_bytes(magic, "little")
            if magic == MAGIC:
                yield from self._frame(start)
            elif number & ~0xF == _SKIPPABLE:
                length = int.from_bytes((yield from self._take(4)), "little")
                while length:
                    length -= len((yield from self._take(min(length, _SKIP))))
                self.inside = False
            else:
                raise LayerError(f"zstd: no frame begins at offset {start}")

    def _frame(self, start: int) -> _Steps:
        (flags,) = yield from self._take(1)
        single = bool(flags & _SINGLE)
        id_size, fcs_size = (0, 1, 2, 4)[flags & 3], (int(single), 2, 4, 8)[flags >> 6]
        rest = yield from self._take((not single) + id_size + fcs_size)
        dictionary = int.from_bytes(rest[not single :][:id_size], "little")
        if dictionary:
            raise LayerError(f"zstd: the frame at offset {start} needs dictionary {dictionary}")
        if single:
            window = int.from_bytes(rest[id_size:], "little") + (256 if fcs_size == 2 else 0)
        else:
            window = (8 + (rest[0] & 7)) << (7 + (rest[0] >> 3))  # RFC 8878 3.1.1.1.2
        if window > MAX_WINDOW:
            raise LayerError(
                f"zstd: the frame at offset {start} is damaged, or needs a window of {window} "
                f"bytes: at most {MAX_WINDOW} are given"
            )
        checked = bool(flags & _CHECKSUM)
        yield Frame(start, MAGIC + bytes((flags,)) + rest, window, checked)
        yield from self._blocks(checked)

    def _blocks(self, checked: bool) -> _Steps:
        last = False
        while not last:
            at = self.at
            head = yield from self._take(3)
            number = int.from_bytes(head, "little")
            last, kind, size = bool(number & 1), number >> 1 & 3, number >> 3
            if kind == _RESERVED or size > MAX_BLOCK:
                raise LayerError(f"zstd: damaged block at offset {at}")
            payload = yield from self._take(1 if kind == RLE else size)
            yield Block(at, kind, size, last, head, payload)
        checksum = (yield from self._take(4)) if checked else b""
        self.inside = False
        yield End(self.at, checksum)
