"""What was read of blobs, as what was read of files: how a trace is made of a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

from msgspec.structs import replace

from pagein.images.layerblob import LayerBlob
from pagein.images.layers.index import Index
from pagein.images.store import Store
from pagein.images.traces.document import Touch, Trace, quote
from pagein.images.traces.files import Files

BlobTouch = tuple[str, int, int, int]
"""Cookie key as hex; offset and length in the blob; milliseconds."""
FileTouch = tuple[str, str, int, int, int]
"""diff_id of the layer; path as in a trace; offset and length in the file; milliseconds."""


def translate(
    store: Store, find: Callable[[bytes], object], touches: Iterable[BlobTouch]
) -> tuple[list[FileTouch], int]:
    """`touches` as touches of files, and how many are of blobs that are no layer's.

    `find` tells what a key stands for, or raises OSError. What concerns metadata, or the padding
    behind a file, is left out. Raises OSError or LayerError; waits for the disk.
    """
    found: list[FileTouch] = []
    unknown = 0
    layers: dict[str, tuple[str, Files] | None] = {}
    with ExitStack() as stack:
        for cookie, offset, length, ms in touches:
            if cookie not in layers:
                blob = find(bytes.fromhex(cookie))
                layers[cookie] = None
                if isinstance(blob, LayerBlob) and blob.part == "data":
                    index = Index(store.path("indexes", blob.index), root=blob.root)
                    stack.callback(index.close)
                    layers[cookie] = index.header.layer.diff_id, Files(index)
                elif not isinstance(blob, LayerBlob):
                    unknown += 1
            if (layer := layers[cookie]) is not None:
                found += [
                    (layer[0], quote(part.path), part.offset, part.length, ms)
                    for part in layer[1].at(offset, length)
                ]
    return found, unknown


def made_of(image: str, found: Iterable[FileTouch]) -> Trace:
    """A trace of these touches; time begins with the first of them.

    What goes on where the touch before ended is one with it: a reader's read-ahead.
    """
    touches: list[Touch] = []
    layers: dict[str, int] = {}
    begun = None
    for diff_id, path, offset, length, ms in sorted(found, key=lambda each: each[4]):
        begun = ms if begun is None else begun
        layer = layers.setdefault(diff_id, len(layers))
        last = touches[-1] if touches else None
        if last is not None and _goes_on(last, layer, path, offset):
            touches[-1] = replace(last, length=last.length + length)
        else:
            touches.append(Touch(layer, path, offset, length, ms - begun))
    return Trace(image, tuple(layers), tuple(touches))


def _goes_on(last: Touch, layer: int, path: str, offset: int) -> bool:
    """Whether a touch begins where the last one ended."""
    return (last.layer, last.path, last.offset + last.length) == (layer, path, offset)
