"""Who gets the signals: the application's providers, an OTLP receiver, a run directory, or nobody."""

import itertools
import json
import time

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gpumon.telemetry.instruments import HUB
from gpumon.telemetry.run_json import read_run
from otlp_receiver import eventually, receiver
from run_lines import points, resource, spans
from toy_training import Training

PROVIDERS = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()

def set_tracer_provider():
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

def set_providers():
    set_tracer_provider()
    metrics.set_meter_provider(MeterProvider([reader]))

def show():
    data = reader.get_metrics_data()
    found = {
        metric.name: [
            (point.value if hasattr(point, "value") else point.count, dict(point.attributes))
            for point in metric.data.data_points
        ]
        for item in (data.resource_metrics if data else [])
        for scoped in item.scope_metrics
        for metric in scoped.metrics
    }
    spans = [dict(span.attributes) for span in exporter.get_finished_spans()]
    import json
    print(json.dumps({"metrics": found, "spans": spans}))
"""


@pytest.fixture
def application():
    """Providers of an application: (reader, span exporter, arguments)."""
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield reader, exporter, {"tracer_provider": tracer_provider, "meter_provider": MeterProvider([reader])}
    HUB.detach()


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Export every 100 ms; run directories below an empty folder, which is returned."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "GPUMON_EXPORT", "GPUMON_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_plain_process_writes_a_run_directory(program):
    """Without providers and without an endpoint a directory under gpumon-runs/ holds spans and metrics."""
    program.run("t = Training(service_name='demo')\nt.step(); t.step()\nassert t.close()")
    (run,) = program.runs

    assert [span["name"] for span in spans(run)] == ["train.step"] * 2
    assert points(run, "gpumon.step.count")[-1]["asInt"] == "2"
    assert points(run, "gpumon.step.duration")[-1]["count"] == "2"
    assert resource(run)["service.name"] == "demo"
    assert resource(run)["gpumon.run.id"] == read_run(run)["id"]
    assert read_run(run)["ended"]


def test_own_providers_are_never_global(program):
    """Recording leaves the global providers to the application."""
    program.run("""
        from opentelemetry import _logs, metrics, trace
        t = Training(); t.step(); t.close()
        providers = trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider()
        for provider in providers:
            assert "Proxy" in type(provider).__name__, provider
    """)


def test_given_providers_get_everything(application, quick):
    """Providers given as arguments get spans, counters and histograms, and no run directory appears."""
    reader, exporter, providers = application
    training = Training(**providers)
    training.step()
    training.step(3.0)
    assert training.close()

    found = values(reader)
    assert [span.attributes["gpumon.step.number"] for span in exporter.get_finished_spans()] == [1, 2]
    assert found["gpumon.step.duration"].count == 2
    assert found["gpumon.step.duration"].sum == pytest.approx(3.015)
    assert not list(quick.iterdir())


def test_points_and_spans_of_other_providers_say_run_and_rank(application, quick, monkeypatch):
    """The application's resource knows nothing of ranks: each point and span carries run id and rank."""
    monkeypatch.setenv("RANK", "3")
    reader, exporter, providers = application
    training = Training(**providers)
    training.step()
    run_id = training.output.run_id
    found = values(reader)
    training.close()

    for attributes in (found["gpumon.step.count"].attributes, exporter.get_finished_spans()[0].attributes):
        assert attributes["gpumon.run.id"] == run_id
        assert attributes["gpumon.rank"] == 3


def test_global_providers_set_before(program):
    """Global providers that stand already are used; nothing is written to the disk."""
    output, _ = program.run(PROVIDERS + "set_providers()\nt = Training()\nt.step(); t.close(); show()")
    found = json.loads(output)

    assert len(found["spans"]) == 1
    assert found["metrics"]["gpumon.step.duration"][0][0] == 1
    assert not program.runs


def test_global_providers_set_after_instrument_and_before_training(program):
    """An application may set its providers after instrument(): same signals, and no run directory at all."""
    text = """
        import time
        t = Training()
        time.sleep(0.6)  # three export windows go by
        set_providers()
        t.step(); t.step()
        from opentelemetry import metrics
        import threading
        while t.collections < 8: time.sleep(0.05)
        t.close()
    """
    output, _ = program.run(
        PROVIDERS + dedented(text) + "from gpumon.telemetry.instruments import HUB\nHUB.attach(t._observe)\nshow()"
    )
    found = json.loads(output)

    assert [span["gpumon.step.number"] for span in found["spans"]] == [1, 2]
    assert found["metrics"]["gpumon.step.count"][0][0] == 2
    assert found["metrics"]["gpumon.step.duration"][0][0] == 2
    assert not program.runs


def test_global_providers_set_during_training(program):
    """Providers set during a training take over: ours stops, and run.json says where the rest went."""
    text = """
        import time
        t = Training()
        t.step()
        before = t.collections
        while t.collections < before + 3: time.sleep(0.02)
        set_providers()
        before = t.collections
        while t.collections < before + 3: time.sleep(0.02)
        t.step(); t.step()
        before = t.collections
        while t.collections < before + 3: time.sleep(0.02)
        show(); t.close()
    """
    output, _ = program.run(PROVIDERS + dedented(text))
    found = json.loads(output)
    (run,) = program.runs

    assert [span["gpumon.step.number"] for span in found["spans"]] == [2, 3]
    assert found["metrics"]["gpumon.step.count"][0][0] == 3
    assert found["metrics"]["gpumon.step.duration"][0][0] == 3
    assert len(spans(run)) == 1
    assert {point["asInt"] for point in points(run, "gpumon.step.count")} == {"1"}
    assert "providers of its own" in read_run(run)["not_recorded"][0]
    assert read_run(run)["ended"]


def test_only_a_tracer_provider(program):
    """An application with tracing alone gets the spans; metrics have no home but the run directory."""
    output, _ = program.run(PROVIDERS + "set_tracer_provider()\nt = Training()\nt.step(); t.close(); show()")
    (run,) = program.runs

    assert len(json.loads(output)["spans"]) == 1
    assert points(run, "gpumon.step.count")
    assert not spans(run)


@pytest.mark.parametrize("settings", ["export='file'", "run_dir='here'"])
def test_a_run_directory_that_was_asked_for_is_written_beside_the_applications_providers(program, settings):
    """`gpumon run` of a program with OpenTelemetry of its own: it gets its signals, the report its run."""
    output, _ = program.run(PROVIDERS + f"set_providers()\nt = Training({settings})\nt.step(); show(); t.close()")
    (run,) = program.runs or [program.folder / "here"]

    assert json.loads(output)["metrics"]["gpumon.step.count"][0][0] == 1
    assert len(json.loads(output)["spans"]) == len(spans(run)) == 1
    assert points(run, "gpumon.step.count")[-1]["asInt"] == "1"
    assert not any(item["key"] == "gpumon.rank" for item in points(run, "gpumon.step.count")[-1]["attributes"])


def test_export_none(program):
    """`none` writes nothing, says that nobody listens, and still serves providers that come later."""
    text = """
        t = Training(export="none")
        t.step()
        assert not t.output.is_listening
        assert t.output.tracers() == []
        set_providers()
        assert t.output.is_listening
        t.step(); show(); t.close()
    """
    output, _ = program.run(PROVIDERS + dedented(text))

    assert len(json.loads(output)["spans"]) == 1
    assert not program.runs


def test_an_endpoint_means_otlp(quick):
    """With an endpoint the signals go there, and nowhere else."""
    with receiver() as collector:
        training = Training(endpoint=collector.endpoint)
        training.step()
        assert training.close()

    assert [span.name for span in collector.spans()] == ["train.step"]
    assert collector.points("gpumon.step.count")[-1].as_int == 1
    assert collector.points("gpumon.step.duration")[-1].count == 1
    assert not list(quick.iterdir())


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_otlp_from_the_environment(program, compression):
    """`OTEL_EXPORTER_OTLP_*` keep their meaning: endpoint, headers, compression."""
    with receiver() as collector:
        program.run(
            "t = Training()\nt.step(); assert t.close()",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_EXPORTER_OTLP_HEADERS="x-key=secret",
            OTEL_EXPORTER_OTLP_COMPRESSION=compression,
        )

    headers = collector.requests[0][1]
    assert headers["x-key"] == "secret"
    assert headers.get("Content-Encoding") == (compression if compression == "gzip" else None)
    assert collector.spans()
    assert not program.runs


def test_delta_temporality_for_otlp(program):
    """A receiver that wants deltas gets them, of counters and of our histograms."""
    text = """
        import time
        t = Training()
        for _ in range(3):
            t.step()
            before = t.collections
            while t.collections < before + 2: time.sleep(0.02)
        assert t.close()
    """
    with receiver() as collector:
        program.run(
            text,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta",
        )

    assert sum(point.count for point in collector.points("gpumon.step.duration")) == 3
    assert sum(point.as_int for point in collector.points("gpumon.step.count")) == 3


def test_a_signal_that_otel_switches_off(program):
    """`OTEL_TRACES_EXPORTER=none` keeps spans out of our own export too."""
    program.run("t = Training()\nt.step(); t.close()", OTEL_TRACES_EXPORTER="none")
    (run,) = program.runs

    assert not spans(run)
    assert points(run, "gpumon.step.count")


def test_sdk_disabled(program):
    """`OTEL_SDK_DISABLED=true` switches everything off, also what the application set."""
    text = "set_providers()\nt = Training(export='file'); t.step(); t.close()\n"
    text += "assert t.output.is_disabled; show()"
    output, _ = program.run(PROVIDERS + text, OTEL_SDK_DISABLED="true")

    assert json.loads(output) == {"metrics": {}, "spans": []}
    assert not list(program.folder.iterdir())


def test_two_runs_with_one_instrumentation_each(application, quick):
    """After uninstrument and instrument again the same provider gets one series, with the new run's id."""
    reader, _, providers = application
    first = Training(**providers)
    first.step()
    first.close()
    second = Training(**providers)
    second.step()
    found = points_of(reader, "gpumon.step.count")
    second.close()

    assert [point.attributes["gpumon.run.id"] for point in found] == [second.output.run_id]


def test_a_directory_that_cannot_be_written_is_one_warning(quick, caplog):
    """An unwritable place costs one line in the log; the training goes on."""
    (quick / "gpumon-runs").write_text("a file is in the way")
    training = Training()
    for _ in range(3):
        training.step()
        before = training.collections
        eventually(lambda before=before: training.collections > before + 1)
    training.close()

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "GPUMON_RUN_DIR" in caplog.text


def test_intervals(program):
    """Metrics go out every second at first; `OTEL_METRIC_EXPORT_INTERVAL` sets another interval."""
    text = "import time\nt = Training(export='file')\nt.step()\ntime.sleep(1.7)\nt.close()"
    processes = [program.start(text, OTEL_METRIC_EXPORT_INTERVAL=value) for value in ("", "300", "soon")]
    for process in processes:
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
    counts = [len(points(run, "gpumon.step.count")) for run in program.runs]

    assert sorted(counts) == [2, 2, 6]


def test_events_go_where_the_rest_goes(quick):
    """A log record with an event name is written beside spans and metrics."""
    training = Training(export="file")
    training.output.event("gpumon.run.started", "started", {"gpumon.rank": 0})
    training.close()
    (run,) = (quick / "gpumon-runs").iterdir()

    assert '"eventName":"gpumon.run.started"' in next(run.glob("logs.*")).read_text()


def test_instrumented_http_clients_see_no_export(program):
    """The requests of our own export are not traced by an application that traces its HTTP client."""
    text = """
        import opentelemetry.instrumentation.utils as utils, requests
        sent = []
        original = requests.Session.send
        def send(*arguments, **options):
            sent.append(utils.is_instrumentation_enabled())
            return original(*arguments, **options)
        requests.Session.send = send
        t = Training(); t.step(); assert t.close()
        assert sent and not any(sent), sent
    """
    with receiver() as collector:
        program.run(text, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)


def test_opening_costs_the_caller_little(quick):
    """instrument() happens in the training thread: no exporter is imported and nothing is written there."""
    began = time.perf_counter()
    training = Training(endpoint="http://127.0.0.1:9")
    took = time.perf_counter() - began
    training.close()

    assert took < 0.25


def values(reader):
    """Name -> its only point."""
    return {
        metric.name: metric.data.data_points[0]
        for item in reader.get_metrics_data().resource_metrics
        for scoped in item.scope_metrics
        for metric in scoped.metrics
    }


def points_of(reader, name):
    return [
        point
        for item in reader.get_metrics_data().resource_metrics
        for scoped in item.scope_metrics
        for metric in scoped.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]


def dedented(text):
    import textwrap

    return textwrap.dedent(text)


def test_resource_of_the_environment(program):
    """`OTEL_RESOURCE_ATTRIBUTES` adds to our resource; the argument names the service."""
    program.run(
        "t = Training(service_name='mine')\nt.step(); t.close()",
        OTEL_RESOURCE_ATTRIBUTES="team=vision,service.name=theirs",
    )

    found = resource(program.runs[0])
    assert found["team"] == "vision"
    assert found["service.name"] == "mine"
    assert Resource(found)


@pytest.mark.parametrize(
    ("export", "signals"), [("otlp+file", {}), ("file + auto", {}), ("AUTO+file", {"run_dir": "here"})]
)
def test_a_run_directory_and_otlp_at_once(quick, export, signals):
    """Both get every span, every point and every event, the very same ones."""
    with receiver() as collector:
        training = Training(endpoint=collector.endpoint, export=export, **signals)
        for _ in range(3):
            training.step()
            before = training.collections
            eventually(lambda before=before: training.collections > before + 1)
        training.output.event("gpumon.run.started", "started", {"gpumon.rank": 0})
        assert training.close()
        run = training.output.run_dir

    assert len(spans(run)) == len(collector.spans()) == 3
    for name in ("gpumon.step.count", "gpumon.step.duration"):
        ours, theirs = points(run, name), collector.points(name)
        assert [point["timeUnixNano"] for point in ours] == [str(point.time_unix_nano) for point in theirs]
    assert resource(run)["gpumon.run.id"] == read_run(run)["id"] == training.output.run_id
    assert [path for path, _, _ in collector.requests].count("/v1/logs") == 1
    assert '"eventName":"gpumon.run.started"' in next(run.glob("logs.*")).read_text()
    assert read_run(run)["ended"]


def test_auto_and_file_without_an_endpoint(quick):
    """`auto+file` sends where an endpoint is named; else it is `file`."""
    training = Training(export="auto+file")
    training.step()
    assert training.close()

    assert len(spans(training.output.run_dir)) == 1


def test_files_are_cumulative_beside_deltas(quick, monkeypatch):
    """The receiver's temporality is the receiver's: the run directory has the one that the report reads."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    with receiver() as collector:
        training = Training(endpoint=collector.endpoint, export="otlp+file")
        for _ in range(3):
            training.step()
            before = training.collections
            eventually(lambda before=before: training.collections > before + 1)
        assert training.close()
        run = training.output.run_dir

    assert points(run, "gpumon.step.count")[-1]["asInt"] == "3"
    assert sum(point.as_int for point in collector.points("gpumon.step.count")) == 3
    assert max(point.as_int for point in collector.points("gpumon.step.count")) == 1


def test_a_receiver_that_hangs_leaves_the_files_their_pace(quick):
    """Each has a queue of its own: the windows in the run directory are as close as ever."""
    with receiver() as collector:
        collector.delay_s = 30.0
        training = Training(endpoint=collector.endpoint, export="otlp+file")
        training.step()
        time.sleep(1.5)
        began = time.monotonic()
        assert not training.close()
        took = time.monotonic() - began
        run = training.output.run_dir
    times = [int(point["timeUnixNano"]) for point in points(run, "gpumon.step.count")]

    assert len(times) > 8
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 0.5e9
    assert took < 2.5
    assert read_run(run)["ended"]


def test_a_directory_that_cannot_be_written_does_not_stop_otlp(quick, caplog):
    """One warning; the receiver gets all."""
    (quick / "gpumon-runs").write_text("a file is in the way")
    with receiver() as collector:
        training = Training(endpoint=collector.endpoint, export="otlp+file")
        training.step()
        training.close()

    assert "GPUMON_RUN_DIR" in caplog.text
    assert len(collector.spans()) == 1


def test_files_beside_the_applications_providers_and_otlp(application, quick):
    """What the application's providers take is not sent a second time; the run directory has it all."""
    _, exporter, providers = application
    with receiver() as collector:
        training = Training(
            endpoint=collector.endpoint, export="auto+file", tracer_provider=providers["tracer_provider"]
        )
        training.step()
        training.close()
        run = training.output.run_dir

    assert len(exporter.get_finished_spans()) == len(spans(run)) == 1
    assert not collector.spans()
    assert points(run, "gpumon.step.count")
    assert collector.points("gpumon.step.count")


def test_a_report_of_a_run_that_was_sent_too(program):
    """`gpumon report` reads the directory as any other."""
    program.start(
        """
        import gpumon, time
        gpumon.instrument(export="otlp+file", endpoint="http://127.0.0.1:9", collectors=["cpu"])
        for batch in gpumon.steps([[0] * 4] * 50):
            time.sleep(0.02)
        """
    ).communicate(timeout=60)
    (run,) = program.runs
    output, _ = program.run(f"from gpumon.cli import main; main(['report', {str(run)!r}, '--json'])")

    report = json.loads(output)
    assert report["steps"]["count"] == 50
    assert report["run"]["complete"]
