"""What our own export reads: every value of the catalogue, and our histograms beside them.

The SDK's collection calls each instrument's callback, aggregates and copies; that costs three times as much as
this, every second, of a training's time. An application's own providers are served by `instruments.py`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from gpumon import metrics as m
from gpumon.buckets import Buckets
from gpumon.telemetry.instruments import HistogramSource, Source
from gpumon.version import __version__

_DELTA = {"delta": ("counter", "histogram"), "lowmemory": ("histogram",)}
"""The kinds with delta sums, by temporality preference; observable counters are cumulative in `lowmemory`."""

_SCOPE = InstrumentationScope(m.SCOPE, __version__, m.SCHEMA_URL)

MAX_EXEMPLARS = 8
"""Of one series between two reads; the newest stay."""


def deltas_are_preferred() -> bool:
    """Whether an OTLP receiver wants another temporality than the files have."""
    return bool(_DELTA.get(_preference()))


def _preference() -> str:
    return os.environ.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").strip().lower()


class Reader:
    """Reads *values* and *histograms* when asked, in the caller's thread.

    Sums are cumulative; with *for_otlp* as `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE` says.
    """

    def __init__(
        self, values: Source, histograms: HistogramSource, resource: Resource, *, for_otlp: bool = False
    ) -> None:
        self._deltas = _DELTA.get(_preference(), ()) if for_otlp else ()
        self._values, self._histograms, self._resource = values, histograms, resource
        self._started = self._last = time.time_ns()
        self._counted: dict[Any, float] = {}  # of a series, until the last read
        self._done: dict[Any, Buckets] = {}
        self._exemplars: dict[Any, deque[Exemplar]] = {}
        self._takes_exemplars = os.environ.get("OTEL_METRICS_EXEMPLAR_FILTER", "").strip().lower() != "always_off"

    def exemplify(
        self, metric: m.Metric, attributes: m.Attributes, value: float, time_ns: int, span: SpanContext
    ) -> None:
        """Let the next point of a histogram name the trace in which *value* was measured."""
        if self._takes_exemplars and span.is_valid and span.trace_flags.sampled:
            found = self._exemplars.setdefault(_series(metric, attributes), deque(maxlen=MAX_EXEMPLARS))
            found.append(Exemplar({}, value, time_ns, span.span_id, span.trace_id))

    def read(self) -> MetricsData | None:
        """Everything that has a value now; None where nothing has."""
        now = time.time_ns()
        found = [*self._numbers(now), *self._distributions(now)]
        self._last = now
        if not found:
            return None
        scoped = ScopeMetrics(_SCOPE, found, m.SCHEMA_URL)
        return MetricsData([ResourceMetrics(self._resource, [scoped], self._resource.schema_url)])

    def _begin(self, kind: str) -> int:
        return self._last if kind in self._deltas else self._started

    def _temporality(self, kind: str) -> AggregationTemporality:
        return AggregationTemporality.DELTA if kind in self._deltas else AggregationTemporality.CUMULATIVE

    def _numbers(self, now: int) -> Iterator[Metric]:
        for metric in m.CATALOGUE:
            kind = metric.kind
            if kind == "histogram":
                continue
            begin = None if kind == "gauge" else self._begin(kind)
            points = [
                NumberDataPoint(attributes, begin, now, value)  # type: ignore[arg-type]
                for value, attributes in self._values(metric, id(self))
            ]
            if not points:
                continue
            if kind == "gauge":
                yield Metric(metric.name, metric.description, metric.unit, Gauge(points))
                continue
            if kind in self._deltas:
                points = [self._delta(metric, point) for point in points]
            data = Sum(points, self._temporality(kind), kind == "counter")
            yield Metric(metric.name, metric.description, metric.unit, data)

    def _delta(self, metric: m.Metric, point: NumberDataPoint) -> NumberDataPoint:
        key = _series(metric, point.attributes or {})
        before, self._counted[key] = self._counted.get(key, 0), point.value
        return NumberDataPoint(point.attributes, point.start_time_unix_nano, point.time_unix_nano, point.value - before)

    def _distributions(self, now: int) -> Iterator[Metric]:
        """The SDK's `record` costs 4-7 µs: these are folded per bucket in the background."""
        by_name: dict[str, tuple[m.Metric, list[HistogramDataPoint]]] = {}
        begin = self._begin("histogram")
        for metric, attributes, live in self._histograms():
            buckets = self._since_last(metric, attributes, live) if "histogram" in self._deltas else live
            if any(buckets.counts):
                exemplars = self._exemplars.pop(_series(metric, attributes), ()) if self._exemplars else ()
                point = _point(attributes, buckets, begin, now, list(exemplars))
                by_name.setdefault(metric.name, (metric, []))[1].append(point)
        for metric, points in by_name.values():
            data = Histogram(points, self._temporality("histogram"))
            yield Metric(metric.name, metric.description, metric.unit, data)

    def _since_last(self, metric: m.Metric, attributes: m.Attributes, live: Buckets) -> Buckets:
        key = _series(metric, attributes)
        before = self._done.get(key, Buckets())
        now = Buckets(live.min_s, live.max_s, list(live.counts), list(live.sums))
        self._done[key] = now
        counts = [new - old for new, old in zip(now.counts, before.counts, strict=True)]
        sums = [new - old for new, old in zip(now.sums, before.sums, strict=True)]
        # The extremes of one window are not kept: the means of its outermost buckets stand in.
        means = [total / count for count, total in zip(counts, sums, strict=True) if count]
        return Buckets(min(means, default=0.0), max(means, default=0.0), counts, sums)


def _series(metric: m.Metric, attributes: Any) -> Any:
    return metric.name, tuple(sorted(attributes.items()))


def _point(
    attributes: m.Attributes, buckets: Buckets, begin: int, now: int, exemplars: Sequence[Exemplar]
) -> HistogramDataPoint:
    counts, sums = list(buckets.counts), list(buckets.sums)
    return HistogramDataPoint(
        attributes=dict(attributes),
        start_time_unix_nano=begin,
        time_unix_nano=now,
        count=sum(counts),
        sum=sum(sums),
        bucket_counts=counts,
        explicit_bounds=m.DURATION_BOUNDS,
        min=buckets.min_s,
        max=buckets.max_s,
        exemplars=exemplars,
    )
