"""The two blobs of a layer, metadata and data, as the cache knows them, and as origins.

The key of a blob names layer and index: another index of the same layer is another blob.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from pagein.erofs.attributes import Patch, apply
from pagein.images.layers.errors import LayerError
from pagein.images.layers.index import Index
from pagein.images.layers.read import LayerOrigin, MetaOrigin
from pagein.images.layers.spans import Kept
from pagein.images.manifest import Descriptor
from pagein.images.source import open_source
from pagein.images.store import Store
from pagein.origins.base import Origin, OriginError
from pagein.origins.file import FileOrigin
from pagein.origins.identity import Identity

if TYPE_CHECKING:
    from pagein.images.connections import Connections

_KEY_VERSION = "pagein layer 1"


class LayerBlob(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="layer"):
    """A blob of a layer; sizes in bytes.

    `source` is an image that has the layer: where data is fetched from. `root` is that of the
    index (docs/index-format.md), which all of both blobs hangs on.
    """

    part: Literal["meta", "data"]
    source: str
    layer: str
    layer_size: int
    index: str
    root: str
    size: int
    patches: tuple[Patch, ...] = ()
    """What the metadata says otherwise in this image than the index does: `implied`."""

    def key(self) -> bytes:
        """The cookie key, 64 hex digits; the same whatever image and registry it comes from."""
        fields: list[object] = [_KEY_VERSION, self.part, self.layer, self.index]
        if self.patches:
            fields.append([(at, new.hex()) for at, new in self.patches])
        return hashlib.sha256(json.dumps(fields).encode("ascii")).hexdigest().encode("ascii")

    @property
    def label(self) -> str:
        """What it is called in lists and errors."""
        return f"{self.source} {self.layer.partition(':')[2][:12]} {self.part}"

    def dump(self) -> bytes:
        """JSON for `load_record`."""
        return msgspec.json.encode(self)

    async def open(
        self,
        store: Store,
        connections: Connections,
        spans: Kept | None = None,
        *,
        layer: Origin | None = None,
    ) -> Origin:
        """Its origin. OriginError when the index is not in the store any more, or damaged.

        `spans`: where what is decoded is kept, together with that of other layers. `layer`: the
        compressed layer, if it is not to be that of `compressed`; it is closed with the origin.
        """
        path = store.path("indexes", self.index)
        try:
            index = await asyncio.to_thread(Index, path, root=self.root)
        except FileNotFoundError:
            cause = f"the index {self.index} is gone from {path}: mount the image again"
            raise OriginError.of(self.source, cause, errno=errno.ENOENT) from None
        except LayerError as problem:
            raise OriginError.of(self.source, str(problem)) from None
        try:
            if self.part == "meta":
                return _Meta(index, self.patches)
            return _Data(index, layer or compressed(store, connections, self), spans)
        except BaseException:
            index.close()
            raise


def load_record(data: bytes) -> Identity | LayerBlob:
    """What `dump` wrote, of either kind; ValueError for anything else."""
    document = json.loads(data)
    if isinstance(document, dict) and "kind" in document:
        return msgspec.convert(document, LayerBlob)
    return Identity.load(data)


def compressed(store: Store, connections: Connections, blob: LayerBlob) -> Origin:
    """The layer as the registry has it: the file in the store, or ranges of the registry's blob."""
    if store.has("layers", blob.layer):
        path = store.path("layers", blob.layer)
        return FileOrigin(Identity(source=path, size=blob.layer_size), connections.timeout)
    descriptor = Descriptor(media_type="", digest=blob.layer, size=blob.layer_size)
    return open_source(blob.source, connections).open_blob(descriptor)


class _Meta(MetaOrigin):
    """One that owns its index, and applies patches."""

    def __init__(self, index: Index, patches: Sequence[Patch]) -> None:
        super().__init__(index)
        self._patches = patches

    async def read(self, offset: int, length: int) -> bytes:
        return apply(self._patches, offset, await super().read(offset, length))

    async def close(self) -> None:
        await super().close()
        self._index.close()


class _Data(LayerOrigin):
    """One that owns its index."""

    async def close(self) -> None:
        await super().close()
        self._index.close()
