"""`gpumon export` to OTLP receivers: what they took, what they did not, and what can be tried again."""

import json
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from click.testing import CliRunner

from clickhouse_flow import items
from compare_rows import is_same
from gpumon import metrics as m
from gpumon.analysis.report import build_report
from gpumon.cli import commands
from gpumon.errors import RunError
from gpumon.export import export
from gpumon.export.outcome import Outcome
from gpumon.export.to_otlp import REQUEST_BYTES, OtlpTarget
from gpumon.telemetry.otlp_requests import items_of, pieces_of, request_class, request_of, response_class
from otel_collector import Collector, free_port
from otlp_receiver import receiver
from peers import needs_collector
from recorded import RUN_ID, Recorder, record_everything, step_spans, write_run
from run_lines import spans

SIGNALS = ("traces", "metrics", "logs")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("ENDPOINT", "PROTOCOL", "HEADERS", "COMPRESSION", "CERTIFICATE", "TIMEOUT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return record_everything(tmp_path_factory.mktemp("run"), exit_code=7)


@contextmanager
def answering(answer):
    """A receiver whose answers are (status, headers, body), as *answer* says for (signal, how often it was asked)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            signal = self.path.rpartition("/")[2]
            asked.append((signal, body, dict(self.headers)))
            status, headers, content = answer(signal, sum(1 for each, _, _ in asked if each == signal))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def ok(signal, count):
    return 200, {}, b""


def gpumon(*arguments):
    """(exit code, output) of a command; its errors as they are."""
    result = CliRunner().invoke(commands, arguments, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.return_value, result.output


@needs_collector
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_through_a_collector_into_its_file(run, tmp_path, monkeypatch, protocol, compression):
    """The report of what the Collector wrote is that of the run directory, with how the run ended."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    collector = Collector(tmp_path / "collector")
    collector.start()
    try:
        code, output = gpumon("export", str(run), collector.http if protocol.startswith("http") else collector.grpc)
    finally:
        collector.stop()
    wanted = items(run)
    file = tmp_path / "otlp.jsonl"
    file.write_text("".join(path.read_text() for path in sorted((tmp_path / "collector").glob("*.jsonl"))))

    assert code == 0
    assert (
        f"exported {wanted['spans']} spans, {wanted['points']:,} points, {wanted['logs'] + 1} events of {run} to"
        in output
    )
    for name in (file, tmp_path / "collector"):
        ours, theirs = build_report(run).as_dict(), build_report(name).as_dict()
        assert (ours["run"].pop("path"), theirs["run"].pop("path")) == (str(run), str(name))
        for part in ours:
            assert is_same(ours[part], theirs[part]), (part, ours[part], theirs[part])


def test_times_resources_and_exemplars_are_the_runs_own(tmp_path):
    """To the nanosecond, in the order of writing."""
    exemplar = {"timeUnixNano": "1790000000123456789", "asDouble": 0.5, "traceId": "0a" * 16, "spanId": "0b" * 8}
    point = {
        "timeUnixNano": "1790000001000000001",
        "count": "1",
        "sum": 0.5,
        "bucketCounts": ["1"],
        "exemplars": [exemplar],
    }
    speaker = {"attributes": [{"key": "service.name", "value": {"stringValue": "mine"}}]}
    metric = {"name": "gpumon.step.duration", "histogram": {"aggregationTemporality": 2, "dataPoints": [point]}}
    content = {"resourceMetrics": [{"resource": speaker, "scopeMetrics": [{"metrics": [metric]}]}]}
    (tmp_path / "metrics.0.1.jsonl").write_text(json.dumps(content) + "\n")
    Recorder(tmp_path).write_spans(step_spans(3, 1_790_000_000.123456, 0.2, {"data.wait": 0.1}))
    with receiver() as taken:
        assert export(tmp_path, taken.endpoint).sent == {"traces": 2, "metrics": 1, "logs": 0}
        (sent,) = taken.points("gpumon.step.duration")
        (request,) = (request for path, _, request in taken.requests if path == "/v1/metrics")

    assert sent.time_unix_nano == 1790000001000000001
    assert (sent.exemplars[0].trace_id.hex(), sent.exemplars[0].span_id.hex()) == ("0a" * 16, "0b" * 8)
    assert sent.exemplars[0].time_unix_nano == 1790000000123456789
    assert request.resource_metrics[0].resource.attributes[0].value.string_value == "mine"
    assert [span.span_id.hex() for span in taken.spans()] == [f"{48:016x}", f"{49:016x}"]
    assert taken.spans()[1].parent_span_id == taken.spans()[0].span_id
    assert taken.spans()[0].trace_id.hex() == f"{3:032x}"


def test_what_a_receiver_rejects_is_counted(run):
    """Partial success: how many, why; exit code 1."""

    def some(signal, count):
        answer = response_class(signal)()
        if signal == "metrics":
            answer.partial_success.rejected_data_points = 5
            answer.partial_success.error_message = "too old"
        if signal == "traces":
            answer.partial_success.error_message = "only a warning"
        return 200, {}, answer.SerializeToString()

    with answering(some) as (url, _):
        code, output = gpumon("export", str(run), url)

    assert code == 1
    assert f"exported {items(run)['spans']} spans, {items(run)['points'] - 5:,} points, 2 events" in output
    assert "refused: 5 points\n  metrics: too old\n" in output


@pytest.mark.parametrize("status", [400, 404, 401])
def test_a_signal_that_nobody_wants(run, status):
    """Asked once, or for each batch where the batch is what is wrong; the others go on. `--signal` leaves it out."""

    def answer(signal, count):
        return (status, {}, b"no such thing\nno such thing\n") if signal == "metrics" else (200, {}, b"")

    with answering(answer) as (url, asked):
        outcome = export(run, url)
        code, output = gpumon("export", str(run), url, "--signal", "traces", "--signal", "logs")

    assert outcome.refused == {"traces": 0, "metrics": items(run)["points"], "logs": 0}
    assert outcome.reasons[0].startswith(f"metrics: {status} ") and outcome.reasons[0].endswith(": no such thing")
    assert not outcome.is_whole
    assert code == 0 and "refused" not in output
    assert [signal for signal, _, _ in asked].count("metrics") == 1


def test_nobody_wants_what_run_json_says(tmp_path):
    """A receiver of traces and metrics alone has the run all the same, where that has no events of its own."""
    Recorder(tmp_path).write([(m.STEP_COUNT, 1, {m.STAGE: "train"})])
    write_run(tmp_path, id=RUN_ID)

    def answer(signal, count):
        return (404 if signal == "logs" else 200), {}, b""

    with answering(answer) as (url, _):
        outcome = export(tmp_path, url)

    assert outcome.is_whole
    assert outcome.refused["logs"] == 1


def test_what_may_be_tried_again_is(run):
    """503 and 429, after as long as the receiver asks for; nothing is lost, nothing is there twice."""

    def busy(signal, count):
        return (503 if count == 1 else 429, {"Retry-After": "0.05"}, b"") if count < 3 else (200, {}, b"")

    with answering(busy) as (url, asked):
        outcome = export(run, url)

    assert outcome.is_whole and outcome.sent["traces"] == items(run)["spans"]
    assert [signal for signal, _, _ in asked] == ["traces"] * 3 + ["metrics"] * 3 + ["logs"] * 3 or sorted(
        signal for signal, _, _ in asked
    ) == sorted(SIGNALS * 3)


def test_a_receiver_that_stays_away(run):
    """It is tried for a while, then said once for each signal; every item is counted as refused."""
    url = f"http://127.0.0.1:{free_port()}"
    outcome = Outcome(run)
    began = time.monotonic()
    with OtlpTarget(url, outcome, give_up_s=1.5) as target:
        for line in (run / "traces.0.4711.jsonl").read_text().splitlines():
            target.add("traces", json.loads(line))
        target.finish()

    assert 0.4 < time.monotonic() - began < 10
    assert outcome.refused["traces"] == items(run)["spans"]
    assert outcome.reasons == ["traces: Connection refused, tried for 2 s"]


def test_where_nobody_is_there_the_other_signals_are_tried_once(run):
    """Not each for as long as the first."""
    outcome = Outcome(run)
    with OtlpTarget(f"http://127.0.0.1:{free_port()}", outcome, give_up_s=1.5) as target:
        for signal in ("traces", "metrics"):
            file = min(run.glob(f"{signal}.*.jsonl"))
            target.add(signal, json.loads(file.read_text().splitlines()[0]))
        target.finish()

    assert outcome.reasons == ["traces: Connection refused, tried for 2 s", "metrics: Connection refused"]


def test_without_a_run_it_is_the_newest(tmp_path, monkeypatch):
    """`gpumon export URL`."""
    monkeypatch.chdir(tmp_path)
    record_everything(tmp_path / "gpumon-runs" / "20261124T140211-train-7f3a91", windows=2)
    with receiver() as collector:
        result = CliRunner().invoke(commands, ["export", collector.endpoint], standalone_mode=False)

    assert (result.exception, result.return_value) == (None, 0)
    assert collector.points("gpumon.step.count")


def test_the_protocol_of_the_port(run):
    """4317 over http: the reason comes with the setting that repairs it."""
    outcome = Outcome(run)
    with OtlpTarget("http://127.0.0.1:4317", outcome, give_up_s=0.1) as target:
        target.add("traces", json.loads((run / "traces.0.4711.jsonl").read_text().splitlines()[0]))
        target.finish()

    assert outcome.reasons[0].endswith("(4317 is for grpc: OTEL_EXPORTER_OTLP_PROTOCOL=grpc)")


def test_headers_and_compression(run, monkeypatch):
    """`OTEL_EXPORTER_OTLP_*` hold as for the exporters."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    with receiver() as taken:
        assert export(run, taken.endpoint).is_whole
        assert len(taken.spans()) == items(run)["spans"]

    for _, headers, _ in taken.requests:
        assert headers["authorization"] == "Bearer secret"
        assert headers["Content-Encoding"] == "gzip"


def test_requests_are_of_a_size_that_receivers_take(tmp_path):
    """Many lines become one request, one long line several; none of more than 1 MiB, and nothing is lost."""
    recorder = Recorder(tmp_path)
    for number in range(300):
        recorder.write_spans(step_spans(number, recorder.at_s + number, 0.2, {"data.wait": 0.1}, note="x" * 500))
    recorder.write_spans(
        [span for number in range(300, 2300) for span in step_spans(number, recorder.at_s, 0.2, {}, note="y" * 1500)]
    )
    with receiver() as taken:
        outcome = export(tmp_path, taken.endpoint)
    sizes = [request.ByteSize() for path, _, request in taken.requests if path == "/v1/traces"]

    assert outcome.sent["traces"] == len(taken.spans()) == 600 + 2000 == len(spans(tmp_path))
    assert len({span.span_id for span in taken.spans()}) == 2600
    assert max(sizes) <= REQUEST_BYTES
    assert len(sizes) < 8


def test_pieces_keep_everything():
    """Resource, scope and both schemas are in every piece; a metric that is too large is one alone."""
    point = {"timeUnixNano": "1", "asInt": "1", "attributes": [{"key": "k", "value": {"stringValue": "v" * 50}}]}
    metrics = [
        {"name": f"m{number}", "gauge": {"dataPoints": [point] * (1 + 40 * (number == 2))}} for number in range(5)
    ]
    scope = {"scope": {"name": "s", "version": "1"}, "schemaUrl": "b", "metrics": metrics}
    request = request_of("metrics", {"resourceMetrics": [{"schemaUrl": "a", "scopeMetrics": [scope]}] * 2})
    pieces = list(pieces_of("metrics", request, 300))
    together = request_class("metrics")()
    for piece in pieces:
        together.MergeFrom(piece)

    assert sum(items_of("metrics", piece) for piece in pieces) == items_of("metrics", request) == 90
    assert all(piece.resource_metrics[0].scope_metrics[0].schema_url == "b" for piece in pieces)
    assert all(piece.resource_metrics[0].schema_url == "a" for piece in pieces)
    assert all(piece.resource_metrics[0].scope_metrics[0].scope.name == "s" for piece in pieces)
    names = [metric.name for each in together.resource_metrics for s in each.scope_metrics for metric in s.metrics]
    assert names == [f"m{number}" for number in range(5)] * 2


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://host/x", "'ftp://host/x' is no address to export to"),
        ("collector:4318", "'collector:4318' is no address to export to"),
        ("http://u:geheim@", "is no address to export to"),
    ],
)
def test_what_is_no_receiver(run, url, why):
    """One line, and no password in it."""
    with pytest.raises(RunError, match=why) as error:
        export(run, url)
    assert "geheim" not in str(error.value)


def test_what_only_clickhouse_can_do(run):
    """An OTLP receiver takes nothing back."""
    with pytest.raises(RunError, match="--replace is for ClickHouse"):
        export(run, "http://127.0.0.1:1", replace=True)


def test_no_such_run(tmp_path):
    """The same words as `gpumon report` has."""
    with answering(ok) as (url, asked), pytest.raises(RunError, match="no run at"):
        export(tmp_path / "nothing", url)
    assert not asked
