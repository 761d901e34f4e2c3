"""The tar-split of a zstd:chunked layer: its tar without the data of files.

With it a TOC can be compared with the tar: who unpacks the layer must see what we mount. Rules:
vbatts/tar-split `tar/storage/entry.go`: a JSON object a line, each a piece of the tar as it is, or
a file, of which only the size is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from pagein.images.layers.entry import Entry
from pagein.images.layers.errors import LayerError
from pagein.images.layers.tar import TarParser
from pagein.images.toc.compare import Compare

_FILE, _SEGMENT = 1, 2
_ZEROS: Final = bytes(1 << 20)


class _Piece(msgspec.Struct, gc=False):
    type: int
    size: int = 0
    payload: bytes | None = None


def check(tar_split: bytes, entries: Sequence[Entry]) -> None:
    """LayerError unless the tar has just these members, in this order."""
    visitor = Compare(entries)
    parser = TarParser(visitor)
    left = sum(entry.size for entry in entries)
    for piece in _pieces(tar_split):
        if piece.type == _SEGMENT:
            parser.feed(piece.payload or b"")
        elif piece.type == _FILE and 0 <= piece.size <= left:
            left -= piece.size
            for at in range(0, piece.size, len(_ZEROS)):
                parser.feed(memoryview(_ZEROS)[: piece.size - at])
        else:
            raise LayerError("its tar-split is none, or has files that its TOC does not have")
    parser.close()
    visitor.finish()


def _pieces(tar_split: bytes) -> Iterator[_Piece]:
    decoder = msgspec.json.Decoder(_Piece)
    for line in tar_split.splitlines():
        try:
            yield decoder.decode(line)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise LayerError("its tar-split is none") from None
