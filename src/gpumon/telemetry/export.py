"""Our own providers, for a process whose application has none, and the one thread that exports them.

Nothing here is set as the global provider: an application may still set its own at any later time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
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
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from gpumon import metrics as m
from gpumon.telemetry.files import RunFiles
from gpumon.telemetry.instruments import HistogramSource
from gpumon.telemetry.otlp_json import logs_line, metrics_line, spans_line
from gpumon.tracing.records import Buckets
from gpumon.version import __version__

logger = logging.getLogger(__name__)

EARLY_INTERVAL_S, EARLY_S, INTERVAL_S = 1.0, 300.0, 10.0
MAX_SPANS, MAX_LOGS = 8192, 1024
EXIT_S = 2.5
"""The exit may wait 3 s for us at most; the rest of it is for the last drain."""


class Sink(Protocol):
    """Where one process' signals go. `write_*` return whether the items were delivered or stored."""

    def write_metrics(self, data: MetricsData) -> bool: ...
    def write_spans(self, spans: Sequence[ReadableSpan]) -> bool: ...
    def write_logs(self, records: Sequence[Any]) -> bool: ...
    def close(self) -> None: ...


class FileSink:
    """The embedded default: OTLP JSON lines in a run directory."""

    def __init__(self, files: RunFiles) -> None:
        self._files = files

    def write_metrics(self, data: MetricsData) -> bool:
        return self._files.write("metrics", metrics_line(data), count_points(data))

    def write_spans(self, spans: Sequence[ReadableSpan]) -> bool:
        return self._files.write("traces", spans_line(spans), len(spans))

    def write_logs(self, records: Sequence[Any]) -> bool:
        return self._files.write("logs", logs_line(records), len(records))

    def close(self) -> None:
        self._files.close()


class OtlpSink:
    """OTLP through OpenTelemetry's own exporters; what the receiver refuses is counted."""

    def __init__(self, endpoint: str | None, on_dropped: Callable[[str, int], None]) -> None:
        self._metrics, self._spans, self._logs = _otlp_exporters(endpoint)
        self._on_dropped = on_dropped

    def write_metrics(self, data: MetricsData) -> bool:
        return self._send("metrics", self._metrics, data, count_points(data))

    def write_spans(self, spans: Sequence[ReadableSpan]) -> bool:
        return self._send("traces", self._spans, spans, len(spans))

    def write_logs(self, records: Sequence[Any]) -> bool:
        return self._send("logs", self._logs, records, len(records))

    def _send(self, signal: str, exporter: Any, batch: Any, items: int) -> bool:
        delivered = exporter.export(batch).name == "SUCCESS"
        if not delivered:
            self._on_dropped(signal, items)
        return bool(delivered)

    def close(self) -> None:
        for exporter in (self._metrics, self._spans, self._logs):
            exporter.shutdown()


def _otlp_exporters(endpoint: str | None) -> tuple[Any, Any, Any]:
    """(metrics, spans, logs) exporters; grpc when `OTEL_EXPORTER_OTLP_PROTOCOL` says so, else http/protobuf."""
    # A dead Collector must not hold the exit up: the exporters' own default is 10 s.
    timeout = None if "OTEL_EXPORTER_OTLP_TIMEOUT" in os.environ else 2
    if os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip() == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans

        return tuple(
            exporter(endpoint=endpoint, timeout=timeout) for exporter in (GrpcMetrics, GrpcSpans, GrpcLogs)
        )  # type: ignore[return-value]
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    paths = {OTLPMetricExporter: "v1/metrics", OTLPSpanExporter: "v1/traces", OTLPLogExporter: "v1/logs"}
    return tuple(
        exporter(endpoint=f"{endpoint.rstrip('/')}/{path}" if endpoint else None, timeout=timeout)
        for exporter, path in paths.items()
    )  # type: ignore[return-value]


class Export:
    """Own providers over one sink, and the daemon thread that collects and writes.

    Metrics go out every second for the first five minutes and then every 10 s;
    `OTEL_METRIC_EXPORT_INTERVAL` (ms) sets one interval for the whole run.
    """

    def __init__(
        self, resource: Resource, sink: Callable[[], Sink], histograms: HistogramSource, before_collect: Callable[[], None]
    ) -> None:
        self._make_sink, self._sink = sink, None
        self._before_collect = before_collect
        self._reader = _Reader(histograms, resource)
        self._spans = _SpanBuffer()
        self._logs = _LogBuffer()
        # The SDK's own exit hooks would wait for a full export timeout: `close` has a deadline instead.
        self.meter_provider = MeterProvider([self._reader], resource, shutdown_on_exit=False)
        self.tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(self._spans)
        self.logger_provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(self._logs)  # type: ignore[arg-type]
        self._interval_s = _interval_from_environment()
        self._began = time.monotonic()
        self._wake = threading.Event()
        self._closing = False
        self._pid = os.getpid()
        self._failed = 0
        self.cpu_ns = 0
        self._thread = threading.Thread(target=self._run, name="gpumon-export", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> bool:
        """Export what is left and end; gives up after `EXIT_S`. Returns whether all of it was written."""
        if os.getpid() != self._pid or not self._thread.is_alive():
            return False
        self._closing = True
        self._wake.set()
        self._thread.join(EXIT_S)
        return not self._thread.is_alive()

    @property
    def spans_dropped(self) -> int:
        return self._spans.dropped

    def _run(self) -> None:
        due = self._began + self._interval()
        while True:
            self._wake.wait(max(0.0, due - time.monotonic()))
            closing = self._closing
            began = time.thread_time_ns()
            try:
                self._export()
                if closing and self._sink is not None:
                    self._sink.close()
            except Exception:  # noqa: BLE001 - export must never end the training
                self._failed += 1
                log = logger.warning if self._failed == 1 else logger.debug
                log("export failed", exc_info=True)
            self.cpu_ns += time.thread_time_ns() - began
            if closing:
                return
            due = max(due + self._interval(), time.monotonic())

    def _interval(self) -> float:
        if self._interval_s is not None:
            return self._interval_s
        return EARLY_INTERVAL_S if time.monotonic() - self._began < EARLY_S else INTERVAL_S

    def _export(self) -> None:
        self._before_collect()
        self._reader.collect()
        if self._sink is None:
            self._sink = self._make_sink()
        if spans := self._spans.take():
            self._sink.write_spans(spans)
        if records := self._logs.take():
            self._sink.write_logs(records)
        if (data := self._reader.take()) is not None:
            self._sink.write_metrics(data)


class _Reader(MetricReader):
    """Collects when asked, from the export thread, and adds our histograms.

    They are folded per bucket in the background, because an SDK `record` costs 4-7 µs a step.
    """

    def __init__(self, histograms: HistogramSource, resource: Resource) -> None:
        super().__init__()
        self._histograms = histograms
        self._resource = resource
        self._started = time.time_ns()
        self._data: MetricsData | None = None

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> None:
        self._data = metrics_data

    def take(self) -> MetricsData | None:
        data, self._data = self._data, None
        own = self._own()
        if not own:
            return data
        scope = InstrumentationScope(m.SCOPE, __version__, m.SCHEMA_URL)
        scoped = ScopeMetrics(scope=scope, metrics=own, schema_url=m.SCHEMA_URL)
        if data is None or not data.resource_metrics:
            return MetricsData([ResourceMetrics(self._resource, [scoped], self._resource.schema_url)])
        first = data.resource_metrics[0]
        if first.scope_metrics and first.scope_metrics[0].scope.name == m.SCOPE:
            head = first.scope_metrics[0]
            merged = [replace(head, metrics=[*head.metrics, *own]), *first.scope_metrics[1:]]
        else:
            merged = [*first.scope_metrics, scoped]
        return MetricsData([replace(first, scope_metrics=merged), *data.resource_metrics[1:]])

    def _own(self) -> list[Metric]:
        now = time.time_ns()
        points: dict[str, list[HistogramDataPoint]] = {}
        described: dict[str, m.Metric] = {}
        for metric, attributes, buckets in self._histograms():
            if any(buckets.counts):
                described[metric.name] = metric
                points.setdefault(metric.name, []).append(self._point(attributes, buckets, now))
        return [
            Metric(
                name=name,
                description=described[name].description,
                unit=described[name].unit,
                data=Histogram(data_points=items, aggregation_temporality=AggregationTemporality.CUMULATIVE),
            )
            for name, items in points.items()
        ]

    def _point(self, attributes: m.Attributes, buckets: Buckets, now: int) -> HistogramDataPoint:
        counts, sums = list(buckets.counts), list(buckets.sums)
        return HistogramDataPoint(
            attributes=dict(attributes),
            start_time_unix_nano=self._started,
            time_unix_nano=now,
            count=sum(counts),
            sum=sum(sums),
            bucket_counts=counts,
            explicit_bounds=m.DURATION_BOUNDS,
            min=buckets.min_s,
            max=buckets.max_s,
        )

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Nothing to stop: the export thread ends by itself."""


class _SpanBuffer(SpanProcessor):
    """Holds ended spans until the export thread takes them; the oldest go first when it is full."""

    def __init__(self) -> None:
        self._ended: deque[ReadableSpan] = deque(maxlen=MAX_SPANS)
        self.dropped = 0

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self.dropped += len(self._ended) == MAX_SPANS
            self._ended.append(span)

    def take(self) -> list[ReadableSpan]:
        return _drain(self._ended)


class _LogBuffer:
    """Holds log records; the SDK called the hook `emit` before it became `on_emit` (1.36)."""

    def __init__(self) -> None:
        self._records: deque[Any] = deque(maxlen=MAX_LOGS)

    def on_emit(self, log_record: Any) -> None:
        self._records.append(log_record)

    emit = on_emit

    def take(self) -> list[Any]:
        return _drain(self._records)

    def shutdown(self) -> None:
        """Nothing to stop."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def _drain(queue: deque[Any]) -> list[Any]:
    taken = []
    while queue:
        taken.append(queue.popleft())
    return taken


def _interval_from_environment() -> float | None:
    text = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip()
    try:
        return max(0.1, float(text) / 1000) if text else None
    except ValueError:
        logger.warning("OTEL_METRIC_EXPORT_INTERVAL=%r is no number of milliseconds: ignored", text)
        return None


def count_points(data: MetricsData) -> int:
    return sum(
        len(metric.data.data_points)
        for item in data.resource_metrics
        for scoped in item.scope_metrics
        for metric in scoped.metrics
    )


def otlp_endpoint(endpoint: str | None) -> bool:
    """Whether an OTLP receiver was named, by argument or by `OTEL_EXPORTER_OTLP_*ENDPOINT`."""
    signals: Iterable[str] = ("", "TRACES_", "METRICS_", "LOGS_")
    return bool(endpoint) or any(os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") for signal in signals)
