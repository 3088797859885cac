"""The real OpenTelemetry Collector takes our OTLP, and its files hold what our run directory holds."""

import json
import os
import shutil
import statistics
import time

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gpumon.telemetry.files import RunFiles
from gpumon.telemetry.run_json import read_run
from gpumon.telemetry.sinks import FileSink, OtlpSink
from otel_collector import OTELCOL, Collector, make_certificates
from run_lines import all_points, assert_same, points, spans

OUTAGE_S = float(os.environ.get("GPUMON_TEST_OUTAGE_S", "5"))

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        OTELCOL is None,
        reason="no Collector: put otelcol on PATH or set OTELCOL (opentelemetry.io/docs/collector/install)",
    ),
]

PROTOCOLS = pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])

STEPS = """
    import time
    t = Training()
    for _ in range(500):
        t.step(); time.sleep(0.001)
    assert t.close()
"""

TRAINING = """
import json, pathlib, sys, time
import gpumon
gpumon.instrument(service_name="demo", spans="all", collectors=["host", "cpu"])
def batches():
    until = time.time() + float(sys.argv[1]) if len(sys.argv) > 1 else 1e12
    while time.time() < until and not pathlib.Path("stop").exists():
        yield [0] * 4
took = []
for batch in gpumon.steps(batches()):
    began = time.perf_counter()
    with gpumon.phase("forward"):
        sum(range(50_000)); time.sleep(0.01)
    took.append((time.time(), time.perf_counter() - began))
began = time.perf_counter()
gpumon.uninstrument()
print(json.dumps({"steps": took, "exit_s": time.perf_counter() - began}))
"""


@pytest.fixture
def make_collector(tmp_path):
    """Makes Collectors that run: a plain one, or one with TLS, or with a bearer token."""
    made = []

    def make(**options):
        made.append(Collector(tmp_path / f"collector{len(made)}", **options))
        made[-1].start()
        return made[-1]

    yield make
    for collector in made:
        collector.kill()


@pytest.fixture
def collector(make_collector):
    return make_collector()


def settings(collector, protocol, **more):
    """Variables that send everything to *collector*."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http if protocol.startswith("http") else collector.grpc,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        **more,
    }


@PROTOCOLS
def test_the_collector_gets_every_step(program, collector, protocol):
    """Every span and the exact sums arrive, over http and over grpc, with gzip."""
    more = {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip", "OTEL_METRIC_EXPORT_INTERVAL": "100"}
    program.run(STEPS, **settings(collector, protocol, **more))
    collector.stop()

    assert_500_steps(collector.folder)


def assert_500_steps(folder):
    numbers = [
        int(next(item["value"]["intValue"] for item in span["attributes"] if item["key"] == "gpumon.step.number"))
        for span in spans(folder)
    ]
    assert sorted(numbers) == list(range(1, 501))
    assert points(folder, "gpumon.step.count")[-1]["asInt"] == "500"
    histogram = points(folder, "gpumon.step.duration")[-1]
    assert histogram["count"] == "500"
    assert sum(int(count) for count in histogram["bucketCounts"]) == 500
    assert histogram["sum"] == pytest.approx(500 * 0.015)


def test_a_protocol_per_signal(program, collector):
    """Traces over grpc, the rest over http: each signal has its own protocol and endpoint."""
    program.run(
        STEPS,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.http,
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=collector.grpc,
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="grpc",
    )
    collector.stop()

    assert_500_steps(collector.folder)


@PROTOCOLS
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_tls_with_client_certificates_and_a_token(program, make_collector, tmp_path, protocol):
    """A CA of our own, a client certificate, a bearer token and gzip: all arrives; without them nothing does."""
    certificates = make_certificates(tmp_path / "tls")
    collector = make_collector(tls=certificates, token="secret")
    known = {
        "OTEL_EXPORTER_OTLP_CERTIFICATE": f"{certificates}/ca.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": f"{certificates}/client.key",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": f"{certificates}/client.pem",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20secret",
    }
    other = {"REQUESTS_CA_BUNDLE": f"{certificates}/server.pem"}  # a variable of `requests` for all it does
    refused = []
    for left_out in known:
        some = {name: value for name, value in known.items() if name != left_out}
        if left_out == "OTEL_EXPORTER_OTLP_CLIENT_KEY":  # a certificate without its key
            some.pop("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")
        _, errors = program.run(
            "t = Training(); t.step(); assert not t.close()", **settings(collector, protocol, **some)
        )
        refused.append(errors)
    assert not spans(collector.folder)
    assert all("gpumon ends with" in errors for errors in refused)
    known["OTEL_EXPORTER_OTLP_COMPRESSION"] = "gzip"
    program.run(STEPS, **settings(collector, protocol, GPUMON_EXPORT="otlp+file", **known, **other))
    collector.stop()
    (run,) = program.runs

    assert_500_steps(collector.folder)
    assert_same(run, collector.folder)


def test_certificates_of_one_signal(program, make_collector, tmp_path):
    """A file that only traces name, beside files that all signals share, over grpc."""
    certificates = make_certificates(tmp_path / "tls")
    collector = make_collector(tls=certificates)
    program.run(
        "t = Training(); t.step(); t.close()",
        **settings(collector, "grpc"),
        OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE=f"{certificates}/ca.pem",
        OTEL_EXPORTER_OTLP_CLIENT_KEY=f"{certificates}/client.key",
        OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=f"{certificates}/client.pem",
    )
    collector.stop()

    assert len(spans(collector.folder)) == 1
    assert not points(collector.folder, "gpumon.step.count")


@PROTOCOLS
def test_a_run_recorded_and_sent_at_once_agree(program, collector, protocol):
    """A real training with `otlp+file`: the Collector's files hold what the run directory holds."""
    more = {"GPUMON_EXPORT": "otlp+file", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
    program.run(f"import sys; sys.argv.append('3')\n{TRAINING}", **settings(collector, protocol, **more))
    collector.stop()
    (run,) = program.runs

    assert_same(run, collector.folder)
    assert read_run(run)["ended"]
    steps = {span["spanId"]: span for span in spans(collector.folder) if span["name"] == "train.step"}
    for name in ("gpumon.step.duration", "gpumon.data.wait.duration"):
        found = [exemplar for point in points(collector.folder, name) for exemplar in point.get("exemplars", ())]
        assert len(found) > 3
        for exemplar in found:
            step = steps[exemplar["spanId"]]
            assert exemplar["traceId"] == step["traceId"]
            assert exemplar["timeUnixNano"] == step["endTimeUnixNano"]
            assert 0 <= exemplar["asDouble"] <= seconds(step) + 1e-6
            assert name == "gpumon.data.wait.duration" or exemplar["asDouble"] == pytest.approx(seconds(step))


def seconds(span):
    return (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) / 1e9


@PROTOCOLS
@pytest.mark.timeout(300 + 4 * OUTAGE_S)
def test_an_outage_of_the_collector(program, collector, protocol):
    """Stopped in mid-run and started again: the training goes on at its pace, and nothing is lost or doubled.

    `GPUMON_TEST_OUTAGE_S` makes the outage longer.
    """
    process = program.start(TRAINING, **settings(collector, protocol, GPUMON_EXPORT="otlp+file"))
    time.sleep(2.5)
    collector.stop()
    began = time.time()
    time.sleep(OUTAGE_S)
    collector.start()
    ended = time.time()
    time.sleep(2.5)
    (program.folder / "stop").touch()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    collector.stop()
    told = json.loads(output.splitlines()[-1])
    (run,) = program.runs

    took_in, took_out = (
        [took for at, took in told["steps"][20:] if (began < at < ended) is inside] for inside in (True, False)
    )
    ratio = statistics.median(took_in) / statistics.median(took_out)
    print(
        f"outage {OUTAGE_S:g} s over {protocol}: {len(took_in)} steps in it, step time x{ratio:.3f}, "
        f"exit {told['exit_s']:.2f} s, {len(spans(collector.folder))} of {len(spans(run))} spans and "
        f"{len(list(all_points(collector.folder)))} of {len(list(all_points(run)))} points arrived"
    )
    assert errors.count("gpumon cannot deliver") == 1
    assert_same(run, collector.folder)
    assert ratio < 1.2
    assert told["exit_s"] < 3


@PROTOCOLS
def test_a_collector_that_never_comes_back(program, collector, protocol):
    """The exit is at most 3 s later; the run directory is whole."""
    process = program.start(TRAINING, **settings(collector, protocol, GPUMON_EXPORT="otlp+file"))
    time.sleep(3)
    collector.stop()
    time.sleep(2)
    (program.folder / "stop").touch()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    told = json.loads(output.splitlines()[-1])
    (run,) = program.runs

    print(f"never back over {protocol}: exit {told['exit_s']:.2f} s; {errors.strip().splitlines()[-1]}")
    assert told["exit_s"] < 3
    assert read_run(run)["ended"]
    assert len([span for span in spans(run) if span["name"] == "train.step"]) == len(told["steps"])
    assert 0 < len(spans(collector.folder)) < len(spans(run))


def test_the_collector_writes_what_our_files_hold(collector, tmp_path):
    """The same batches into a run directory and through the Collector are the same, field by field."""
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = tracer_provider.get_tracer("gpumon", "0.1", "https://opentelemetry.io/schemas/1.44.0")
    meter = MeterProvider([reader]).get_meter("gpumon")
    for number in range(20):
        with tracer.start_as_current_span("train.step", attributes={"gpumon.step.number": number, "ratio": 0.5}):
            tracer.start_span("data.wait").end()
            meter.create_histogram("seconds", "s").record(number / 100, {"stage": "train"})
    meter.create_counter("steps").add(20)
    meter.create_gauge("share").set(0.25, {"device": "sda"})
    own = tmp_path / "own"
    own.mkdir()
    sinks = FileSink(RunFiles(own, 0)), OtlpSink(collector.http)
    data, ended = reader.get_metrics_data(), exporter.get_finished_spans()
    for sink in sinks:
        assert sink.write_metrics(data)
        assert sink.write_traces(ended)
        sink.close()
    collector.stop()

    assert len(spans(own)) == 40
    assert spans(own) == spans(collector.folder)
    for name in ("seconds", "steps", "share"):
        assert len(points(own, name)) == 1
        assert points(own, name) == points(collector.folder, name)
