"""The trace that an image's artifact holds, beside the indexes of its layers."""

from __future__ import annotations

import asyncio
import logging

from pagein.images.manifest import Descriptor, digest_of
from pagein.images.source import Image, ImageSource
from pagein.images.store import Store
from pagein.images.traces.document import MAX_TRACE, TRACE_TYPE, Trace, TraceError, parse_trace

log = logging.getLogger("pagein.images")

KIND = "traces"
"""Of the store: the last trace of each image, by the digest of its manifest."""


async def trace_of(image: Image, source: ImageSource, store: Store) -> Trace | None:
    """The trace of `image`: the one that its registry has, else the one that was kept.

    A trace is a hint: without a good one there is none, and the log says why.
    """
    try:
        shipped = _shipped(image)
        kept = await asyncio.to_thread(_kept, store, image.descriptor.digest)
        if shipped is None or (kept is not None and digest_of(kept) == shipped.digest):
            return parse_trace(f"the trace of {source}", kept) if kept is not None else None
        data = await source.blob(shipped, MAX_TRACE)
        trace = parse_trace(f"{source}: the trace {shipped.digest}", data)
        await asyncio.to_thread(_keep, store, data, image.descriptor.digest)
        return trace
    except (OSError, TraceError) as problem:
        log.warning("%s: going on without a trace", problem)
        return None


def _shipped(image: Image) -> Descriptor | None:
    """Of several the one that was pushed last."""
    found = [
        blob
        for _, manifest in image.artifacts
        for blob in manifest.layers
        if blob.media_type == TRACE_TYPE
    ]
    return found[-1] if found else None


def _kept(store: Store, manifest: str) -> bytes | None:
    if not store.has(KIND, manifest):
        return None
    with open(store.path(KIND, manifest), "rb") as file:
        return file.read(MAX_TRACE + 1)


def _keep(store: Store, data: bytes, manifest: str) -> None:
    with store.create(KIND) as new:
        new.file.write(data)
        new.keep(manifest)
