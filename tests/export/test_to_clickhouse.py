"""`gpumon export` into ClickHouse: the rows are the Collector's exporter's, and there once."""

import json
import subprocess
import sys
import textwrap

import pytest
from click.testing import CliRunner

from clickhouse_flow import DATABASES, Gateway, address, items
from compare_rows import is_same
from gpumon import metrics as m
from gpumon.analysis.clickhouse.address import parse
from gpumon.analysis.clickhouse.install import ensure_database, install
from gpumon.analysis.clickhouse.server import Server
from gpumon.analysis.clickhouse.tables import COLUMNS, Layout
from gpumon.analysis.report import build_report
from gpumon.cli import commands
from gpumon.errors import RunError
from gpumon.export import export
from gpumon.telemetry.files import RunFiles
from gpumon.telemetry.otlp_json import attributes
from otlp_receiver import eventually
from peers import ClickHouse, needs_clickhouse, needs_collector
from recorded import RUN_ID, SCOPE, START_S, Recorder, record_everything, resource, write_run

pytestmark = needs_clickhouse

AT = str(round(START_S * 1e9) + 123_456_789)


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory):
    with ClickHouse(tmp_path_factory.mktemp("engine")) as clickhouse:
        yield clickhouse


@pytest.fixture
def database(clickhouse, request):
    """Makes new databases with our tables and views; gives their addresses."""

    def make(name="one"):
        name = f"{request.node.name.partition('[')[0]}_{name}"
        url = address(clickhouse, name)
        ensure_database(parse(url))
        with Server(parse(url)) as server:
            install(server, layout=Layout())
        return url

    return make


def value_of(**value):
    return value


def odd_run(folder):
    """Every kind of value, metric and link that OTLP has, and what gpumon itself never writes."""
    at, odd = (
        {"timeUnixNano": AT, "startTimeUnixNano": AT},
        attributes(
            {
                "text": "naïve <b> & \"q\" 'a' \\ \n",
                "whole": -(2**62),
                "large": 1e21,
                "small": 1e-7,
                "tenth": 0.1,
                "round": 3.0,
                "plain": 123456789.125,
                "yes": True,
                "no": False,
                "empty": "",
                "bytes": b"\x00\xff",
                "list": ["a", 1, 2.5, True, "<"],
                "map": {"b": 1, "a": ["x"], "c": {"d": "e"}},
                "none": None,
            }
        ),
    )
    exemplar = {
        "timeUnixNano": AT,
        "asDouble": 0.25,
        "spanId": "ab" * 8,
        "traceId": "cd" * 16,
        "filteredAttributes": odd,
    }
    metrics = [
        {
            "name": "g",
            "unit": "s",
            "description": "of all",
            "gauge": {"dataPoints": [{**at, "asInt": "7", "attributes": odd, "flags": 1}]},
        },
        {
            "name": "g2",
            "gauge": {
                "dataPoints": [{**at, "asDouble": -1.5, "exemplars": [exemplar, {"timeUnixNano": AT, "asInt": "3"}]}]
            },
        },
        {
            "name": "s",
            "sum": {"aggregationTemporality": 1, "isMonotonic": True, "dataPoints": [{**at, "asDouble": 1e300}]},
        },
        {"name": "s2", "sum": {"aggregationTemporality": 2, "dataPoints": [{**at, "asInt": "-9"}]}},
        {
            "name": "h",
            "histogram": {
                "aggregationTemporality": 2,
                "dataPoints": [
                    {
                        **at,
                        "count": "3",
                        "sum": 0.5,
                        "bucketCounts": ["1", "2"],
                        "explicitBounds": [0.25],
                        "min": 0.1,
                        "max": 0.3,
                    },
                    {"timeUnixNano": AT, "count": "0", "sum": 0, "exemplars": [exemplar]},
                ],
            },
        },
        {
            "name": "e",
            "exponentialHistogram": {
                "aggregationTemporality": 2,
                "dataPoints": [
                    {
                        **at,
                        "count": "6",
                        "sum": 4.5,
                        "scale": -2,
                        "zeroCount": "1",
                        "positive": {"offset": -3, "bucketCounts": ["1", "4"]},
                        "negative": {"offset": 2, "bucketCounts": ["0"]},
                        "min": -1,
                        "max": 9,
                        "exemplars": [exemplar],
                    }
                ],
            },
        },
        {
            "name": "q",
            "summary": {
                "dataPoints": [{**at, "count": "2", "sum": 3, "quantileValues": [{"quantile": 0.5, "value": 1.5}]}]
            },
        },
    ]
    spans = [
        {
            "traceId": "01" * 16,
            "spanId": "02" * 8,
            "parentSpanId": "03" * 8,
            "traceState": "a=b",
            "name": "odd",
            "kind": kind,
            "startTimeUnixNano": AT,
            "endTimeUnixNano": str(int(AT) + 1),
            "attributes": odd,
            "status": {"code": kind % 3, "message": "so it is"},
            "events": [{"timeUnixNano": AT, "name": "event", "attributes": odd}, {"timeUnixNano": AT}],
            "links": [{"traceId": "04" * 16, "spanId": "05" * 8, "traceState": "c=d", "attributes": odd}],
        }
        for kind in range(6)
    ]
    logs = [
        {
            "timeUnixNano": AT,
            "severityNumber": 17,
            "severityText": "ERROR",
            "body": {"stringValue": "text"},
            "flags": 257,
            "eventName": "e",
            "attributes": odd,
            "traceId": "06" * 16,
            "spanId": "07" * 8,
        },
        {"observedTimeUnixNano": AT, "body": {"kvlistValue": {"values": odd}}},
        {"timeUnixNano": AT},
    ]
    scope = {**SCOPE, "attributes": odd, "droppedAttributesCount": 2}
    urls = "https://opentelemetry.io/schemas/1.44.0", "https://opentelemetry.io/schemas/1.43.0"
    who = {**resource(odd=2.5), "droppedAttributesCount": 1}
    folder.mkdir()
    for signal, name, entities in (
        ("Metrics", "metrics", metrics),
        ("Spans", "spans", spans),
        ("Logs", "logRecords", logs),
    ):
        scoped = [{"scope": scope, name: entities, "schemaUrl": urls[1]}]
        line = {f"resource{signal}": [{"resource": who, f"scope{signal}": scoped, "schemaUrl": urls[0]}]}
        file = {"Spans": "traces"}.get(signal, signal.lower())
        (folder / f"{file}.0.1.jsonl").write_text(json.dumps(line) + "\n")
    return folder


@needs_collector
def test_the_rows_are_those_of_the_collectors_exporter(clickhouse, database, tmp_path):
    """The same lines by both ways, into the exporter's own tables and ours: every column of every row is the same."""
    run = odd_run(tmp_path / "odd")
    with Server(parse(address(clickhouse, "default"))) as server:
        server.command("create database ours")
    with Server(parse(address(clickhouse, "ours"))) as server:
        install(server, layout=Layout())
    with Gateway(tmp_path / "collector", clickhouse) as gateway:
        assert export(run, gateway.http).is_whole
        gateway.wait_for(RUN_ID, spans=6, points=6, logs=3)
        for table in ("otel_metrics_exponential_histogram", "otel_metrics_summary"):
            for name in DATABASES:
                eventually(lambda full=f"{name}.{table}": clickhouse.query(f"select 1 as n from {full}"))
    exported = {"ours": database("ours"), "theirs": address(clickhouse, "exported")}
    clickhouse.query("create database exported")
    for table in COLUMNS:
        clickhouse.query(f"create table exported.{table} as theirs.{table}")
    for name in DATABASES:
        outcome = export(run, exported[name])
        assert (outcome.sent, outcome.reasons) == ({"traces": 6, "metrics": 8, "logs": 3}, [])
        for table in (table for table in COLUMNS if table != "otel_traces_trace_id_ts"):
            query = f"select * from {{}}.{table} order by all"
            by_collector = clickhouse.query(query.format(name))
            assert by_collector, table
            assert clickhouse.query(query.format(parse(exported[name]).database)) == by_collector, (name, table)


def test_the_report_is_that_of_the_directory(database, tmp_path):
    """Whole, with how the run ended; its exemplars and events with it."""
    run = record_everything(
        tmp_path, exit_code=-9, signal=9, not_recorded=["The rest is elsewhere."], dropped={"traces": 2}
    )
    url = database()
    outcome = export(run, url)
    ours, theirs = (build_report(where).as_dict() for where in (run, url))
    counted = items(run)

    assert outcome.sent == {"traces": counted["spans"], "metrics": counted["points"], "logs": counted["logs"] + 1}
    assert theirs["run"].pop("path") == f"{url}?run={RUN_ID}"
    del ours["run"]["path"]
    assert (ours["run"]["complete"], ours["run"]["signal"], ours["missing"][0]["what"]) == (False, 9, "traces")
    for part in ours:
        assert is_same(ours[part], theirs[part]), part


def test_the_command_line_of_the_run_stays_here(database, clickhouse, tmp_path):
    """Nor the machine's processes: its arguments are nobody's business."""
    write_run(tmp_path, id=RUN_ID, command=["python", "train.py", "--token", "geheim"])
    Recorder(tmp_path).write([(m.STEP_COUNT, 1, {m.STAGE: "train"})])
    url = database()
    export(tmp_path, url)
    (row,) = clickhouse.query(f"select Body, EventName from {parse(url).database}.otel_logs")

    assert row["EventName"] == "gpumon.run" and json.loads(row["Body"])["service"] == "train"
    assert "geheim" not in row["Body"]


def test_a_run_is_there_once(database, clickhouse, tmp_path):
    """A second time it is refused, or replaces the first; other runs stay. Exit codes 0, 2, 0."""
    run, url = record_everything(tmp_path / "a", windows=3), database()
    other = record_everything(tmp_path / "b", windows=2, run_id="ff" * 16)
    counts = {}

    def command(*options):
        result = CliRunner().invoke(commands, ["export", *options], standalone_mode=False)
        counts[options] = clickhouse.query(f"select toInt32(count()) as n from {parse(url).database}.otel_metrics_sum")
        if result.exception:
            raise result.exception
        return result

    command(str(other), url)
    first = command(str(run), url)
    with pytest.raises(
        RunError, match=rf"run {RUN_ID} is in {url} already \([\d,]+ rows\); `--replace` deletes them first"
    ):
        command(str(run), url, "--signal", "metrics")
    again = command(str(run), url, "--replace")

    assert first.output == again.output
    assert first.return_value == again.return_value == 0
    assert counts[str(run), url] == counts[str(run), url, "--signal", "metrics"] == counts[str(run), url, "--replace"]
    assert counts[str(other), url][0]["n"] > 0


def test_what_is_refused_is_counted(database, clickhouse, tmp_path):
    """A table that is not there, one that keeps nothing: how many rows, why, and exit code 1."""
    run, url = record_everything(tmp_path, windows=3), database()
    name = parse(url).database
    clickhouse.query(f"drop table {name}.otel_metrics_histogram")
    clickhouse.query(f"drop view {name}.otel_traces_trace_id_ts_mv")
    clickhouse.query(f"create table {name}.nothing as {name}.otel_traces engine = Null")
    clickhouse.query(f"drop table {name}.otel_traces")
    clickhouse.query(f"rename table {name}.nothing to {name}.otel_traces")
    clickhouse.query(f"alter table {name}.otel_metrics_gauge add constraint no check Value < 0")
    result = CliRunner().invoke(commands, ["export", str(run), url], standalone_mode=False)
    spans = items(run)["spans"]

    assert result.return_value == 1
    assert f"exported {spans} spans, " in result.output
    assert "\n  metrics: there is no table otel_metrics_histogram\n" in result.output
    assert "\n  metrics: Constraint `no` for table " in result.output
    assert f"  otel_traces has 0 rows of the run, fewer than the {spans} that were sent" in result.output


def test_segments_torn_lines_and_damage(database, clickhouse, tmp_path):
    """Closed segments, packed and plain, then the live file; a torn last line is left, a damaged one is counted."""
    whole = record_everything(tmp_path / "whole", windows=40)
    files = RunFiles(tmp_path / "run", 0, segment_bytes=30_000)
    (tmp_path / "run").mkdir()
    for path in whole.glob("*.0.*.jsonl"):
        for line in path.read_text().splitlines():
            files.write(path.name.partition(".")[0], line)
    files.close()
    (tmp_path / "run" / "run.json").write_text((whole / "run.json").read_text())
    (live,) = (tmp_path / "run").glob("metrics.0.*.jsonl")
    with open(live, "a") as file:
        file.write('nonsense\n{"resourceMetrics": [{"scopeMetrics": 7}]}\n\n{"resourceMetrics": [{"scopeM')
    (tmp_path / "run" / "traces.0.1.000.jsonl.gz").write_bytes(b"\x1f\x8bno gzip")
    outcome = export(tmp_path / "run", url := database())
    wanted = items(whole)

    assert len(list((tmp_path / "run").glob("metrics.*.jsonl.gz"))) > 3
    assert outcome.damaged == {live.name: 2, "traces.0.1.000.jsonl.gz": 1}
    assert outcome.sent["traces"] == wanted["spans"]
    assert 0 < outcome.sent["metrics"] < wanted["points"]  # rank 1 is in another file
    assert outcome.is_whole
    assert f"{live.name}: 2 damaged lines skipped" in "\n".join(outcome.lines())
    assert build_report(url).steps.count == build_report(tmp_path / "run").steps.count


def test_a_collectors_file_with_many_runs(database, tmp_path):
    """One file, several runs: each is made sure of; a report finds both."""
    runs = [record_everything(tmp_path / name, windows=2, run_id=name * 16) for name in ("aa", "bb")]
    file = tmp_path / "otlp.jsonl"
    file.write_text("".join(path.read_text() for run in runs for path in run.glob("*.jsonl")))
    url = database()

    assert export(file, url).is_whole
    for name in ("aa", "bb"):
        assert build_report(f"{url}?run={name}").run["id"] == name * 16
    with pytest.raises(RunError, match=r"is in .* already"):
        export(runs[1], url)


def test_one_signal_is_replaced_alone(database, clickhouse, tmp_path):
    """What else is there of the run stays; and signals may come one after the other."""
    run, url = record_everything(tmp_path / "a", windows=3), database()

    def counts():
        tables = ("otel_traces", "otel_metrics_sum", "otel_logs")
        return [clickhouse.query(f"select count() as n from {parse(url).database}.{table}")[0]["n"] for table in tables]

    for signal in ("traces", "metrics", "logs"):
        assert export(run, url, signals=[signal]).is_whole
    whole = counts()
    assert export(run, url, signals=["metrics"], replace=True).is_whole
    assert counts() == whole and all(map(int, whole))
    with pytest.raises(RunError, match="already"):
        export(run, url, signals=["metrics"])


def test_a_file_is_exported_with_all_its_runs(tmp_path):
    """A run of it cannot be named; the message says how to go on."""
    with pytest.raises(RunError, match=r"\?run= is for reports: gpumon export '/logs/otlp.jsonl' clickhouse://x/y"):
        export("/logs/otlp.jsonl?run=dd51", "clickhouse://x/y")


@pytest.mark.timeout(120)
def test_a_run_of_any_size_fits_into_memory(database, tmp_path):
    """Four times as many lines take no more memory: they are sent as they are read."""
    recorder = Recorder(tmp_path / "run")
    recorder.write([(m.DISK_AWAIT, number / 1000, {m.SYSTEM_DEVICE: f"disk{number}"}) for number in range(1000)])
    (file,) = (tmp_path / "run").glob("*.jsonl")
    line = file.read_text()
    url = f"{database()}?compress=none"  # the engine's stand-in server reads the first compressed block alone

    def peak_bytes(lines):
        file.write_text("".join(line.replace(RUN_ID, f"{lines:032d}") for _ in range(lines)))
        program = f"""
            from pathlib import Path
            from gpumon.export import export
            assert export(Path({str(file)!r}), {url!r}).sent["metrics"] == {lines} * 1000
            print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
        )
        return int(done.stdout) * 1024

    small, large = peak_bytes(30), peak_bytes(120)
    print(f"30,000 points: {small / 2**20:.0f} MiB; 120,000 points: {large / 2**20:.0f} MiB")
    assert large < small + 20 * 2**20
