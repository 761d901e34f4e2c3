"""A trace, read for one image: what of its layers' data blobs to fetch, and in which order."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import attrgetter

from pagein.images.layers.errors import LayerError
from pagein.images.layers.index import Index
from pagein.images.traces.document import Touch, Trace, unquote
from pagein.images.traces.files import Files, Part
from pagein.images.traces.plan import Piece, Want, plan
from pagein.rangeset import RangeSet


def plan_layer(index: Index, trace: Trace) -> tuple[list[Piece], int]:
    """The pieces that `trace` wants of the layer of `index`, and how many touches fit nothing.

    The rank of a piece is the place in the trace of the touch that wants it first. LayerError or
    ErofsError when the index is damaged; may wait for the disk.
    """
    touches = [
        (rank, touch)
        for rank, touch in enumerate(trace.touches)
        if trace.layers[touch.layer] == index.header.layer.diff_id
    ]
    if not touches:
        return [], 0
    files = Files(index)
    wanted: list[Want] = []
    skipped = 0
    # By path: neighbours in a directory are neighbours in the metadata, which is unpacked once.
    touches.sort(key=lambda each: each[1].path)
    for path, group in itertools.groupby(touches, key=lambda each: each[1].path):
        found, missed = _find(files, unquote(path), list(group))
        wanted += found
        skipped += missed
    return plan(index, wanted), skipped


def fitting(trace: Trace, diff_ids: Sequence[str]) -> int:
    """How many touches are of a layer that is among `diff_ids`."""
    fits = [diff_id in diff_ids for diff_id in trace.layers]
    return sum(fits[touch.layer] for touch in trace.touches)


def _find(
    files: Files, path: bytes, touches: Sequence[tuple[int, Touch]]
) -> tuple[list[Want], int]:
    try:
        parts = files.find(path)
    except (OSError, LayerError):
        return [], len(touches)
    wanted = []
    skipped = 0
    seen = RangeSet()  # of the file; nothing is wanted twice, however often a trace says so
    for rank, touch in touches:
        end = touch.offset + touch.length
        skipped += next(_inside(parts, touch.offset, end), None) is None
        for low, high in seen.gaps(touch.offset, end):
            wanted += [Want(rank, *found) for found in _inside(parts, low, high)]
        seen.add(touch.offset, end)
    return wanted, skipped


def _inside(parts: Sequence[Part], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where in the blob [start, end) of a file lies, whose `parts` these are."""
    at = max(0, bisect_right(parts, start, key=attrgetter("offset")) - 1)
    while at < len(parts) and parts[at].offset < end:
        part = parts[at]
        low, high = max(start, part.offset), min(end, part.offset + part.length)
        if low < high:
            yield part.position + low - part.offset, part.position + high - part.offset
        at += 1
