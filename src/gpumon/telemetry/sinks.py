"""The places that our own export writes to: files in a run directory, or an OTLP receiver."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import ReadableSpan

from gpumon.telemetry.files import RunFiles
from gpumon.telemetry.otlp_json import logs_line, metrics_line, spans_line

TIMEOUT_S = 2
"""For one delivery, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise (OpenTelemetry's default is 10 s)."""

_ENDPOINTS = tuple(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT" for signal in ("", "TRACES_", "METRICS_", "LOGS_"))


class Sink(Protocol):
    """Where one process' signals go. `write_*` return whether the batch was delivered or stored."""

    def write_metrics(self, data: MetricsData) -> bool: ...
    def write_traces(self, spans: Sequence[ReadableSpan]) -> bool: ...
    def write_logs(self, records: Sequence[Any]) -> bool: ...
    def close(self) -> None: ...


class FileSink:
    """OTLP JSON lines in a run directory."""

    def __init__(self, files: RunFiles) -> None:
        self._files = files

    def write_metrics(self, data: MetricsData) -> bool:
        return self._files.write("metrics", metrics_line(data))

    def write_traces(self, spans: Sequence[ReadableSpan]) -> bool:
        return self._files.write("traces", spans_line(spans))

    def write_logs(self, records: Sequence[Any]) -> bool:
        return self._files.write("logs", logs_line(records))

    def close(self) -> None:
        self._files.close()


class OtlpSink:
    """OTLP through OpenTelemetry's own exporters, whose `OTEL_EXPORTER_OTLP_*` variables hold here too."""

    def __init__(self, endpoint: str | None) -> None:
        self._metrics, self._traces, self._logs = _otlp_exporters(endpoint)

    def write_metrics(self, data: MetricsData) -> bool:
        return self._send(self._metrics, data)

    def write_traces(self, spans: Sequence[ReadableSpan]) -> bool:
        return self._send(self._traces, spans)

    def write_logs(self, records: Sequence[Any]) -> bool:
        return self._send(self._logs, records)

    def _send(self, exporter: Any, batch: Any) -> bool:
        with _quiet():
            try:
                return bool(exporter.export(batch).name == "SUCCESS")
            except Exception:  # noqa: BLE001 - whatever the transport raises (SDK < 1.33): not delivered
                return False

    def close(self) -> None:
        with _quiet():
            for exporter in (self._metrics, self._traces, self._logs):
                exporter.shutdown()


def otlp_named(endpoint: str | None) -> bool:
    """Whether an OTLP receiver was named, by argument or by `OTEL_EXPORTER_OTLP_*ENDPOINT`."""
    return bool(endpoint) or any(os.environ.get(variable) for variable in _ENDPOINTS)


def otlp_place(endpoint: str | None) -> str:
    """The receiver's address, for messages."""
    named = (os.environ.get(variable) for variable in _ENDPOINTS)
    return endpoint or next(filter(None, named), "http://localhost:4318")


def _otlp_exporters(endpoint: str | None) -> tuple[Any, Any, Any]:
    """(metrics, traces, logs) exporters: grpc where `OTEL_EXPORTER_OTLP_PROTOCOL` says so, else http."""
    timeout = None if "OTEL_EXPORTER_OTLP_TIMEOUT" in os.environ else TIMEOUT_S
    metrics: Any
    traces: Any
    logs: Any
    if os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip() == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as logs
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as metrics
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as traces
    else:
        from opentelemetry.exporter.otlp.proto.http import _log_exporter as logs
        from opentelemetry.exporter.otlp.proto.http import metric_exporter as metrics
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as traces

    def url(path: str) -> str | None:
        # Over http an endpoint given in code is the full address of one signal.
        is_http = metrics.__name__.startswith("opentelemetry.exporter.otlp.proto.http")
        return f"{endpoint.rstrip('/')}/{path}" if endpoint and is_http else endpoint

    return (
        metrics.OTLPMetricExporter(endpoint=url("v1/metrics"), timeout=timeout),
        traces.OTLPSpanExporter(endpoint=url("v1/traces"), timeout=timeout),
        logs.OTLPLogExporter(endpoint=url("v1/logs"), timeout=timeout),
    )


class _ThisThread(logging.Filter):
    """Hides what the exporters log in one thread; the application's own exporters log as ever."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread


@contextmanager
def _quiet() -> Iterator[None]:
    """A receiver that is down is reported once by us, not at every export by each exporter.

    Filters of a logger do not see records of the loggers below it, hence one on each of them.
    """
    hide = _ThisThread()
    loggers = [
        logging.getLogger(name)
        for name in list(logging.root.manager.loggerDict)
        if name.startswith(("opentelemetry.exporter", "urllib3.connectionpool"))
    ]
    for item in loggers:
        item.addFilter(hide)
    try:
        yield
    finally:
        for item in loggers:
            item.removeFilter(hide)
