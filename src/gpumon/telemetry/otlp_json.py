"""OTLP as JSON lines (proto3 JSON mapping), straight from the SDK's own objects.

The OpenTelemetry package for this (opentelemetry-exporter-otlp-json-file) pins one release of the SDK, which
a package that installs into any training environment cannot; the tests hold this encoder against it.
Source: opentelemetry-proto and https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.trace import ReadableSpan

_KINDS = {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}  # the API's SpanKind -> the protocol's


def metrics_line(data: MetricsData) -> str:
    """One line of a metrics file: an ExportMetricsServiceRequest."""
    return _dump(
        {
            "resourceMetrics": [
                _resource(
                    item.resource,
                    {
                        "scopeMetrics": [
                            _scope(scoped.scope, {"metrics": [_metric(metric) for metric in scoped.metrics]})
                            for scoped in item.scope_metrics
                        ]
                    },
                )
                for item in data.resource_metrics
            ]
        }
    )


def spans_line(spans: Sequence[ReadableSpan]) -> str:
    """One line of a traces file: an ExportTraceServiceRequest; spans grouped by resource and scope."""
    return _dump({"resourceSpans": _grouped(spans, "scopeSpans", "spans", _span)})


def logs_line(records: Sequence[Any]) -> str:
    """One line of a logs file: an ExportLogsServiceRequest of the SDK's readable log records."""
    return _dump(
        {"resourceLogs": _grouped(records, "scopeLogs", "logRecords", lambda item: _log(item.log_record))}
    )


def _grouped(
    items: Sequence[Any], scopes_key: str, items_key: str, encode: Callable[[Any], dict[str, Any]]
) -> list[dict[str, Any]]:
    resources: dict[Any, dict[Any, list[dict[str, Any]]]] = {}
    for item in items:
        scopes = resources.setdefault(item.resource, {})
        scopes.setdefault(item.instrumentation_scope, []).append(encode(item))
    return [
        _resource(
            resource,
            {scopes_key: [_scope(scope, {items_key: encoded}) for scope, encoded in scopes.items()]},
        )
        for resource, scopes in resources.items()
    ]


def _resource(resource: Any, content: dict[str, Any]) -> dict[str, Any]:
    schema = {"schemaUrl": resource.schema_url} if resource.schema_url else {}
    return {"resource": {"attributes": attributes(resource.attributes)}, **content, **schema}


def _scope(scope: Any, content: dict[str, Any]) -> dict[str, Any]:
    encoded: dict[str, Any] = {"name": scope.name} if scope else {}
    if scope and scope.version:
        encoded["version"] = scope.version
    if scope and scope.attributes:
        encoded["attributes"] = attributes(scope.attributes)
    schema = {"schemaUrl": scope.schema_url} if scope and scope.schema_url else {}
    return {"scope": encoded, **content, **schema}


def attributes(given: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A list of key and AnyValue."""
    return [{"key": key, "value": _any(value)} for key, value in (given or {}).items()]


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False)


def _any(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": _double(value)}
    if isinstance(value, Mapping):
        return {"kvlistValue": {"values": attributes(value)}}
    if isinstance(value, Sequence):
        return {"arrayValue": {"values": [_any(item) for item in value]}}
    return {"stringValue": str(value)}


def _double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _metric(metric: Any) -> dict[str, Any]:
    encoded: dict[str, Any] = {"name": metric.name}
    if metric.description:
        encoded["description"] = metric.description
    if metric.unit:
        encoded["unit"] = metric.unit
    data = metric.data
    if isinstance(data, Gauge):
        encoded["gauge"] = {"dataPoints": [_number(point, is_gauge=True) for point in data.data_points]}
    elif isinstance(data, Sum):
        encoded["sum"] = {
            "dataPoints": [_number(point) for point in data.data_points],
            "aggregationTemporality": int(data.aggregation_temporality),
        }
        if data.is_monotonic:
            encoded["sum"]["isMonotonic"] = True
    elif isinstance(data, Histogram):
        encoded["histogram"] = {
            "dataPoints": [_histogram(point) for point in data.data_points],
            "aggregationTemporality": int(data.aggregation_temporality),
        }
    else:  # ExponentialHistogram, which a view of the user's can ask for
        encoded["exponentialHistogram"] = {
            "dataPoints": [_exponential(point) for point in data.data_points],
            "aggregationTemporality": int(data.aggregation_temporality),
        }
    return encoded


def _point(point: Any) -> dict[str, Any]:
    encoded: dict[str, Any] = {}
    if point.attributes:
        encoded["attributes"] = attributes(point.attributes)
    if point.start_time_unix_nano:
        encoded["startTimeUnixNano"] = str(point.start_time_unix_nano)
    encoded["timeUnixNano"] = str(point.time_unix_nano)
    if point.exemplars:
        encoded["exemplars"] = [_exemplar(exemplar) for exemplar in point.exemplars]
    return encoded


def _number(point: NumberDataPoint, is_gauge: bool = False) -> dict[str, Any]:
    encoded = _point(point)
    if is_gauge:
        encoded.pop("startTimeUnixNano", None)
    encoded.update(_value(point.value))
    return encoded


def _value(value: float) -> dict[str, Any]:
    return {"asInt": str(value)} if isinstance(value, int) else {"asDouble": _double(value)}


def _exemplar(exemplar: Any) -> dict[str, Any]:
    encoded: dict[str, Any] = {"timeUnixNano": str(exemplar.time_unix_nano), **_value(exemplar.value)}
    if exemplar.span_id:
        encoded["spanId"] = _hex(exemplar.span_id, 16)
        encoded["traceId"] = _hex(exemplar.trace_id, 32)
    if exemplar.filtered_attributes:
        encoded["filteredAttributes"] = attributes(exemplar.filtered_attributes)
    return encoded


def _histogram(point: HistogramDataPoint) -> dict[str, Any]:
    encoded = _point(point)
    encoded["count"] = str(point.count)
    encoded["sum"] = point.sum
    encoded["bucketCounts"] = [str(count) for count in point.bucket_counts]
    encoded["explicitBounds"] = list(point.explicit_bounds)
    if point.count:
        encoded["min"], encoded["max"] = point.min, point.max
    return encoded


def _exponential(point: Any) -> dict[str, Any]:
    encoded = _point(point)
    encoded.update(count=str(point.count), sum=point.sum, scale=point.scale, zeroCount=str(point.zero_count))
    for side in ("positive", "negative"):
        buckets = getattr(point, side)
        encoded[side] = {
            "offset": buckets.offset,
            "bucketCounts": [str(count) for count in buckets.bucket_counts],
        }
    if point.count:
        encoded["min"], encoded["max"] = point.min, point.max
    return encoded


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.context
    encoded: dict[str, Any] = {
        "traceId": _hex(context.trace_id, 32),
        "spanId": _hex(context.span_id, 16),
    }
    if context.trace_state:
        encoded["traceState"] = context.trace_state.to_header()
    parent = span.parent
    if parent is not None:
        encoded["parentSpanId"] = _hex(parent.span_id, 16)
    # 0x100: whether the parent is remote is known; 0x200: it is (opentelemetry-proto, SpanFlags).
    encoded["flags"] = 0x100 | (0x200 if parent is not None and parent.is_remote else 0)
    encoded["name"] = span.name
    encoded["kind"] = _KINDS[span.kind.value]
    encoded["startTimeUnixNano"] = str(span.start_time)
    encoded["endTimeUnixNano"] = str(span.end_time)
    if span.attributes:
        encoded["attributes"] = attributes(span.attributes)
    if span.events:
        encoded["events"] = [
            {
                "timeUnixNano": str(event.timestamp),
                "name": event.name,
                "attributes": attributes(event.attributes),
            }
            for event in span.events
        ]
    if span.links:
        encoded["links"] = [
            {
                "traceId": _hex(link.context.trace_id, 32),
                "spanId": _hex(link.context.span_id, 16),
                "attributes": attributes(link.attributes),
            }
            for link in span.links
        ]
    status: dict[str, Any] = {}
    if span.status.status_code.value:
        status["code"] = span.status.status_code.value
    if span.status.description:
        status["message"] = span.status.description
    encoded["status"] = status
    return encoded


def _log(record: Any) -> dict[str, Any]:
    encoded: dict[str, Any] = {}
    if record.timestamp:
        encoded["timeUnixNano"] = str(record.timestamp)
    encoded["observedTimeUnixNano"] = str(record.observed_timestamp or record.timestamp or 0)
    if record.severity_number is not None:
        encoded["severityNumber"] = record.severity_number.value
    if record.severity_text:
        encoded["severityText"] = record.severity_text
    if record.body is not None:
        encoded["body"] = _any(record.body)
    if record.attributes:
        encoded["attributes"] = attributes(record.attributes)
    if record.trace_id:
        encoded["traceId"] = _hex(record.trace_id, 32)
        encoded["spanId"] = _hex(record.span_id, 16)
    if getattr(record, "event_name", None):
        encoded["eventName"] = record.event_name
    return encoded


def _hex(number: int, digits: int) -> str:
    return f"{number:0{digits}x}"
