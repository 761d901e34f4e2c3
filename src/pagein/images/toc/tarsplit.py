"""The tar-split of a zstd:chunked layer: its tar without the data of files.

With it a TOC can be compared with the tar: who unpacks the layer must see what we mount. Rules:
vbatts/tar-split `tar/storage/entry.go`: a JSON object a line, each a piece of the tar as it is, or
a file, of which only the size is told.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from pagein.images.layers.entry import Entry
from pagein.images.layers.errors import LayerError, show
from pagein.images.layers.tar import TarParser

_FILE, _SEGMENT = 1, 2
_ZEROS: Final = bytes(1 << 20)


class _Piece(msgspec.Struct, gc=False):
    type: int
    size: int = 0
    payload: bytes | None = None


def check(tar_split: bytes, entries: Sequence[Entry]) -> None:
    """LayerError unless the tar has just these members, in this order."""
    visitor = _Compare(entries)
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


class _Compare:
    """A visitor that compares what comes with `entries`."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self._next = 0

    def entry(self, entry: Entry) -> None:
        """The next member."""
        if self._next == len(self._entries):
            raise LayerError(f"{show(entry.path)} is in its tar, but not in its TOC")
        of_toc = self._entries[self._next]
        self._next += 1
        if of_toc.path.rstrip(b"/") != entry.path.rstrip(b"/"):
            where = f"its TOC has {show(of_toc.path)} where its tar has {show(entry.path)}"
            raise LayerError(where)
        for (what, there), (_, here) in zip(_facts(entry), _facts(of_toc), strict=True):
            if there != here:
                raise LayerError(f"its TOC contradicts its tar: the {what} of {show(entry.path)}")

    def data(self, position: int, view: memoryview) -> None:
        """Of files only sizes are known."""

    def finish(self) -> None:
        """LayerError if something is left."""
        if self._next < len(self._entries):
            path = show(self._entries[self._next].path)
            raise LayerError(f"{path} is in its TOC, but not in its tar")


def _facts(entry: Entry) -> list[tuple[str, object]]:
    device = stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode)
    return [
        ("type", (stat.S_IFMT(entry.mode), entry.hardlink)),
        ("mode", stat.S_IMODE(entry.mode)),
        ("owner", (entry.uid, entry.gid)),
        ("size", entry.size),
        ("time", entry.mtime_ns),
        ("target", entry.linkname),
        ("device", entry.rdev if device else None),
        ("attributes", entry.xattrs),
    ]
