"""OTLP as JSON lines (proto3 JSON mapping), straight from the SDK's own objects.

The OpenTelemetry package for this (opentelemetry-exporter-otlp-json-file) pins one release of the SDK, which
a package that installs into any training environment cannot; the tests hold this encoder against it.
Source: opentelemetry-proto and https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/.
"""

from __future__ import annotations

import base64
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
from opentelemetry.sdk.resources import Resource
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
    return _dump({"resourceLogs": _grouped(records, "scopeLogs", "logRecords", lambda item: _log(item.log_record))})


def _grouped(
    items: Sequence[Any], scopes_key: str, items_key: str, encode: Callable[[Any], dict[str, Any]]
) -> list[dict[str, Any]]:
    resources: dict[Any, dict[Any, list[dict[str, Any]]]] = {}
    for item in items:
        # SDK < 1.39 keeps a log record's resource in the record, or nowhere.
        record = getattr(item, "log_record", None)
        resource = getattr(item, "resource", None) or getattr(record, "resource", None) or Resource.get_empty()
        scopes = resources.setdefault(resource, {})
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
    if value is None:
        return {}
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": _double(value)}
    if isinstance(value, bytes):
        return {"bytesValue": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {"kvlistValue": _filled(values=attributes(value))}
    if isinstance(value, Sequence):
        return {"arrayValue": _filled(values=[_any(item) for item in value])}
    return {"stringValue": str(value)}


def _filled(**fields: Any) -> dict[str, Any]:
    """The fields that say something: the mapping leaves out empty and zero ones."""
    return {name: value for name, value in fields.items() if value or isinstance(value, dict)}


def _double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _metric(metric: Any) -> dict[str, Any]:
    data = metric.data
    encoded = _filled(name=metric.name, description=metric.description, unit=metric.unit)
    if isinstance(data, Gauge):
        encoded["gauge"] = {"dataPoints": [_number(point, is_gauge=True) for point in data.data_points]}
        return encoded
    if isinstance(data, Sum):
        kind, points = "sum", [_number(point) for point in data.data_points]
    elif isinstance(data, Histogram):
        kind, points = "histogram", [_histogram(point) for point in data.data_points]
    else:  # ExponentialHistogram, which a view can ask for
        kind, points = "exponentialHistogram", [_exponential(point) for point in data.data_points]
    encoded[kind] = {"dataPoints": points, "aggregationTemporality": int(data.aggregation_temporality)}
    if isinstance(data, Sum) and data.is_monotonic:
        encoded[kind]["isMonotonic"] = True
    return encoded


def _point(point: Any) -> dict[str, Any]:
    return _filled(
        attributes=attributes(point.attributes),
        startTimeUnixNano=_time(point.start_time_unix_nano),
        timeUnixNano=_time(point.time_unix_nano),
        exemplars=[_exemplar(exemplar) for exemplar in point.exemplars],
    )


def _number(point: NumberDataPoint, is_gauge: bool = False) -> dict[str, Any]:
    encoded = _point(point)
    if is_gauge:
        encoded.pop("startTimeUnixNano", None)
    encoded.update(_value(point.value))
    return encoded


def _value(value: float) -> dict[str, Any]:
    return {"asInt": str(value)} if isinstance(value, int) else {"asDouble": _double(value)}


def _exemplar(exemplar: Any) -> dict[str, Any]:
    return {
        **_filled(
            timeUnixNano=_time(exemplar.time_unix_nano),
            spanId=_hex(exemplar.span_id, 16),
            traceId=_hex(exemplar.trace_id, 32),
            filteredAttributes=attributes(exemplar.filtered_attributes),
        ),
        **_value(exemplar.value),
    }


def _histogram(point: HistogramDataPoint) -> dict[str, Any]:
    return {
        **_point(point),
        "count": str(point.count),
        "sum": point.sum,
        "bucketCounts": [str(count) for count in point.bucket_counts],
        "explicitBounds": list(point.explicit_bounds),
        **({"min": point.min, "max": point.max} if point.count else {}),
    }


def _exponential(point: Any) -> dict[str, Any]:
    return {
        **_point(point),
        "count": str(point.count),
        "sum": point.sum,
        "zeroCount": str(point.zero_count),
        **_filled(scale=point.scale),
        **{
            side: _filled(offset=buckets.offset, bucketCounts=[str(count) for count in buckets.bucket_counts])
            for side, buckets in (("positive", point.positive), ("negative", point.negative))
        },
        **({"min": point.min, "max": point.max} if point.count else {}),
    }


def _span(span: ReadableSpan) -> dict[str, Any]:
    context, parent, status = span.context, span.parent, span.status
    assert context is not None
    return _filled(
        traceId=_hex(context.trace_id, 32),
        spanId=_hex(context.span_id, 16),
        traceState=context.trace_state.to_header(),
        parentSpanId=_hex(parent.span_id, 16) if parent else "",
        flags=_flags(parent),
        name=span.name,
        kind=_KINDS[span.kind.value],
        startTimeUnixNano=_time(span.start_time),
        endTimeUnixNano=_time(span.end_time),
        attributes=attributes(span.attributes),
        droppedAttributesCount=span.dropped_attributes,
        events=[
            _filled(
                timeUnixNano=_time(event.timestamp),
                name=event.name,
                attributes=attributes(event.attributes),
                droppedAttributesCount=event.dropped_attributes,
            )
            for event in span.events
        ],
        droppedEventsCount=span.dropped_events,
        links=[
            _filled(
                traceId=_hex(link.context.trace_id, 32),
                spanId=_hex(link.context.span_id, 16),
                attributes=attributes(link.attributes),
                droppedAttributesCount=link.dropped_attributes,
                flags=_flags(link.context),
            )
            for link in span.links
        ],
        droppedLinksCount=span.dropped_links,
        status=_filled(code=status.status_code.value, message=status.description),
    )


def _flags(context: Any) -> int:
    """SpanFlags: 0x100 says that it is known whether *context* is remote, 0x200 that it is."""
    return 0x100 | (0x200 if context is not None and context.is_remote else 0)


def _log(record: Any) -> dict[str, Any]:
    return _filled(
        timeUnixNano=_time(record.timestamp),
        observedTimeUnixNano=_time(record.observed_timestamp),
        severityNumber=record.severity_number.value if record.severity_number else 0,
        severityText=record.severity_text,
        body=None if record.body is None else _any(record.body),
        attributes=attributes(record.attributes),
        traceId=_hex(record.trace_id, 32),
        spanId=_hex(record.span_id, 16),
        flags=int(record.trace_flags or 0),
        eventName=getattr(record, "event_name", None),
    )


def _hex(number: int | None, digits: int) -> str:
    return f"{number:0{digits}x}" if number else ""


def _time(nanoseconds: int | None) -> str:
    return str(nanoseconds) if nanoseconds else ""
