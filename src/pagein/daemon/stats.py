"""What a daemon says of its blobs and of the READs that wait, as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pagein.daemon.objects import Blob, readable
from pagein.daemon.tally import Now

MOST_WAITING: Final = 16
"""Waiting READs that are told one by one."""


def of_blobs(blobs: Iterable[Blob]) -> list[dict[str, Any]]:
    """What became of each: sizes in bytes, counts, text of the last error."""
    return [
        {
            "volume": readable(blob.key[0]),
            "cookie": readable(blob.key[1]),
            "size": blob.size,
            "present": min(blob.fill.present.total, blob.size),
            "fetched": blob.fill.fetched,
            "prefetched": blob.prefetched,
            "requests": blob.fill.requests,
            "errors": blob.fill.errors,
            "last_error": blob.fill.last_error,
        }
        for blob in blobs
    ]


def waiting(blobs: Iterable[Blob], time: float) -> list[dict[str, Any]]:
    """The oldest READs that wait, at a `time` of the loop's clock; age in seconds, bytes."""
    waits = [(since, blob, off, size) for blob in blobs for since, off, size in blob.fill.waits]
    return [
        {
            "age": round(time - since, 3),
            "volume": readable(blob.key[0]),
            "cookie": readable(blob.key[1]),
            "off": off,
            "len": size,
        }
        for since, blob, off, size in sorted(waits, key=lambda wait: wait[0])[:MOST_WAITING]
    ]


def now(blobs: Iterable[Blob], time: float) -> Now:
    """What holds now, for the metrics."""
    blobs = list(blobs)
    begun = [since for blob in blobs for since, _, _ in blob.fill.waits]
    present = sum(min(blob.fill.present.total, blob.size) for blob in blobs)
    oldest = time - min(begun, default=time)
    return Now(len(begun), oldest, present, sum(blob.size for blob in blobs))
