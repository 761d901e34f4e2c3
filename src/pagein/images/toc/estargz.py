"""Where an eStargz layer has its TOC, and what that is packed in.

Rules: stargz-snapshotter `docs/estargz.md` "The structure" and "Footer". The layer's last 51 bytes
are an empty gzip member whose extra field says where the TOC's member begins: a tar with one file.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Final

from pagein.images.layers.entry import Entry
from pagein.images.layers.errors import LayerError, show
from pagein.images.layers.gzip import GzipDecoder
from pagein.images.layers.tar import TarParser
from pagein.images.toc.compare import Compare
from pagein.images.toc.document import MAX_TOC

DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
"""The annotation of a layer that holds the digest of its TOC, unpacked."""
FOOTER: Final = 51
"""Bytes of the footer."""
TOC_NAME: Final = b"stargz.index.json"

_FOOTER = re.compile(
    rb"\x1f\x8b\x08\x04.{6}\x1a\x00SG\x16\x00([0-9a-fA-F]{16})STARGZ\x01\x00\x00\xff\xff\0{8}",
    re.DOTALL,
)
_TAR: Final = 64 << 10  # bytes of headers and padding around it
_HEADERS: Final = 64 << 20  # bytes of the tar that are not data
_SECOND: Final = 10**9


def toc_offset(footer: bytes, size: int) -> int:
    """Where the TOC begins in a layer of `size` bytes; LayerError if this is no footer."""
    match = _FOOTER.fullmatch(footer)
    if match is None:
        raise LayerError("it has no footer of eStargz")
    offset = int(match[1], 16)
    if not 0 < offset < size - FOOTER:
        raise LayerError(f"its footer points to byte {offset} of {size}, where no TOC can be")
    return offset


def unpack_toc(packed: bytes) -> bytes:
    """The TOC in its gzip member and tar; LayerError for anything else."""
    decoder = zlib.decompressobj(31)
    try:
        tar = decoder.decompress(packed, MAX_TOC + _TAR)
    except zlib.error as error:
        raise LayerError(f"its TOC cannot be unpacked: {error}") from None
    if not decoder.eof:
        what = f"has more than {MAX_TOC} bytes" if decoder.unconsumed_tail else "is truncated"
        raise LayerError(f"its TOC {what}")
    if decoder.unused_data:
        raise LayerError(f"{len(decoder.unused_data)} bytes between its TOC and its footer")
    only = _Only()
    parser = TarParser(only)
    parser.feed(tar)
    parser.close()
    if only.data_ is None:
        raise LayerError(f"no {show(TOC_NAME)} where its footer points to")
    return bytes(only.data_)


def check(layer: bytes, entries: Sequence[Entry]) -> None:
    """LayerError unless the tar of a layer that is here whole is what its TOC says."""
    visitor = Compare(entries, unit=_SECOND, own=TOC_NAME)
    parser = TarParser(visitor)
    left = sum(entry.size for entry in entries) + _HEADERS
    for piece in GzipDecoder().feed(layer):
        left -= len(piece)
        if left < 0:
            raise LayerError("its tar has more than its TOC")
        parser.feed(piece)
    parser.close()
    visitor.finish()


class _Only:
    """A visitor of a tar that has the TOC and nothing else."""

    def __init__(self) -> None:
        self.data_: bytearray | None = None

    def entry(self, entry: Entry) -> None:
        """LayerError unless it is the one."""
        if entry.path != TOC_NAME or self.data_ is not None:
            raise LayerError(f"{show(entry.path)} where its TOC should be")
        self.data_ = bytearray()

    def data(self, position: int, view: memoryview) -> None:
        """Of the TOC."""
        assert self.data_ is not None
        self.data_ += view
