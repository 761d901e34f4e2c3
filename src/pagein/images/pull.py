"""From the name of an image to the blobs of its layers, by the shortest way there is.

Of each layer an index is needed. One that is in the store is taken; else it is made of the table of
contents that the layer brings; else the registry has it as an artifact of the image; else the layer
is streamed once, as a pull does, its index built on the way, and both are kept. All layers at once,
a few at a time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import BinaryIO, Literal

from msgspec.structs import replace

from pagein.images.artifacts import ArtifactBlob
from pagein.images.catalogue import Catalogue, IndexOf
from pagein.images.connections import Connections
from pagein.images.implied import restyle
from pagein.images.indexes import (
    ARTIFACT_TYPE,
    INDEX_TYPE,
    LAYER,
    MAX_INDEX,
    checked,
    indexes_of,
    toc_key,
)
from pagein.images.layerblob import LayerBlob
from pagein.images.layers.build import build
from pagein.images.layers.errors import LayerError
from pagein.images.layers.format import CHUNKED, Layer
from pagein.images.layers.index import Index
from pagein.images.manifest import (
    Descriptor,
    Manifest,
    RunConfig,
    check_digest,
    parse_config,
    parse_manifest,
)
from pagein.images.parallel import both, each
from pagein.images.patience import patiently, whole
from pagein.images.platforms import Platform
from pagein.images.reference import parse_reference
from pagein.images.source import Image, check_platform, load_image, open_source
from pagein.images.store import Store
from pagein.images.toc.fetch import TocReader, toc_of
from pagein.images.traces.document import TRACE_TYPE, Trace
from pagein.images.traces.shipped import trace_of
from pagein.origins.base import Origin, OriginError
from pagein.origins.file import FileOrigin
from pagein.origins.identity import Identity

_AT_ONCE = 4
# With these the registry is out of reach for us: what is known of the image has to do.
_UNREACHABLE = {errno.EACCES, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH}

State = Literal["waiting", "index", "pulling", "here"]

log = logging.getLogger("pagein.images")


@dataclass(slots=True)
class Progress:
    """How far a layer is; `done` and `size` in bytes."""

    layer: str
    size: int
    done: int = 0
    state: State = "waiting"
    pulled: bool = False
    """Whether it had to be streamed."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image that can be mounted; `layers` lowest first, metadata and, if it has any, data."""

    name: str
    descriptor: Descriptor
    config: bytes
    run: RunConfig
    layers: list[tuple[LayerBlob, ...]]
    note: str = ""
    """One line for the user: why what is known had to do."""
    new: frozenset[str] = frozenset()
    """Digests of the layers that had no index here before: nothing of them is in a cache."""
    trace: Trace | None = None


class Pull:
    """One image on its way; `progress` may be read meanwhile."""

    def __init__(
        self,
        store: Store,
        connections: Connections,
        name: str,
        platform: Platform,
        *,
        keep_data: bool = True,
    ) -> None:
        """OriginError (EINVAL) if `name` is not one.

        `keep_data`: whether layers that have to be streamed are kept, not their indexes only.
        """
        self._store = store
        self._keep_data = keep_data
        self._catalogue = Catalogue(store.directory)
        self._source = open_source(name, connections)
        self._timeout = connections.timeout
        self._reference = parse_reference(name)
        self._platform = platform
        self._few = asyncio.Semaphore(_AT_ONCE)
        self._new: set[str] = set()
        self._fetched: list[IndexOf] = []
        """Indexes that came from the registry: remembered together, with the image."""
        self._notes: list[str] = []
        self.name = str(self._reference)
        self.progress: list[Progress] = []

    async def run(self) -> Pulled:
        """Bring everything here that a mount needs. Raises OSError in one line."""
        image, note = await self._image()
        layers = [
            Layer(of.digest, of.size, of.media_type, diff_id)
            for of, diff_id in zip(
                image.manifest.layers, image.config.rootfs.diff_ids or (), strict=True
            )
        ]
        self.progress = [Progress(of.digest, of.size) for of in layers]
        indexes = indexes_of(image)
        tocs = {of.digest: toc_of(of.annotations) for of in image.manifest.layers}
        once = {of.digest: (of, at) for of, at in zip(layers, self.progress, strict=True)}
        found, trace = await both(
            each(
                self._layer(of, tocs[of.digest], indexes.get(of.digest), at)
                for of, at in once.values()
            ),
            trace_of(image, self._source, self._store),
        )
        for at in self.progress:
            at.state = "here"
        blobs = dict(zip(once, found, strict=True))
        _, wanted = await both(
            asyncio.to_thread(self._keep, image, layers),
            asyncio.to_thread(self._restyled, [blobs[of.digest] for of in layers]),
        )
        new, note = frozenset(self._new), "; ".join(filter(None, [note, *self._notes]))
        config = image.config_bytes, image.config.run
        return Pulled(self.name, image.descriptor, *config, wanted, note, new, trace)

    async def push(self, pulled: Pulled, trace: bytes | None = None) -> str:
        """Push the indexes of `pulled`, as an artifact that refers to the image; its digest.

        With a `trace`, a document, that too. Layers that bring a table of contents need no index.
        """
        blobs = [
            ArtifactBlob(INDEX_TYPE, data, {LAYER: name})
            for name, layer in {each[0].layer: each for each in pulled.layers}.items()
            if (data := await asyncio.to_thread(self._index, layer[0])) is not None
        ]
        if trace is not None:
            blobs.append(ArtifactBlob(TRACE_TYPE, trace))
        if not blobs:
            cause = "there is nothing to push: its layers bring their own tables of contents"
            raise OriginError.of(self.name, cause, errno=errno.EINVAL)
        artifact = await self._source.push_artifact(pulled.descriptor, ARTIFACT_TYPE, blobs)
        return artifact.digest

    def _index(self, blob: LayerBlob) -> bytes | None:
        with self._open(blob) as index:
            if index.header.compression in CHUNKED:
                return None
        with open(self._store.path("indexes", blob.index), "rb") as file:
            data = file.read()
        check_digest(file.name, data, blob.index)
        return data

    # ---- the image -------------------------------------------------------------------------------

    async def _image(self) -> tuple[Image, str]:
        known = await asyncio.to_thread(self._known)
        if known is not None and self._reference.digest is not None:
            return known, ""  # a digest stands for one image for ever
        try:
            image = await load_image(self._source, self._platform, ARTIFACT_TYPE, known=known)
        except OriginError as problem:
            if known is None or not (problem.temporary or problem.errno in _UNREACHABLE):
                raise
            return known, f"{problem}; going on with what is known of it"
        return image, ""

    def _known(self) -> Image | None:
        """The image as it was last seen, if every index of its layers is here; None if not."""
        found = self._catalogue.find(self.name, str(self._platform))
        if found is None:
            return None
        digest, kind = found
        try:
            raw = self._store.read(digest)
            manifest = parse_manifest(self.name, raw, kind)
            if not isinstance(manifest, Manifest):
                return None
            data = self._store.read(manifest.config.digest)
        except OSError:
            return None  # lost, or damaged: it is fetched again
        config = parse_config(self.name, data, manifest)
        check_platform(self.name, config, self._platform)
        if not all(self._index_here(of.digest, toc_of(of.annotations)) for of in manifest.layers):
            return None
        descriptor = Descriptor(media_type=kind, digest=digest, size=len(raw))
        return Image(descriptor, manifest, config, data, (), raw)

    def _index_here(self, layer: str, toc: TocReader | None) -> IndexOf | None:
        """What is here of a layer; one made of a TOC only for who names the same TOC."""
        for key in (*([toc_key(layer, toc)] if toc is not None else []), layer):
            found = self._catalogue.index_of(key)
            if found is not None and self._store.has("indexes", found.digest):
                return found
        return None

    def _keep(self, image: Image, layers: list[Layer]) -> None:
        """Remember the image, now that it can be mounted from here."""
        of = image.descriptor
        if self._fetched:
            self._catalogue.add_indexes(*self._fetched)
        self._store.keep("documents", image.manifest_bytes, of.digest)
        self._store.keep("documents", image.config_bytes, image.manifest.config.digest)
        self._catalogue.add(self.name, str(self._platform), of.digest, of.media_type, layers)

    # ---- a layer ---------------------------------------------------------------------------------

    async def _layer(
        self, layer: Layer, toc: TocReader | None, index: Descriptor | None, progress: Progress
    ) -> tuple[LayerBlob, ...]:
        try:
            found = await asyncio.to_thread(self._index_here, layer.digest, toc)
            if found is None or found.diff_id != layer.diff_id:
                self._new.add(layer.digest)
                async with self._few:
                    found = await self._from_toc(layer, toc, progress) if toc else None
                    found = found or await self._get_index(layer, index, progress)
                if progress.pulled:  # it took long: not again when another layer fails
                    await asyncio.to_thread(self._catalogue.add_indexes, found)
                else:
                    self._fetched.append(found)
            blobs = await asyncio.to_thread(self._blobs, layer, found)
        except LayerError as problem:
            raise OriginError.of(self.name, f"layer {layer.digest}: {problem}") from None
        progress.state, progress.done = "here", progress.size
        return blobs

    async def _from_toc(self, layer: Layer, toc: TocReader, progress: Progress) -> IndexOf | None:
        """The index that is made of the layer's own TOC; None, and a word, if that is refused."""
        progress.state = "index"
        origin = self._compressed(layer)
        try:
            with self._store.create("indexes") as new:
                made = await patiently(lambda: toc.make(origin, layer, new.file), self._timeout)
                found = await asyncio.to_thread(checked, new, layer, made.digest, made.size)
                await asyncio.to_thread(new.keep, made.digest)
        except (LayerError, OriginError) as problem:
            if isinstance(problem, OriginError) and problem.retry:
                raise  # the network is to blame: no reason to take all of the layer
            how = "is refused" if isinstance(problem, LayerError) else "cannot be read"
            text = f"the table of contents of layer {layer.digest} {how}: {problem}"
            log.warning("%s: %s", self.name, text)
            self._notes.append(f"{text}; going on without it")
            return None
        finally:
            await origin.close()
        return dataclasses.replace(found, layer=toc_key(layer.digest, toc))

    async def _get_index(
        self, layer: Layer, index: Descriptor | None, progress: Progress
    ) -> IndexOf:
        if index is not None:
            progress.state = "index"
            data = await self._source.blob(index, MAX_INDEX)
            return await asyncio.to_thread(self._keep_index, layer, data, index.digest)
        progress.state, progress.pulled = "pulling", True
        return await self._stream(layer, progress)

    def _keep_index(self, layer: Layer, data: bytes, digest: str) -> IndexOf:
        with self._store.create("indexes") as new:
            new.file.write(data)
            new.file.flush()
            found = checked(new, layer, digest, len(data))
            new.keep(digest)
        return found

    async def _stream(self, layer: Layer, progress: Progress) -> IndexOf:
        """Take the layer once, as a pull does: its data and its index are here then.

        Once more where a mirror may have given what is wrong with it, from another one.
        """
        origin = self._compressed(layer)
        try:
            while True:
                try:
                    return await self._stream_from(origin, layer, progress)
                except LayerError as problem:
                    if not origin.forget():
                        raise
                    log.warning("%s: layer %s: %s; again", self.name, layer.digest, problem)
        finally:
            await origin.close()

    async def _stream_from(self, origin: Origin, layer: Layer, progress: Progress) -> IndexOf:
        with self._store.create("indexes") as index:
            if not self._keep_data or self._store.has("layers", layer.digest):
                async with aclosing(self._pieces(origin, layer, progress, None)) as pieces:
                    built = await build(pieces, layer, index.file)
            else:
                with self._store.create("layers") as data:
                    async with aclosing(self._pieces(origin, layer, progress, data.file)) as pieces:
                        built = await build(pieces, layer, index.file)
                    await asyncio.to_thread(data.keep, layer.digest)
            found = await asyncio.to_thread(checked, index, layer, built.digest, built.size)
            await asyncio.to_thread(index.keep, built.digest)
        return found

    async def _pieces(
        self, origin: Origin, layer: Layer, progress: Progress, copy: BinaryIO | None
    ) -> AsyncGenerator[bytes, None]:
        """The layer's bytes, gone on with where a connection broke; also written to `copy`."""
        progress.done = 0
        async with aclosing(whole(origin, layer.size, self._timeout)) as pieces:
            async for piece in pieces:
                if copy is not None:
                    await asyncio.to_thread(copy.write, piece)
                progress.done += len(piece)
                yield piece

    def _compressed(self, layer: Layer) -> Origin:
        if self._store.has("layers", layer.digest):
            path = self._store.path("layers", layer.digest)
            return FileOrigin(Identity(source=path, size=layer.size), self._timeout)
        return self._source.open_blob(
            Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)
        )

    def _restyled(self, layers: list[tuple[LayerBlob, ...]]) -> list[tuple[LayerBlob, ...]]:
        """The layers as they look over each other."""
        with ExitStack() as stack:
            indexes = [stack.enter_context(self._open(meta)) for meta, *_ in layers]
            try:
                patches = restyle(indexes)
            except LayerError as problem:
                raise OriginError.of(self.name, str(problem)) from None
        return [
            (replace(meta, patches=tuple(changes)), *data)
            for (meta, *data), changes in zip(layers, patches, strict=True)
        ]

    def _open(self, blob: LayerBlob) -> Index:
        return Index(self._store.path("indexes", blob.index), root=blob.root)

    def _blobs(self, layer: Layer, index: IndexOf) -> tuple[LayerBlob, ...]:
        path = self._store.path("indexes", index.digest)
        with Index(path, root=index.root) as opened:
            sizes = {"meta": opened.header.metadata_size, "data": opened.header.blob_size}
        return tuple(
            LayerBlob(
                part="meta" if part == "meta" else "data",
                source=self.name,
                layer=layer.digest,
                layer_size=layer.size,
                index=index.digest,
                root=index.root,
                size=size,
            )
            for part, size in sizes.items()
            if size
        )


Watcher = Callable[[list[Progress]], None]


async def watched(pull: Pull, show: Watcher, interval: float) -> Pulled:
    """Run a pull, showing its progress every `interval` seconds."""
    task = asyncio.ensure_future(pull.run())
    try:
        while not (await asyncio.wait([task], timeout=interval))[0]:
            show(pull.progress)
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])
