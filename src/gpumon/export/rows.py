"""OTLP lines as rows of the tables of the Collector's ClickHouse exporter, value by value as that one writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

Line = Mapping[str, Any]
Row = tuple[Any, ...]

_SPAN_KINDS = ("Unspecified", "Internal", "Server", "Client", "Producer", "Consumer")
_STATUSES = ("Unset", "Ok", "Error")
_TEMPORALITIES = ("UNSPECIFIED", "DELTA", "CUMULATIVE")


def rows_of(signal: str, line: Line) -> Iterator[tuple[str, Row]]:
    """(table, values in the order of `tables.COLUMNS`) of everything in a line; times in nanoseconds.

    Raises:
        ValueError: it is no OTLP.
    """
    try:
        yield from {"traces": _spans, "metrics": _metrics, "logs": _logs}[signal](line)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"no OTLP: {error!r}") from error


def _spans(line: Line) -> Iterator[tuple[str, Row]]:
    for resource in line["resourceSpans"]:
        speaker = as_map(resource.get("resource", {}).get("attributes"))
        service = speaker.get("service.name", "")
        for scoped in resource.get("scopeSpans", ()):
            scope = scoped.get("scope", {})
            name, version = scope.get("name", ""), scope.get("version", "")
            for span in scoped.get("spans", ()):
                begin, end = _int(span.get("startTimeUnixNano")), _int(span.get("endTimeUnixNano"))
                status = span.get("status", {})
                events, links = span.get("events", ()), span.get("links", ())
                yield (
                    "otel_traces",
                    (
                        begin,
                        span.get("traceId", ""),
                        span.get("spanId", ""),
                        span.get("parentSpanId", ""),
                        span.get("traceState", ""),
                        span.get("name", ""),
                        _SPAN_KINDS[_enum(span.get("kind"), "SPAN_KIND_", _SPAN_KINDS)],
                        service,
                        speaker,
                        name,
                        version,
                        as_map(span.get("attributes")),
                        max(0, end - begin),
                        _STATUSES[_enum(status.get("code"), "STATUS_CODE_", _STATUSES)],
                        status.get("message", ""),
                        [_int(event.get("timeUnixNano")) for event in events],
                        [event.get("name", "") for event in events],
                        [as_map(event.get("attributes")) for event in events],
                        [link.get("traceId", "") for link in links],
                        [link.get("spanId", "") for link in links],
                        [link.get("traceState", "") for link in links],
                        [as_map(link.get("attributes")) for link in links],
                    ),
                )


def _logs(line: Line) -> Iterator[tuple[str, Row]]:
    for resource in line["resourceLogs"]:
        speaker = as_map(resource.get("resource", {}).get("attributes"))
        for scoped in resource.get("scopeLogs", ()):
            scope = scoped.get("scope", {})
            for record in scoped.get("logRecords", ()):
                yield (
                    "otel_logs",
                    (
                        _int(record.get("timeUnixNano")) or _int(record.get("observedTimeUnixNano")),
                        record.get("traceId", ""),
                        record.get("spanId", ""),
                        _int(record.get("flags")) & 0xFF,
                        record.get("severityText", ""),
                        _int(record.get("severityNumber")),
                        speaker.get("service.name", ""),
                        as_text(record.get("body", {})),
                        resource.get("schemaUrl", ""),
                        speaker,
                        scoped.get("schemaUrl", ""),
                        scope.get("name", ""),
                        scope.get("version", ""),
                        as_map(scope.get("attributes")),
                        as_map(record.get("attributes")),
                        record.get("eventName", ""),
                    ),
                )


def _metrics(line: Line) -> Iterator[tuple[str, Row]]:
    for resource in line["resourceMetrics"]:
        speaker = as_map(resource.get("resource", {}).get("attributes"))
        service = speaker.get("service.name", "")
        for scoped in resource.get("scopeMetrics", ()):
            scope = scoped.get("scope", {})
            common = (
                speaker,
                resource.get("schemaUrl", ""),
                scope.get("name", ""),
                scope.get("version", ""),
                as_map(scope.get("attributes")),
                _int(scope.get("droppedAttributesCount")),
                scoped.get("schemaUrl", ""),
                service,
            )
            for metric in scoped.get("metrics", ()):
                described = (metric["name"], metric.get("description", ""), metric.get("unit", ""))
                for kind, (table, encode) in _KINDS.items():
                    for point in metric.get(kind, {}).get("dataPoints", ()):
                        times = _int(point.get("startTimeUnixNano")), _int(point.get("timeUnixNano"))
                        given = as_map(point.get("attributes"))
                        yield table, (*common, *described, given, *times, *encode(metric[kind], point))


def _gauge(_: Line, point: Line) -> Row:
    return (_value(point), _int(point.get("flags")), *_exemplars(point))


def _sum(metric: Line, point: Line) -> Row:
    return (*_gauge(metric, point), _temporality(metric), bool(metric.get("isMonotonic")))


def _histogram(metric: Line, point: Line) -> Row:
    return (
        _int(point.get("count")),
        _float(point.get("sum")),
        [_int(count) for count in point.get("bucketCounts", ())],
        [_float(bound) for bound in point.get("explicitBounds", ())],
        *_exemplars(point),
        *_end(metric, point),
    )


def _exponential(metric: Line, point: Line) -> Row:
    sides = (point.get(side, {}) for side in ("positive", "negative"))
    buckets = [(_int(side.get("offset")), [_int(count) for count in side.get("bucketCounts", ())]) for side in sides]
    return (
        _int(point.get("count")),
        _float(point.get("sum")),
        _int(point.get("scale")),
        _int(point.get("zeroCount")),
        *(value for side in buckets for value in side),
        *_exemplars(point),
        *_end(metric, point),
    )


def _summary(_: Line, point: Line) -> Row:
    quantiles = point.get("quantileValues", ())
    return (
        _int(point.get("count")),
        _float(point.get("sum")),
        [_float(each.get("quantile")) for each in quantiles],
        [_float(each.get("value")) for each in quantiles],
        _int(point.get("flags")),
    )


_KINDS = {
    "gauge": ("otel_metrics_gauge", _gauge),
    "sum": ("otel_metrics_sum", _sum),
    "histogram": ("otel_metrics_histogram", _histogram),
    "exponentialHistogram": ("otel_metrics_exponential_histogram", _exponential),
    "summary": ("otel_metrics_summary", _summary),
}


def _end(metric: Line, point: Line) -> Row:
    return _int(point.get("flags")), _float(point.get("min")), _float(point.get("max")), _temporality(metric)


def _temporality(metric: Line) -> int:
    return _enum(metric.get("aggregationTemporality"), "AGGREGATION_TEMPORALITY_", _TEMPORALITIES)


def _exemplars(point: Line) -> Row:
    exemplars = point.get("exemplars", ())
    return (
        [as_map(each.get("filteredAttributes")) for each in exemplars],
        [_int(each.get("timeUnixNano")) for each in exemplars],
        [_value(each) for each in exemplars],
        [each.get("spanId") or "0" * 16 for each in exemplars],
        [each.get("traceId") or "0" * 32 for each in exemplars],
    )


def _value(point: Line) -> float:
    return float(_int(point["asInt"])) if "asInt" in point else _float(point.get("asDouble"))


def _int(value: Any) -> int:
    return int(value) if value else 0


def _float(value: Any) -> float:
    return float(value) if value else 0.0


def _enum(value: Any, prefix: str, names: Sequence[str]) -> int:
    """Its number, whether it is written as one or as a name."""
    if isinstance(value, str) and not value.isdigit():
        return [name.upper() for name in names].index(value.removeprefix(prefix))
    return min(_int(value), len(names) - 1)


def as_map(attributes: Sequence[Line] | None) -> dict[str, str]:
    """Attributes as text by key."""
    return {each["key"]: as_text(each.get("value", {})) for each in attributes or ()}


def as_text(value: Line) -> str:
    """An AnyValue as the Collector makes text of it."""
    if "stringValue" in value:
        return str(value["stringValue"])
    if "intValue" in value:
        return str(value["intValue"])
    if "boolValue" in value:
        return "true" if value["boolValue"] else "false"
    if "doubleValue" in value:
        return _float_text(float(value["doubleValue"]))
    if "bytesValue" in value:
        return str(value["bytesValue"])
    if "arrayValue" in value or "kvlistValue" in value:
        return _json_text(value)
    return ""


def _json_text(value: Line) -> str:
    """An AnyValue as JSON, keys in order."""
    if "arrayValue" in value:
        return f"[{','.join(_json_text(each) for each in value['arrayValue'].get('values', ()))}]"
    if "kvlistValue" in value:
        pairs = {each["key"]: each.get("value", {}) for each in value["kvlistValue"].get("values", ())}
        return "{" + ",".join(f"{_quoted(key)}:{_json_text(pairs[key])}" for key in sorted(pairs)) + "}"
    if "stringValue" in value or "bytesValue" in value:
        return _quoted(as_text(value))
    return as_text(value) or "null"


_quoted = json.JSONEncoder(ensure_ascii=False).encode


def _float_text(value: float) -> str:
    """The shortest text that is this number, without an exponent but for very small and large ones."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else '+'}Inf"
    text = format(Decimal(repr(value)).normalize(), "f")
    if value and not 1e-6 <= abs(value) < 1e21:
        digits, _, exponent = repr(value).partition("e")
        number = int(exponent) if exponent else 0
        return f"{digits.removesuffix('.0')}e{'-' if number < 0 else '+'}{abs(number)}" if exponent else text
    return text
