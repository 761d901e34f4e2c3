"""Indexes of layers outside of the layers: as blobs of an artifact, and in the catalogue."""

from __future__ import annotations

from pagein.images.catalogue import IndexOf
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import Layer
from pagein.images.layers.index import Index
from pagein.images.manifest import Descriptor
from pagein.images.source import Image
from pagein.images.store import New
from pagein.images.toc.fetch import TocReader

ARTIFACT_TYPE = "application/vnd.pagein.image.indexes.v1"
"""The artifact of an image that holds the indexes of its layers."""
INDEX_TYPE = "application/vnd.pagein.layer.index.v1"
"""One of its blobs: docs/index-format.md."""
LAYER = "io.pagein.layer"
"""The annotation of such a blob: the digest of the layer it is for."""
MAX_INDEX = 256 << 20
"""Bytes of an index; that of a layer of 25 GB has as many at 1 %."""


def indexes_of(image: Image) -> dict[str, Descriptor]:
    """The indexes that the artifacts of an image hold: layer digest -> index, the first of each."""
    found: dict[str, Descriptor] = {}
    for _, manifest in image.artifacts:
        for blob in manifest.layers:
            layer = (blob.annotations or {}).get(LAYER)
            if layer is not None and blob.media_type == INDEX_TYPE:
                found.setdefault(layer, blob)
    return found


def toc_key(layer: str, toc: TocReader) -> str:
    """What the index made of a layer's TOC is catalogued as.

    Not as the layer alone: nothing says that the TOC is the layer's but who named both.
    """
    return f"{layer} {toc.digest}"


def checked(new: New, layer: Layer, digest: str, size: int) -> IndexOf:
    """What to remember of an index file; LayerError unless it is one, of that layer."""
    with Index(new.path) as index:
        found = index.header.layer
        if (found.digest, found.size, found.diff_id) != (layer.digest, layer.size, layer.diff_id):
            raise LayerError(f"the index {digest} is of another layer, {found.digest}")
        return IndexOf(layer.digest, layer.diff_id, digest, index.root, size)
