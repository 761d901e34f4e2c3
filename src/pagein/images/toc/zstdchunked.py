"""Where a zstd:chunked layer has its TOC, and its tar-split, and how they are packed.

Rules: containers/storage `pkg/chunked/internal/minimal/compression.go`. Both are zstd frames inside
skippable frames at the end of the layer; where, the layer's annotations say. stargz-snapshotter
(`estargz/zstdchunked`) writes the same, with older names of annotations and without a tar-split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from pagein.images.layers.errors import LayerError
from pagein.images.toc.document import MAX_TOC

PREFIXES: Final = ("io.github.containers.zstd-chunked.", "io.containers.zstd-chunked.")
CHECKSUM, POSITION = "manifest-checksum", "manifest-position"
TAR_SPLIT, TAR_SUM = "tarsplit-position", "tarsplit-checksum"
MAX_TAR_SPLIT: Final = 256 << 20
"""Bytes of a tar-split, unpacked."""

_POSITION = re.compile(r"[0-9]{1,19}(:[0-9]{1,19})+", re.ASCII)
_CRFS: Final = 1  # the type of a TOC
_HEAD: Final = 8  # of a skippable frame
_MAX_WINDOW: Final = 128 << 20


class Frame(NamedTuple):
    """Where in the layer a packed document lies, and its size unpacked; bytes."""

    offset: int
    length: int
    size: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.offset + self.length


class Places(NamedTuple):
    """Where the documents of a layer are; `checksum` is that of the TOC as it is packed."""

    checksum: str
    toc: Frame
    tar_split: Frame | None

    @property
    def end(self) -> int:
        """Where the data of the layer ends at the latest."""
        return min(each.offset for each in (self.toc, self.tar_split) if each) - _HEAD


def checksum_of(annotations: Mapping[str, str]) -> str | None:
    """The digest of the packed TOC, if the annotations are those of zstd:chunked."""
    return next((annotations[p + CHECKSUM] for p in PREFIXES if p + CHECKSUM in annotations), None)


def tar_split_of(annotations: Mapping[str, str]) -> str:
    """The digest of the packed tar-split where older writers have it; newer ones: in the TOC."""
    return next((annotations[p + TAR_SUM] for p in PREFIXES if p + TAR_SUM in annotations), "")


def places_of(annotations: Mapping[str, str], layer_size: int) -> Places:
    """What the annotations say; LayerError if that cannot be."""
    for prefix in PREFIXES:
        if prefix + CHECKSUM in annotations:
            break
    position = annotations.get(prefix + POSITION, "")
    toc, kind = _frame(prefix + POSITION, position, layer_size, MAX_TOC, 4)
    if kind != _CRFS:
        raise LayerError(f"its TOC is of type {kind}: {_CRFS} is known")
    split = annotations.get(prefix + TAR_SPLIT)
    tar_split = None
    if split is not None:
        tar_split, _ = _frame(prefix + TAR_SPLIT, split, layer_size, MAX_TAR_SPLIT, 3)
    return Places(annotations[prefix + CHECKSUM], toc, tar_split)


def _frame(name: str, text: str, layer_size: int, most: int, count: int) -> tuple[Frame, int]:
    if not _POSITION.fullmatch(text) or text.count(":") != count - 1:
        raise LayerError(f"its annotation {name} is {text[:80]!a}, no position")
    offset, length, size, *kind = map(int, text.split(":"))
    if offset < _HEAD or not length or offset + length > layer_size:
        raise LayerError(f"its annotation {name} points outside of it: {text}")
    if max(length, size) > most:
        raise LayerError(f"its annotation {name} is of more than {most} bytes: {text}")
    return Frame(offset, length, size), kind[0] if kind else 0


def unpack(packed: bytes, size: int) -> bytes:
    """What a frame unpacks to, which has `size` bytes; else LayerError."""
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    try:
        with decoder.stream_reader(packed) as reader:
            data = reader.read(size)
            rest = reader.read(1)
    except zstandard.ZstdError as error:
        raise LayerError(f"its TOC cannot be unpacked: {error}") from None
    if len(data) != size or rest:
        raise LayerError(f"its TOC does not unpack to {size} bytes, as an annotation says")
    return data
