"""An OTLP/HTTP receiver in this process; what arrives is decoded with OpenTelemetry's protobuf classes."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_REQUESTS = {
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}


class Receiver:
    """`endpoint` to send to; `requests` so far; `status` is the answer, `delay_s` how late it comes."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.status: dict[str, int] = dict.fromkeys(_REQUESTS, 200)
        self.delay_s = 0.0
        self.requests: list[tuple[str, dict[str, str], Any]] = []

    def spans(self) -> list[Any]:
        return [
            span
            for path, _, request in list(self.requests)
            if path == "/v1/traces"
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metrics(self) -> list[Any]:
        """Every metric of every request, in order of arrival."""
        return [
            metric
            for path, _, request in list(self.requests)
            if path == "/v1/metrics"
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def points(self, name: str) -> list[Any]:
        return [
            point
            for metric in self.metrics()
            if metric.name == name
            for point in getattr(metric, metric.WhichOneof("data")).data_points
        ]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver on a free port of the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            time.sleep(state.delay_s)
            status = state.status[self.path]
            if status == 200:
                state.requests.append((self.path, dict(self.headers), _REQUESTS[self.path].FromString(body)))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = Receiver(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def eventually(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """Wait until *condition* holds; returns what it said."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {condition}")
        time.sleep(0.01)
    return value
