"""Our OTLP JSON against OpenTelemetry's own encoders: JSON where it is installed, protobuf always."""

import base64
import json

import pytest
from google.protobuf import json_format
from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.metrics import Observation
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from gpumon.telemetry.otlp_json import logs_line, metrics_line, spans_line

RESOURCE = Resource(
    {"service.name": "träining", "a.list": ["x", "y"], "rank": 3, "big": 2**40, "ratio": 0.5, "on": True},
    "https://opentelemetry.io/schemas/1.44.0",
)
SCOPE = ("gpumon", "0.1.0", "https://opentelemetry.io/schemas/1.44.0", {"scope": "attribute", "n": 1})
ATTRIBUTES = {
    "text": 'quote " newline \n ümlaut',
    "int": -7,
    "large": 2**62,
    "float": 1.5,
    "whole": 2.0,
    "true": True,
    "false": False,
    "empty": "",
    "zero": 0,
    "strings": ["a", "b"],
    "ints": [1, 2],
    "bools": [True, False],
    "floats": [0.5, 1.0],
    "nothing": [],
}


@pytest.fixture
def spans():
    """Every field that a span can have, over two scopes."""
    exporter = InMemorySpanExporter()
    limits = SpanLimits(max_attributes=20, max_events=2, max_links=2, max_event_attributes=1, max_link_attributes=1)
    provider = TracerProvider(resource=RESOURCE, span_limits=limits)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    remote = SpanContext(
        0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", "value")])
    )
    tracer = provider.get_tracer(*SCOPE)
    with tracer.start_as_current_span("root", kind=SpanKind.SERVER, attributes=ATTRIBUTES) as root:
        root.add_event("happened", {"at": 1}, timestamp=123)
        root.add_event("bare")
        root.set_attributes({f"many.{index}": index for index in range(10)})
        with tracer.start_as_current_span("child", links=[Link(remote, {"why": "worker"}), Link(remote)]) as child:
            child.add_link(remote, {"a": 1, "b": 2})
            child.add_event("first")
            child.add_event("two", {"a": 1, "b": 2})
            child.add_event("three")
            child.set_status(Status(StatusCode.ERROR, "boom"))
        with tracer.start_as_current_span("fine", kind=SpanKind.CONSUMER) as fine:
            fine.set_status(Status(StatusCode.OK))
    around = trace.set_span_in_context(trace.NonRecordingSpan(remote))
    provider.get_tracer("other").start_span("continued", context=around, start_time=5).end(9)
    return exporter.get_finished_spans()


@pytest.fixture
def metrics():
    """Every kind of metric, with exemplars."""
    reader = InMemoryMetricReader()
    views = [View(instrument_name="exponential", aggregation=ExponentialBucketHistogramAggregation())]
    provider = MeterProvider([reader], RESOURCE, views=views)
    meter = provider.get_meter(*SCOPE)
    tracer = TracerProvider().get_tracer("t")
    with tracer.start_as_current_span("step"):
        histogram = meter.create_histogram("histogram", "s", "Time.", explicit_bucket_boundaries_advisory=[0.1, 1.0])
        for value in (0.05, 0.5, 5.0):
            histogram.record(value, {"stage": "train"})
        meter.create_histogram("whole").record(3)
        meter.create_counter("counter", "{step}").add(5, {"n": 1})
        meter.create_up_down_counter("usage", "By").add(-3)
    for value in (0.0, 1.0, 2.5, 300.0):
        meter.create_histogram("exponential").record(value)
    meter.create_observable_gauge("gauge", [lambda _: [Observation(0.93, ATTRIBUTES), Observation(0)]], "1", "Share.")
    meter.create_observable_counter("time", [lambda _: [Observation(1.25)]], "s")
    provider.get_meter("other").create_gauge("other").set(7)
    return reader.get_metrics_data()


@pytest.fixture
def logs():
    """Records with and without trace, event name, and every kind of body."""
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(RESOURCE)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logger = provider.get_logger(*SCOPE)
    logger.emit(LogRecord(timestamp=1, observed_timestamp=2, body="text", severity_text="WARN", attributes=ATTRIBUTES))
    with TracerProvider().get_tracer("t").start_as_current_span("step"):
        logger.emit(
            LogRecord(
                timestamp=3,
                body={"nested": {"k": [1, "x", None]}},
                severity_number=SeverityNumber.WARN,
                event_name="e",
            )
        )
    logger.emit(LogRecord(body=b"\x00\xffbytes", observed_timestamp=9))
    provider.get_logger("other").emit(LogRecord(timestamp=4, body=1.5, observed_timestamp=9))
    return exporter.get_finished_logs()


def test_spans_equal_the_protobuf_encoding(spans):
    """Read back as protobuf, our line of spans is what OpenTelemetry's exporter would send."""
    assert parsed(spans_line(spans), ExportTraceServiceRequest()) == encode_spans(spans)


def test_metrics_equal_the_protobuf_encoding(metrics):
    """Read back as protobuf, our line of metrics is what OpenTelemetry's exporter would send."""
    assert parsed(metrics_line(metrics), ExportMetricsServiceRequest()) == encode_metrics(metrics)


def test_logs_equal_the_protobuf_encoding(logs):
    """Read back as protobuf, our line of log records is what OpenTelemetry's exporter would send."""
    assert parsed(logs_line(logs), ExportLogsServiceRequest()) == encode_logs(logs)


@pytest.mark.parametrize(
    ("signal", "module", "function", "line"),
    [
        ("spans", "trace_encoder", "encode_spans", spans_line),
        ("metrics", "metrics_encoder", "encode_metrics", metrics_line),
        ("logs", "_log_encoder", "encode_logs", logs_line),
    ],
)
def test_lines_equal_the_json_encoding(signal, module, function, line, request):
    """Our lines hold the same JSON, field by field, as OpenTelemetry's own JSON encoder."""
    theirs = pytest.importorskip(
        f"opentelemetry.exporter.otlp.json.common.{module}",
        reason="pip install opentelemetry-exporter-otlp-json-common",
    )
    data = request.getfixturevalue(signal)

    assert json.loads(line(data)) == json.loads(getattr(theirs, function)(data).to_json())


def test_a_line_is_one_line(spans, metrics, logs):
    """Newlines in texts are escaped: every batch is exactly one line of a file."""
    for line in (spans_line(spans), metrics_line(metrics), logs_line(logs)):
        assert "\n" not in line
        json.loads(line)


def test_numbers_that_json_lacks():
    """Infinities and NaN are the strings of the proto3 JSON mapping, which every reader takes."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("t").start_span("s", attributes={"up": float("inf"), "down": [-float("inf")]}).end()
    provider.get_tracer("t").start_span("nan", attributes={"nan": float("nan")}).end()
    infinite, nan = exporter.get_finished_spans()

    assert parsed(spans_line([infinite]), ExportTraceServiceRequest()) == encode_spans([infinite])
    assert '{"doubleValue":"NaN"}' in spans_line([nan])


def parsed(line, message):
    """A line as protobuf. Trace and span ids are hex in OTLP JSON, where proto3 JSON has base64."""
    return json_format.Parse(json.dumps(with_base64_ids(json.loads(line))), message)


def with_base64_ids(value):
    if isinstance(value, list):
        return [with_base64_ids(item) for item in value]
    if isinstance(value, dict):
        return {
            key: base64.b64encode(bytes.fromhex(item)).decode()
            if key in ("traceId", "spanId", "parentSpanId")
            else with_base64_ids(item)
            for key, item in value.items()
        }
    return value
