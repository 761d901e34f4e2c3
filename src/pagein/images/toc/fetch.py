"""A layer's TOC, read from the layer and verified, and the index that is made of it.

The chain of digests: the manifest, whose digest is known, holds that of the TOC, as an annotation
of the layer; the TOC holds those of the chunks. Two or three ranges of the layer are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import BinaryIO, Final, Protocol

from pagein.images.layers.build import in_thread
from pagein.images.layers.entry import Entry
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Compression, Layer
from pagein.images.manifest import digest_of
from pagein.images.toc import estargz, tarsplit, zstdchunked
from pagein.images.toc.document import MAX_TOC, parse_toc
from pagein.images.toc.files import File, files_of
from pagein.images.toc.makeindex import Made, make_index
from pagein.origins.base import Origin

_IS_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
SEEN_WHOLE: Final = 64 << 10
"""Bytes: an eStargz of at most so many is here whole with its TOC, and compared with it."""
_LEAST, _MOST = SEEN_WHOLE, 512 << 10  # bytes of the layer's end that are asked for at once
_SHARE: Final = 100  # a TOC has a hundredth of its layer, or less
_LANDMARKS: Final = frozenset({b".prefetch.landmark", b".no.prefetch.landmark", estargz.TOC_NAME})
"""What eStargz puts into the tar for itself."""


class TocReader(Protocol):
    """The TOC of one layer."""

    digest: str
    """Its digest, from the manifest."""

    async def make(self, origin: Origin, layer: Layer, out: BinaryIO) -> Made:
        """Read it from the layer `origin`, and write the index that is made of it to `out`.

        LayerError if it cannot be used; OSError of the origin.
        """


def toc_of(annotations: Mapping[str, str] | None) -> TocReader | None:
    """What reads the TOC of a layer with these annotations; None if it has none."""
    if not annotations:
        return None
    checksum = zstdchunked.checksum_of(annotations)
    if checksum is not None:
        return _ZstdChunked(checksum, annotations)
    digest = annotations.get(estargz.DIGEST)
    return None if digest is None else _Estargz(digest)


class _Estargz:
    def __init__(self, digest: str) -> None:
        self.digest = digest

    async def make(self, origin: Origin, layer: Layer, out: BinaryIO) -> Made:
        if layer.size <= estargz.FOOTER:
            raise LayerError("it has no footer of eStargz")
        at = max(0, layer.size - min(max(layer.size // _SHARE, _LEAST), _MOST))
        tail = await origin.read(at, layer.size - at)
        offset = estargz.toc_offset(tail[-estargz.FOOTER :], layer.size)
        if layer.size - offset > MAX_TOC:
            raise LayerError(f"its TOC has more than {MAX_TOC} bytes")
        if offset < at:
            tail = await origin.read(offset, at - offset) + tail
            at = offset
        packed = tail[offset - at : -estargz.FOOTER]
        whole = tail if not at and layer.size <= SEEN_WHOLE else None
        make = partial(self._make, packed, whole, layer, offset)
        return await in_thread(make, out)

    def _make(
        self, packed: bytes, whole: bytes | None, layer: Layer, end: int, out: BinaryIO
    ) -> Made:
        data = estargz.unpack_toc(packed)
        _verify(data, self.digest)
        files = list(files_of(parse_toc(data).entries or (), end))
        if whole is not None:
            estargz.check(whole, [file.entry for file in files])
        return make_index(layer, Compression.GZIP_CHUNKS, _of_the_tree(files), end, out)


class _ZstdChunked:
    def __init__(self, digest: str, annotations: Mapping[str, str]) -> None:
        self.digest = digest
        self._annotations = annotations

    async def make(self, origin: Origin, layer: Layer, out: BinaryIO) -> Made:
        places = zstdchunked.places_of(self._annotations, layer.size)
        frames = [places.toc, places.tar_split] if places.tar_split else [places.toc]
        begin, end = min(of.offset for of in frames), max(of.end for of in frames)
        if end - begin <= sum(of.length for of in frames) + _LEAST:
            data = await origin.read(begin, end - begin)
            found = [data[of.offset - begin : of.end - begin] for of in frames]
        else:
            found = [await origin.read(of.offset, of.length) for of in frames]
        return await in_thread(partial(self._make, places, found, layer), out)

    def _make(
        self, places: zstdchunked.Places, found: list[bytes], layer: Layer, out: BinaryIO
    ) -> Made:
        _verify(found[0], self.digest)
        data = zstdchunked.unpack(found[0], places.toc.size)
        plain = self._annotations.get(estargz.DIGEST)
        if plain is not None:
            _verify(data, plain)
        toc = parse_toc(data)
        files = list(files_of(toc.entries or (), places.end))
        split = toc.tar_split_digest or zstdchunked.tar_split_of(self._annotations)
        if split:
            self._check_tar(split, places, found, [file.entry for file in files])
        kept = _of_the_tree(files)
        return make_index(layer, Compression.ZSTD_CHUNKS, kept, places.end, out)

    def _check_tar(
        self, split: str, places: zstdchunked.Places, found: list[bytes], entries: list[Entry]
    ) -> None:
        """A tar-split whose digest is known is believed, and then the TOC has to agree with it."""
        if places.tar_split is None:
            raise LayerError("it has a tar-split, and no annotation says where that is")
        _verify(found[1], split, "tar-split")
        tarsplit.check(zstdchunked.unpack(found[1], places.tar_split.size), entries)


def _verify(data: bytes, wanted: str, what: str = "TOC") -> None:
    if _IS_DIGEST.fullmatch(wanted) is None:
        raise LayerError(f"{wanted[:80]!a} is no digest of its {what}")
    found = digest_of(data)
    if found != wanted:
        raise LayerError(f"its {what} is {found}, not {wanted}")


def _of_the_tree(files: Iterable[File]) -> Iterable[File]:
    return (file for file in files if _cleaned(file.entry.path) not in _LANDMARKS)


def _cleaned(path: bytes) -> bytes:
    return b"/".join(part for part in path.split(b"/") if part not in (b"", b"."))
