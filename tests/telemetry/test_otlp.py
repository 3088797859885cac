"""`OTEL_EXPORTER_OTLP_*`: what each variable does, for all signals and for one."""

import concurrent.futures
import threading

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider

from gpumon.telemetry import otlp
from gpumon.telemetry.sinks import OtlpSink
from otlp_receiver import receiver

PREFIX = "OTEL_EXPORTER_OTLP_"


@pytest.fixture
def environment(monkeypatch):
    """Sets `OTEL_EXPORTER_OTLP_<NAME>`; nothing else of OpenTelemetry's is set."""
    for name in list(otlp.os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    otlp._warn.cache_clear()

    def set_all(**values):
        for name, value in values.items():
            monkeypatch.setenv(PREFIX + name, str(value))

    return set_all


@pytest.fixture
def spans():
    tracer = TracerProvider().get_tracer("gpumon")
    span = tracer.start_span("train.step")
    span.end()
    return [span]


@pytest.fixture
def grpc_receiver():
    """(endpoint, headers of each request) of a traces service over grpc."""
    headers = []

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):
            headers.append(dict(context.invocation_metadata()))
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", headers
    server.stop(0).wait()


def kinds():
    """Signal -> http or grpc."""
    return {
        signal: type(otlp.exporter(signal, None)).__module__.split(".")[4] for signal in ("traces", "metrics", "logs")
    }


def test_the_default_is_http(environment):
    """Without a variable it is http/protobuf."""
    assert set(kinds().values()) == {"http"}


def test_a_signal_s_own_protocol_goes_first(environment):
    """`…_TRACES_PROTOCOL` before `…_PROTOCOL`."""
    environment(PROTOCOL="grpc", METRICS_PROTOCOL="http/protobuf")

    assert kinds() == {"traces": "grpc", "metrics": "http", "logs": "grpc"}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PROTOCOL", "http/json", "expected http/protobuf or grpc; http/protobuf is used"),
        ("TIMEOUT", "soon", "expected seconds; 2 is used"),
        ("COMPRESSION", "zstd", "expected gzip or deflate or none; none is used"),
        ("CERTIFICATE", "/no/such/file", "the file cannot be read"),
        ("CLIENT_KEY", __file__, "there is no OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE with it"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_warning(environment, caplog, name, value, words):
    """The default holds, and three signals say it once."""
    environment(**{name: value})
    kinds()

    assert [record.getMessage() for record in caplog.records] == [f"{PREFIX}{name}={value!r}: {words}"]


@pytest.mark.parametrize("half", ["CLIENT_KEY", "CLIENT_CERTIFICATE"])
def test_half_a_pair_of_certificates_does_no_harm_over_grpc(environment, caplog, half):
    """grpc aborts the process that has a key without a certificate."""
    environment(PROTOCOL="grpc", ENDPOINT="https://127.0.0.1:9", **{half: __file__})
    kinds()

    assert [half in record.getMessage() for record in caplog.records] == [True]


def test_http_headers_compression_and_endpoint_of_one_signal(environment, spans):
    """What is said for traces goes before what is said for all; the endpoint of a signal is taken as it is."""
    with receiver() as collector:
        environment(
            ENDPOINT="http://127.0.0.1:9",
            TRACES_ENDPOINT=f"{collector.endpoint}/v1/traces",
            HEADERS="x-key=all",
            TRACES_HEADERS="x-key=traces,x-more=a%20b",
            COMPRESSION="none",
            TRACES_COMPRESSION="gzip",
        )
        assert OtlpSink(None).write_traces(spans)
    headers = collector.requests[0][1]

    assert (headers["x-key"], headers["x-more"]) == ("traces", "a b")
    assert headers["Content-Encoding"] == "gzip"


def test_the_argument_goes_before_the_endpoints_of_the_environment(environment, spans):
    """`endpoint=` is for all signals."""
    with receiver() as collector:
        environment(TRACES_ENDPOINT="http://127.0.0.1:9/v1/traces")
        assert OtlpSink(f"{collector.endpoint}/").write_traces(spans)

    assert collector.spans()


@pytest.mark.parametrize(
    ("settings", "encoding"),
    [
        ({"COMPRESSION": "gzip"}, "Gzip"),
        ({"COMPRESSION": "none"}, "NoCompression"),
        ({"COMPRESSION": "gzip", "TRACES_COMPRESSION": "none"}, "NoCompression"),
        ({"COMPRESSION": "deflate"}, "NoCompression"),
    ],
)
def test_grpc_headers_and_compression(environment, spans, grpc_receiver, settings, encoding):
    """Over grpc too; `none` is no error there."""
    endpoint, requests = grpc_receiver
    environment(PROTOCOL="grpc", ENDPOINT=endpoint, HEADERS="x-key=secret", **settings)
    assert OtlpSink(None).write_traces(spans)

    assert requests[0]["x-key"] == "secret"
    # A service in Python is not told how a request was packed.
    assert otlp._grpc("traces", None, {})["compression"].name == encoding


def test_why_a_batch_was_not_taken(environment, spans):
    """In the system's own words, not in those of the libraries in between."""
    sink = OtlpSink("http://127.0.0.1:9")

    assert not sink.write_traces(spans)
    assert sink.why == "Connection refused"


def test_grpc_without_a_scheme(environment, spans, grpc_receiver):
    """`host:port` is TLS, unless `…_INSECURE` says otherwise."""
    endpoint, requests = grpc_receiver
    environment(PROTOCOL="grpc", ENDPOINT=endpoint.removeprefix("http://"), TIMEOUT="0.5")
    assert not OtlpSink(None).write_traces(spans)
    environment(INSECURE="true")
    assert OtlpSink(None).write_traces(spans)

    assert len(requests) == 1


@pytest.mark.parametrize("settings", [{"TIMEOUT": "0.3"}, {"TIMEOUT": "30", "TRACES_TIMEOUT": "0.3"}])
def test_timeouts(environment, spans, settings):
    """For all signals, or for one."""
    environment(**settings)
    with receiver() as collector:
        collector.delay_s = 5.0
        sink = OtlpSink(collector.endpoint)
        sending = threading.Thread(target=sink.write_traces, args=(spans,), daemon=True)
        sending.start()
        sending.join(3.0)

    assert not sending.is_alive()
    assert sink.why


def test_places(environment):
    """Messages name the receiver, or the receivers."""
    assert otlp.place(None) == "http://localhost:4318"
    environment(PROTOCOL="grpc")
    assert otlp.place(None) == "http://localhost:4317"
    environment(ENDPOINT="http://a:1", TRACES_ENDPOINT="http://b:2")
    assert otlp.place(None) == "http://b:2 and http://a:1"
    assert otlp.place("http://c:3") == "http://c:3"
    assert otlp.named(None)
