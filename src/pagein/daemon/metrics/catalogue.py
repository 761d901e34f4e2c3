"""Every metric, once: its name, kind, labels and meaning. docs/metrics.md is held to be this."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple


class Metric(NamedTuple):
    """`name` as it is exported, without the suffixes that Prometheus adds to histograms."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


READ_SECONDS: Final = Metric(
    "pagein_read_seconds",
    "histogram",
    ("cause",),
    "Time from a READ to its last byte, or its failure, by what it waited for.",
)
FETCH_SECONDS: Final = Metric(
    "pagein_fetch_seconds",
    "histogram",
    ("priority",),
    "Time of a fetch with its waits, by what it was begun for.",
)
FETCHED_BYTES: Final = Metric(
    "pagein_fetched_bytes_total", "counter", ("priority",), "Bytes given to the cache."
)
FAILED_READS: Final = Metric(
    "pagein_failed_reads_total", "counter", (), "READs answered without their bytes: EIO."
)
FAILED_FETCHES: Final = Metric(
    "pagein_failed_fetches_total", "counter", (), "Fetches that ended with an error."
)
RETRIES: Final = Metric(
    "pagein_retries_total", "counter", (), "Fetches made again because a READ still waited."
)
REQUESTS: Final = Metric(
    "pagein_origin_requests_total",
    "counter",
    ("host", "code"),
    "Answers of servers by status code, redirects among them; failed: none came.",
)
ERRORS: Final = Metric(
    "pagein_origin_errors_total", "counter", ("host",), "Those that brought nothing."
)
WAITING: Final = Metric("pagein_waiting_reads", "gauge", (), "READs that wait now.")
OLDEST: Final = Metric(
    "pagein_oldest_waiting_read_age_seconds", "gauge", (), "Since when the oldest waits; 0: none."
)
CACHE_BYTES: Final = Metric(
    "pagein_cache_bytes", "gauge", (), "Bytes in the cache of the blobs in use."
)
BLOB_BYTES: Final = Metric("pagein_blob_bytes", "gauge", (), "Sizes of the blobs in use.")

MOUNTS: Final = Metric("pagein_mounts", "gauge", (), "Mounts, a stack of layers being one.")
BLOBS: Final = Metric("pagein_blobs", "gauge", (), "Blobs in use by mounts.")
KERNEL_READS: Final = Metric(
    "pagein_kernel_reads_total",
    "counter",
    ("result",),
    "Reads of the kernel's file system that missed its page cache, by what was in ours.",
)
KERNEL_BYTES: Final = Metric(
    "pagein_kernel_read_bytes_total", "counter", (), "Bytes of these reads."
)
UNREAD: Final = Metric(
    "pagein_unread_bytes", "gauge", (), "Bytes brought that nobody has read yet."
)
WASTED: Final = Metric(
    "pagein_wasted_bytes_total",
    "counter",
    (),
    "Bytes brought that nobody had read when their blob was given back.",
)

OURS: Final = (
    *(READ_SECONDS, FETCH_SECONDS, FETCHED_BYTES, FAILED_READS, FAILED_FETCHES, RETRIES),
    *(REQUESTS, ERRORS, WAITING, OLDEST, CACHE_BYTES, BLOB_BYTES),
)
"""What the user half counts."""

KERNEL_HALF: Final = (MOUNTS, BLOBS, KERNEL_READS, KERNEL_BYTES, UNREAD, WASTED)
"""What the kernel half does, where it is ours."""
