"""OTLP's requests from its JSON lines: counted, put together, cut to size.

Lines are in the protocol's own JSON, in which ids are hexadecimal; protobuf's JSON has them in base64.
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

SIGNAL_OF = {"resourceSpans": "traces", "resourceMetrics": "metrics", "resourceLogs": "logs"}
_MODULES = {"traces": ("trace", "Trace"), "metrics": ("metrics", "Metrics"), "logs": ("logs", "Logs")}
_PARTS = {
    "traces": ("resource_spans", "scope_spans", "spans"),
    "metrics": ("resource_metrics", "scope_metrics", "metrics"),
    "logs": ("resource_logs", "scope_logs", "log_records"),
}
_FRAME_BYTES = 8  # around an entity in its list, at most
_IDS = ("traceId", "spanId", "parentSpanId")
_KINDS = ("gauge", "sum", "histogram", "exponentialHistogram", "summary")


def request_class(signal: str) -> Any:
    """The protobuf class of a signal's export request."""
    return _service(signal, "Request")


def response_class(signal: str) -> Any:
    """The protobuf class of the answer to it."""
    return _service(signal, "Response")


def service_name(signal: str) -> str:
    """The full name of the grpc method that takes it."""
    module, name = _MODULES[signal]
    return f"/opentelemetry.proto.collector.{module}.v1.{name}Service/Export"


def _service(signal: str, what: str) -> Any:
    module, name = _MODULES[signal]
    package = f"opentelemetry.proto.collector.{module}.v1.{module}_service_pb2"
    return getattr(importlib.import_module(package), f"Export{name}Service{what}")


def request_of(signal: str, line: Mapping[str, Any]) -> Any:
    """The request that a line is.

    Raises:
        ValueError: it is none.
    """
    from google.protobuf import json_format

    try:
        for entity in _with_ids(signal, line):
            for name in _IDS:
                if entity.get(name):
                    entity[name] = base64.b64encode(bytes.fromhex(entity[name])).decode()
        request: Any = json_format.ParseDict(line, request_class(signal)(), ignore_unknown_fields=True)
    except (json_format.ParseError, AttributeError, TypeError) as error:
        raise ValueError(f"no OTLP: {error}") from error
    return request


def items_of(signal: str, request: Any) -> int:
    """Spans, points or log records in a request."""
    resources, scopes, entities = _PARTS[signal]
    return sum(
        _points(entity) if signal == "metrics" else 1
        for resource in getattr(request, resources)
        for scope in getattr(resource, scopes)
        for entity in getattr(scope, entities)
    )


def pieces_of(signal: str, request: Any, most_bytes: int) -> Iterator[Any]:
    """The request in pieces of at most so many bytes; a span, a record or a metric that is larger is one alone."""
    if request.ByteSize() <= most_bytes:
        yield request
        return
    resources, scopes, entities = _PARTS[signal]
    for resource in getattr(request, resources):
        for scope in getattr(resource, scopes):
            piece, size = None, 0
            for entity in getattr(scope, entities):
                more = entity.ByteSize() + _FRAME_BYTES
                if piece is None or size + more > most_bytes:
                    if piece is not None:
                        yield piece
                    piece, held = _empty_like(signal, resource, scope)
                    size = piece.ByteSize()
                held.add().CopyFrom(entity)
                size += more
            if piece is not None:
                yield piece


def _empty_like(signal: str, resource: Any, scope: Any) -> tuple[Any, Any]:
    """A request with one resource and one scope, and the list in it that is to be filled."""
    resources, scopes, entities = _PARTS[signal]
    piece = request_class(signal)()
    own_resource = getattr(piece, resources).add(schema_url=resource.schema_url)
    own_resource.resource.CopyFrom(resource.resource)
    own_scope = getattr(own_resource, scopes).add(schema_url=scope.schema_url)
    own_scope.scope.CopyFrom(scope.scope)
    return piece, getattr(own_scope, entities)


def _points(metric: Any) -> int:
    kind = metric.WhichOneof("data")
    return len(getattr(metric, kind).data_points) if kind else 0


def _with_ids(signal: str, line: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Everything in a line that has ids."""
    for resource in next((line[key] for key, of in SIGNAL_OF.items() if of == signal and key in line), ()):
        for scope in resource.get("scopeSpans" if signal == "traces" else f"scope{signal.capitalize()}", ()):
            if signal == "metrics":
                for metric in scope.get("metrics", ()):
                    yield from _exemplars(metric)
            else:
                for entity in scope.get("spans" if signal == "traces" else "logRecords", ()):
                    yield entity
                    yield from entity.get("links", ())


def _exemplars(metric: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in _KINDS:
        for point in metric.get(kind, {}).get("dataPoints", ()):
            yield from point.get("exemplars", ())
