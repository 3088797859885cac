"""The metric reader of our own export: the SDK's instruments, and our histograms beside them."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics import Counter, ObservableCounter
from opentelemetry.sdk.metrics import Histogram as HistogramInstrument
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricReader,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from gpumon import metrics as m
from gpumon.buckets import Buckets
from gpumon.telemetry.instruments import HistogramSource
from gpumon.version import __version__

_DELTA = {
    "delta": (Counter, ObservableCounter, HistogramInstrument),
    "lowmemory": (Counter, HistogramInstrument),
}


class Reader(MetricReader):
    """Collects when asked, in the caller's thread, and adds the histograms of *source*.

    They are folded per bucket in the background, because an SDK `record` costs 4-7 µs a step. Sums are
    cumulative; with *for_otlp* as `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE` says.
    """

    def __init__(self, source: HistogramSource, resource: Resource, *, for_otlp: bool = False) -> None:
        preference = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").strip().lower()
        deltas = _DELTA.get(preference, ()) if for_otlp else ()
        super().__init__(preferred_temporality=dict.fromkeys(deltas, AggregationTemporality.DELTA))
        self._is_delta = HistogramInstrument in deltas
        self._source = source
        self._resource = resource
        self._started = time.time_ns()
        self._done: dict[Any, Buckets] = {}
        self._data: MetricsData | None = None

    def read(self) -> MetricsData | None:
        """Everything that has a value now; None where nothing has."""
        self._data = None
        self.collect()
        return self._with(self._data, self._histograms())

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> None:
        self._data = metrics_data

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Nothing to stop."""

    def _with(self, data: MetricsData | None, own: list[Metric]) -> MetricsData | None:
        if not own:
            return data
        scope = InstrumentationScope(m.SCOPE, __version__, m.SCHEMA_URL)
        if data is None or not data.resource_metrics:
            scoped = ScopeMetrics(scope=scope, metrics=own, schema_url=m.SCHEMA_URL)
            return MetricsData([ResourceMetrics(self._resource, [scoped], self._resource.schema_url)])
        # The provider is ours and not global, so its only scope is ours (and its only resource).
        only = data.resource_metrics[0]
        head, *rest = only.scope_metrics
        merged = replace(head, metrics=[*head.metrics, *own])
        return MetricsData([replace(only, scope_metrics=[merged, *rest])])

    def _histograms(self) -> list[Metric]:
        now = time.time_ns()
        by_name: dict[str, tuple[m.Metric, list[HistogramDataPoint]]] = {}
        for metric, attributes, live in self._source():
            buckets = self._since_last(metric, attributes, live) if self._is_delta else live
            if any(buckets.counts):
                points = by_name.setdefault(metric.name, (metric, []))[1]
                points.append(_point(attributes, buckets, self._started, now))
        temporality = AggregationTemporality.DELTA if self._is_delta else AggregationTemporality.CUMULATIVE
        if self._is_delta:
            self._started = now
        return [
            Metric(
                name=metric.name,
                description=metric.description,
                unit=metric.unit,
                data=Histogram(data_points=points, aggregation_temporality=temporality),
            )
            for metric, points in by_name.values()
        ]

    def _since_last(self, metric: m.Metric, attributes: m.Attributes, live: Buckets) -> Buckets:
        key = (metric.name, tuple(sorted(attributes.items())))
        before = self._done.get(key, Buckets())
        now = Buckets(live.min_s, live.max_s, list(live.counts), list(live.sums))
        self._done[key] = now
        counts = [new - old for new, old in zip(now.counts, before.counts, strict=True)]
        sums = [new - old for new, old in zip(now.sums, before.sums, strict=True)]
        # The extremes of one window are not kept: the means of its outermost buckets stand in.
        means = [total / count for count, total in zip(counts, sums, strict=True) if count]
        return Buckets(min(means, default=0.0), max(means, default=0.0), counts, sums)


def _point(attributes: m.Attributes, buckets: Buckets, started: int, now: int) -> HistogramDataPoint:
    counts, sums = list(buckets.counts), list(buckets.sums)
    return HistogramDataPoint(
        attributes=dict(attributes),
        start_time_unix_nano=started,
        time_unix_nano=now,
        count=sum(counts),
        sum=sum(sums),
        bucket_counts=counts,
        explicit_bounds=m.DURATION_BOUNDS,
        min=buckets.min_s,
        max=buckets.max_s,
    )
