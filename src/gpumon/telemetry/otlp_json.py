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
from functools import lru_cache
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
    """One line of a metrics file: an ExportMetricsServiceRequest.

    Put together as text: this is written every second of a training, and most of it is as it was before.
    """
    resources = [
        _fields(
            '"resource":' + _dump({"attributes": attributes(item.resource.attributes)}),
            '"scopeMetrics":[' + ",".join(map(_scope_metrics, item.scope_metrics)) + "]",
            _dump_field("schemaUrl", item.resource.schema_url),
        )
        for item in data.resource_metrics
    ]
    return '{"resourceMetrics":[' + ",".join(resources) + "]}"


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


_dump = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


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


def _fields(*fields: str) -> str:
    """An object of those fields that say something."""
    return "{" + ",".join(filter(None, fields)) + "}"


def _dump_field(name: str, value: Any) -> str:
    return f'"{name}":{_dump(value)}' if value else ""


def _scope_metrics(scoped: Any) -> str:
    content = _scope(scoped.scope, {})
    return _fields(
        '"scope":' + _dump(content["scope"]),
        '"metrics":[' + ",".join(map(_metric, scoped.metrics)) + "]",
        _dump_field("schemaUrl", content.get("schemaUrl")),
    )


def _metric(metric: Any) -> str:
    data = metric.data
    encode: Callable[[Any], str]
    if isinstance(data, Gauge):
        kind, encode = "gauge", _gauge
    elif isinstance(data, Sum):
        kind, encode = "sum", _number
    elif isinstance(data, Histogram):
        kind, encode = "histogram", _histogram
    else:  # ExponentialHistogram, which a view can ask for
        kind, encode = "exponentialHistogram", _exponential
    temporality = "" if kind == "gauge" else f'"aggregationTemporality":{int(data.aggregation_temporality)}'
    is_monotonic = '"isMonotonic":true' if kind == "sum" and data.is_monotonic else ""
    points = '"dataPoints":[' + ",".join(map(encode, data.data_points)) + "]"
    return _fields(
        _described(metric.name, metric.description, metric.unit),
        f'"{kind}":' + _fields(points, temporality, is_monotonic),
    )


@lru_cache(maxsize=1024)
def _described(name: str, description: str | None, unit: str | None) -> str:
    fields = {"name": name, "description": description, "unit": unit}
    return ",".join(filter(None, (_dump_field(key, value) for key, value in fields.items())))


def _gauge(point: NumberDataPoint) -> str:
    return _fields(_point(point, None), _value_text(point.value))


def _number(point: NumberDataPoint) -> str:
    return _fields(_point(point, point.start_time_unix_nano), _value_text(point.value))


def _point(point: Any, begin: int | None) -> str:
    fields = []
    if point.attributes:
        pairs = (
            _pair(key, value) if type(value) in _PLAIN else _dump({"key": key, "value": _any(value)})
            for key, value in point.attributes.items()
        )
        fields.append('"attributes":[' + ",".join(pairs) + "]")
    if begin:
        fields.append(f'"startTimeUnixNano":"{begin}"')
    if point.time_unix_nano:
        fields.append(f'"timeUnixNano":"{point.time_unix_nano}"')
    if point.exemplars:
        fields.append(_dump_field("exemplars", [_exemplar(exemplar) for exemplar in point.exemplars]))
    return ",".join(fields)


_PLAIN = (str, bool, int)


@lru_cache(maxsize=4096, typed=True)
def _pair(key: str, value: str | bool | int) -> str:
    return _dump({"key": key, "value": _any(value)})


def _value_text(value: float) -> str:
    if isinstance(value, int):
        return f'"asInt":"{value}"'
    return f'"asDouble":{float.__repr__(value) if math.isfinite(value) else _dump(_double(value))}'


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


def _extremes(point: Any) -> str:
    return f'"min":{_dump(_double(point.min))},"max":{_dump(_double(point.max))}' if point.count else ""


def _histogram(point: HistogramDataPoint) -> str:
    return _fields(
        _point(point, point.start_time_unix_nano),
        f'"count":"{point.count}","sum":{_dump(_double(point.sum))}',
        '"bucketCounts":["' + '","'.join(map(str, point.bucket_counts)) + '"]',
        _bounds(tuple(point.explicit_bounds)),
        _extremes(point),
    )


@lru_cache(maxsize=64)
def _bounds(bounds: tuple[float, ...]) -> str:
    return f'"explicitBounds":{_dump(bounds)}'


def _exponential(point: Any) -> str:
    sides = {
        side: _filled(offset=buckets.offset, bucketCounts=[str(count) for count in buckets.bucket_counts])
        for side, buckets in (("positive", point.positive), ("negative", point.negative))
    }
    return _fields(
        _point(point, point.start_time_unix_nano),
        f'"count":"{point.count}","sum":{_dump(_double(point.sum))},"zeroCount":"{point.zero_count}"',
        _dump_field("scale", point.scale),
        *(f'"{side}":{_dump(buckets)}' for side, buckets in sides.items()),
        _extremes(point),
    )


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
