"""The counts of both halves as Prometheus has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from pagein.daemon.metrics import catalogue
from pagein.daemon.metrics.catalogue import Metric
from pagein.daemon.tally import BUCKETS, Histogram, Now, Tally, is_error
from pagein.protocol.numbers import Number, Numbers


class Halves(Collector):
    """Reads the counts when it is asked; called on the loop that changes them."""

    def __init__(self, tally: Tally, now: Callable[[], Now], numbers: Numbers | None) -> None:
        """`numbers` are those of the kernel half; None where that is not ours."""
        self._tally = tally
        self._now = now
        self._numbers = numbers

    def collect(self) -> Iterator[Family]:
        """All metrics of the catalogue."""
        now, tally = self._now(), self._tally
        yield _histogram(catalogue.READ_SECONDS, tally.reads.items())
        yield _histogram(catalogue.FETCH_SECONDS, tally.fetches.items())
        yield _value(catalogue.FETCHED_BYTES, [((k,), count) for k, count in tally.fetched.items()])
        yield _value(catalogue.FAILED_READS, [((), tally.failed_reads)])
        yield _value(catalogue.FAILED_FETCHES, [((), tally.failed_fetches)])
        yield _value(catalogue.RETRIES, [((), tally.retries)])
        yield _value(catalogue.REQUESTS, tally.answers.items())
        errors = {(host,): 0 for host, _ in tally.answers}
        for (host, code), count in tally.answers.items():
            errors[host,] += count * is_error(code)
        yield _value(catalogue.ERRORS, errors.items())
        yield _value(catalogue.WAITING, [((), now.waiting)])
        yield _value(catalogue.OLDEST, [((), now.oldest)])
        yield _value(catalogue.CACHE_BYTES, [((), now.present)])
        yield _value(catalogue.BLOB_BYTES, [((), now.size)])
        if self._numbers is not None:
            yield from _of_the_kernel_half(self._numbers)


def _of_the_kernel_half(numbers: Numbers) -> Iterator[Family]:
    reads, misses = numbers[Number.READS], numbers[Number.MISSES]
    yield _value(catalogue.MOUNTS, [((), numbers[Number.MOUNTS])])
    yield _value(catalogue.BLOBS, [((), numbers[Number.BLOBS])])
    results = {("hit",): reads - misses, ("miss",): misses}
    yield _value(catalogue.KERNEL_READS, results.items())
    yield _value(catalogue.KERNEL_BYTES, [((), numbers[Number.READ_BYTES])])
    yield _value(catalogue.UNREAD, [((), numbers[Number.UNREAD_BYTES])])
    yield _value(catalogue.WASTED, [((), numbers[Number.WASTED_BYTES])])


def _value(metric: Metric, values: Iterable[tuple[Sequence[str], float]]) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _histogram(metric: Metric, values: Iterable[tuple[str, Histogram]]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for label, histogram in values:
        total, buckets = 0, []
        for bound, count in zip([*map(str, BUCKETS), "+Inf"], histogram.counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric([label], buckets, histogram.sum)
    return family
