"""The real OpenTelemetry Collector takes our OTLP, and its files hold what our run directory holds."""

import os
import shutil
import signal
import socket
import subprocess
import urllib.request

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gpumon.telemetry.files import RunFiles
from gpumon.telemetry.sinks import FileSink, OtlpSink
from otlp_receiver import eventually
from run_lines import points, spans

OTELCOL = os.environ.get("OTELCOL") or shutil.which("otelcol") or shutil.which("otelcol-contrib")

pytestmark = pytest.mark.skipif(
    OTELCOL is None,
    reason="no Collector: put otelcol on PATH or set OTELCOL (opentelemetry.io/docs/collector/install)",
)

CONFIG = """
receivers:
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{http}"}}, grpc: {{endpoint: "127.0.0.1:{grpc}"}}}}}}
exporters:
  file/traces: {{path: {folder}/traces.0.1.jsonl, flush_interval: 50ms}}
  file/metrics: {{path: {folder}/metrics.0.1.jsonl, flush_interval: 50ms}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [file/traces]}}
    metrics: {{receivers: [otlp], exporters: [file/metrics]}}
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def collector(tmp_path):
    """A running Collector: (http endpoint, grpc endpoint, the folder of its file exporters, stop)."""
    folder = tmp_path / "collector"
    folder.mkdir()
    http, grpc = free_port(), free_port()
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, http=http, grpc=grpc))
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([OTELCOL, "--config", folder / "config.yaml"], stdout=log, stderr=log)

    def answers():
        assert process.poll() is None, (folder / "log").read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{http}/", timeout=1)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def stop():
        process.send_signal(signal.SIGTERM)
        process.wait(20)

    eventually(answers, timeout_s=20)
    yield f"http://127.0.0.1:{http}", f"http://127.0.0.1:{grpc}", folder, stop
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_collector_gets_every_step(program, collector, protocol):
    """Every span and the exact sums arrive, over http with gzip and over grpc."""
    http, grpc, folder, stop = collector
    text = """
        import time
        t = Training()
        for _ in range(500):
            t.step(); time.sleep(0.001)
        assert t.close()
    """
    program.run(
        text,
        OTEL_EXPORTER_OTLP_ENDPOINT=http if protocol.startswith("http") else grpc,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_METRIC_EXPORT_INTERVAL="100",
    )
    stop()
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


def test_the_collector_writes_what_our_files_hold(collector, tmp_path):
    """The same batches into a run directory and through the Collector are the same, field by field."""
    http, _, folder, stop = collector
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
    sinks = FileSink(RunFiles(own, 0)), OtlpSink(http)
    data, ended = reader.get_metrics_data(), exporter.get_finished_spans()
    for sink in sinks:
        assert sink.write_metrics(data)
        assert sink.write_traces(ended)
        sink.close()
    stop()

    assert len(spans(own)) == 40
    assert spans(own) == spans(folder)
    for name in ("seconds", "steps", "share"):
        assert len(points(own, name)) == 1
        assert points(own, name) == points(folder, name)
