"""Observable instruments for the whole catalogue; their callbacks only read memory.

The API cannot remove a callback, and a second `create_observable_*` of the same name silently drops the new
one. So instruments are made once per meter provider and read from the one `HUB`, whose sources come and go
with `instrument()` and `uninstrument()`.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry import metrics as api
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from gpumon.metrics import CATALOGUE, DURATION_BOUNDS, SCHEMA_URL, SCOPE, Attributes, Metric
from gpumon.tracing.records import Buckets
from gpumon.version import __version__

logger = logging.getLogger(__name__)

Source = Callable[[Metric, int], Iterable[tuple[float, Attributes]]]
"""Called with a metric and a number that tells readers apart; yields its values now."""

HistogramSource = Callable[[], Iterable[tuple[Metric, Attributes, Buckets]]]


class Hub:
    """Where every callback reads; empty outside of `instrument()` … `uninstrument()` and in forked children."""

    def __init__(self) -> None:
        self.source: Source | None = None
        self._pid = os.getpid()
        self._providers: weakref.WeakSet[MeterProvider] = weakref.WeakSet()

    def attach(self, source: Source) -> None:
        self.source, self._pid = source, os.getpid()

    def detach(self) -> None:
        self.source = None

    def instrument(self, provider: MeterProvider, extra: Attributes | None = None) -> None:
        """Create every observable instrument on *provider*, once; *extra* goes onto each point."""
        if provider in self._providers:
            return
        self._providers.add(provider)
        meter = provider.get_meter(SCOPE, __version__, SCHEMA_URL)
        for metric in CATALOGUE:
            if metric.kind != "histogram":
                _create(meter, metric)(
                    metric.name, [self._callback(metric, extra or {})], metric.unit, metric.description
                )

    def _callback(self, metric: Metric, extra: Attributes) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            source = self.source
            # A forked DataLoader worker inherits the application's reader threads (SDK >= 1.25 restarts
            # them): it must not report the parent's series a second time.
            if source is None or os.getpid() != self._pid:
                return ()
            try:
                return [
                    Observation(value, {**attributes, **extra}) for value, attributes in source(metric, _reader())
                ]
            except Exception:  # noqa: BLE001 - the SDK would log a traceback at every export
                logger.debug("no values for %s", metric.name, exc_info=True)
                if os.environ.get("GPUMON_STRICT") == "1":
                    raise
                return ()

        return observe


HUB = Hub()


def _create(meter: Meter, metric: Metric) -> Callable[..., Any]:
    return {
        "gauge": meter.create_observable_gauge,
        "counter": meter.create_observable_counter,
        "updowncounter": meter.create_observable_up_down_counter,
    }[metric.kind]


def _reader() -> int:
    """A number for the reader that collects now: each periodic reader has a thread of its own.

    A reader that is called from passing threads (a scrape, `force_flush`) shares the number 0.
    """
    thread = threading.current_thread()
    periodic = thread.daemon and (thread.name.startswith("OtelPeriodic") or thread.name.startswith("gpumon-"))
    return (thread.ident or 0) if periodic else 0


class SdkHistograms:
    """Records our histograms into a provider that is not ours, from bucket sums.

    Per step only a bucket's count and sum are kept; each new count is recorded as the mean of what its bucket
    gained. So count, sum and buckets come out exact, whatever the provider's own aggregation.
    """

    def __init__(self, provider: MeterProvider, source: HistogramSource, extra: Attributes | None = None) -> None:
        meter = provider.get_meter(SCOPE, __version__, SCHEMA_URL)
        self._source = source
        self._extra = dict(extra or {})
        self._instruments = {
            metric.name: meter.create_histogram(
                metric.name,
                metric.unit,
                metric.description,
                explicit_bucket_boundaries_advisory=list(DURATION_BOUNDS),
            )
            for metric in CATALOGUE
            if metric.kind == "histogram"
        }
        self._done: dict[tuple[str, tuple[tuple[str, Any], ...]], tuple[list[int], list[float]]] = {}

    def record(self) -> None:
        """Record what was added since the last call."""
        for metric, attributes, buckets in self._source():
            key = (metric.name, tuple(sorted(attributes.items())))
            counts, sums = self._done.get(key, ([0] * len(buckets.counts), [0.0] * len(buckets.counts)))
            new_counts, new_sums = list(buckets.counts), list(buckets.sums)
            for index, count in enumerate(new_counts):
                gained = count - counts[index]
                if gained > 0:
                    mean = (new_sums[index] - sums[index]) / gained
                    for _ in range(gained):
                        self._instruments[metric.name].record(mean, {**attributes, **self._extra})
            self._done[key] = (new_counts, new_sums)


def global_meter_provider() -> MeterProvider:
    return api.get_meter_provider()


def is_set(provider: object) -> bool:
    """Whether an application has put a real provider behind *provider* (or it is one)."""
    name = type(provider).__name__
    if name.startswith("NoOp"):
        return False
    return not name.startswith("_Proxy") and not name.startswith("Proxy")

