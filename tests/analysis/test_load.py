"""Loading runs: live ones, closed segments, damaged lines, and what is no run at all."""

import gzip
import json
import shutil

import pytest

from gpumon import metrics as m
from gpumon.analysis.load import Loader, load, newest_run, recorded_runs
from gpumon.analysis.report import build_report
from gpumon.errors import RunError
from recorded import (
    START_S,
    Recorder,
    Training,
    metrics_line,
    record,
    resource,
    span,
    spans_line,
    step_spans,
    write_run,
)


def count(run, table="otel_metrics_sum", name="gpumon.step.count"):
    """Points of a metric."""
    rows = run.connection.execute(f"""select count(*) from {table} where "MetricName" = ?""", [name])
    return rows.fetchone()[0]


def steps(run):
    return run.connection.execute("select max(value) from stg_points where metric = 'gpumon.step.count'").fetchone()[0]


def test_a_run_has_the_columns_of_the_clickhouse_exporter(tmp_path):
    """A resource, attributes as text, the kind of sum, times to the nanosecond."""
    recorder = Recorder(tmp_path)
    recorder.write([(m.STEP_COUNT, 7, {m.STAGE: "train"})])
    run = load(tmp_path)

    row = run.connection.execute(
        """select "ServiceName", "MetricName", "MetricUnit", "Attributes"['gpumon.stage'],
            "ResourceAttributes"['gpumon.rank'],
            epoch_ns("TimeUnix"), "Value", "AggregationTemporality", "IsMonotonic" from otel_metrics_sum"""
    ).fetchone()
    assert row == ("train", "gpumon.step.count", "{step}", "train", "0", round(START_S * 1e9), 7.0, 2, True)


def test_spans_keep_their_parents_times_and_status(tmp_path):
    """A failed step with a child."""
    write_run(tmp_path)
    failed = span("train.step", START_S, 0.5, 1, 16, status=2, **{"gpumon.step.number": 3})
    child = span("forward", START_S, 0.25, 1, 17, parent=16)
    (tmp_path / "traces.0.1.jsonl").write_text(spans_line([failed, child]))
    rows = load(tmp_path).connection.execute(
        """select "SpanName", "SpanId", "ParentSpanId", "Duration", "StatusCode", "SpanKind",
            "SpanAttributes"['gpumon.step.number']
        from otel_traces order by "SpanId" """
    )

    assert rows.fetchall() == [
        ("train.step", f"{16:016x}", "", 500_000_000, "Error", "Internal", "3"),
        ("forward", f"{17:016x}", f"{16:016x}", 250_000_000, "Unset", "Internal", None),
    ]


def test_a_collector_file_mixes_the_signals(tmp_path):
    """Metrics, spans and log records in the lines of one file, and a kind of line that nobody knows yet."""
    file = tmp_path / "otlp.jsonl"
    log = (
        f'{{"resourceLogs":[{{"resource":{json.dumps(resource())},"scopeLogs":[{{"logRecords":['
        '{"timeUnixNano":"1","body":{"stringValue":"hi"}}]}]}]}\n'
    )
    point = metrics_line(START_S, [(m.STEP_COUNT, 5, {m.STAGE: "train"})])
    file.write_text(
        point + spans_line(step_spans(1, START_S, 0.1, {"forward": 0.1})) + log + '{"resourceProfiles":[]}\n'
    )
    run = load(file)
    tables = ("otel_metrics_sum", "otel_traces", "otel_logs")

    assert [run.connection.execute(f"select count(*) from {table}").fetchone()[0] for table in tables] == [1, 2, 1]
    assert not run.info


def test_numbers_may_be_text_or_bare_and_enums_names(tmp_path):
    """What other writers of the same JSON do."""
    (tmp_path / "metrics.jsonl").write_text(
        '{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"a","sum":{"aggregationTemporality":'
        '"AGGREGATION_TEMPORALITY_DELTA","dataPoints":[{"timeUnixNano":1700000000000000001,"asInt":3,'
        '"attributes":[{"key":"x","value":{"intValue":5}},{"key":"y","value":{"boolValue":true}}]},'
        '{"timeUnixNano":"1700000000000000002","asDouble":"NaN"}]}}]}]}]}\n'
    )
    rows = load(tmp_path).connection.execute(
        'select "Attributes", "Value"::varchar, "AggregationTemporality" from otel_metrics_sum'
    )

    assert rows.fetchall() == [({"x": "5", "y": "true"}, "3.0", 1), ({}, "nan", 1)]


def test_a_live_run_is_followed_up_to_its_last_newline(tmp_path):
    """A line that is being written is left for the next look."""
    recorder = Recorder(tmp_path)
    recorder.window(Training())
    loader = Loader(tmp_path)
    assert loader.refresh() == 1
    whole = metrics_line(START_S + 2, [(m.STEP_COUNT, 20, {m.STAGE: "train"})])
    with open(recorder.metrics, "a") as file:
        file.write(whole[:100])
        file.flush()
        assert loader.refresh() == 0
        file.write(whole[100:])
        file.flush()
    assert loader.refresh() == 1
    assert steps(loader.run) == 20
    assert not loader.run.damaged


def test_following_survives_the_closing_of_segments(tmp_path):
    """Half-read, then renamed, packed, and begun anew: every line is read once."""
    recorder = Recorder(tmp_path)
    recorder.window(Training())
    with Loader(tmp_path) as loader:
        loader.refresh()
        recorder.window(Training())
        closed = tmp_path / "metrics.0.4711.000.jsonl"
        recorder.metrics.rename(closed)
        recorder.window(Training())
        assert loader.refresh() == 2
        closed.with_name(closed.name + ".gz").write_bytes(gzip.compress(closed.read_bytes()))
        assert loader.refresh() == 0  # both forms are there while it is being packed
        closed.unlink()
        recorder.window(Training())
        assert loader.refresh() == 1
        assert (count(loader.run), steps(loader.run)) == (4, 40)


def test_closed_segments_are_read_like_live_files(tmp_path):
    """Plain or packed, in the order in which they were closed."""
    recorder = Recorder(tmp_path)
    recorder.window(Training())
    (tmp_path / "metrics.0.4711.000.jsonl.gz").write_bytes(gzip.compress(recorder.metrics.read_bytes()))
    recorder.metrics.unlink()
    recorder.window(Training())

    assert steps(load(tmp_path)) == 20


@pytest.mark.parametrize(
    "bad",
    [
        "not json",
        '{"resourceMetrics":[{"resource',
        "\0\0\0\0",
        '{"resourceMetrics":5}',
        "[1,2]",
        '"text"',
        '{"resourceMetrics":[7]}',
    ],
)
def test_a_damaged_line_is_skipped_counted_and_placed(tmp_path, bad):
    """The lines around it are read; the report can say where it stands."""
    recorder = Recorder(tmp_path)
    for _ in range(3):
        recorder.window(Training())
    lines = recorder.metrics.read_text().splitlines(keepends=True)
    recorder.metrics.write_text(lines[0] + bad + "\n" + lines[1] + bad + "\n" + lines[2])
    run = load(tmp_path)

    assert (count(run), steps(run)) == (3, 30)
    assert str(run.damaged["metrics.0.4711.jsonl"]) == "line 2 is damaged, skipped (2 lines in all)"


def test_bytes_that_are_no_text_are_one_damaged_line(tmp_path):
    """A block of a file that a crash left as garbage."""
    recorder = Recorder(tmp_path)
    recorder.window(Training())
    with open(recorder.metrics, "ab") as file:
        file.write(b'{"resourceMetrics":[{"scopeMetrics":"\xff\xfe\xfd"}]}\n')
    run = load(tmp_path)

    assert str(run.damaged["metrics.0.4711.jsonl"]) == "line 2 is damaged, skipped"
    assert count(run) == 1


def test_a_packed_segment_that_was_cut_short_is_read_as_far_as_it_goes(tmp_path):
    """The rest is damage, not an error."""
    recorder = Recorder(tmp_path)
    for _ in range(50):
        recorder.window(Training())
    packed = gzip.compress(recorder.metrics.read_bytes())
    recorder.metrics.rename(tmp_path / "other.jsonl")
    (tmp_path / "metrics.0.4711.000.jsonl.gz").write_bytes(packed[:-200])
    run = load(tmp_path)

    assert list(run.damaged) == ["metrics.0.4711.000.jsonl.gz"]
    assert count(run) >= 50


def test_a_line_may_be_longer_than_the_parser_likes(tmp_path):
    """17 MiB of spans in one line."""
    long = span("train.step", START_S, 1.0, 1, 1, note="x" * (17 * 2**20))
    (tmp_path / "traces.jsonl").write_text(spans_line([long]))
    run = load(tmp_path)

    assert (
        run.connection.execute("""select length("SpanAttributes"['note']) from otel_traces""").fetchone()[0]
        == 17 * 2**20
    )


def test_what_is_no_run_is_said_in_one_line(tmp_path, monkeypatch):
    """Missing, empty and foreign places; with the runs that there are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("nothing of ours")
    for name in ("nowhere", "empty", "foreign"):
        with pytest.raises(
            RunError, match=rf"^no run at '{name}' \(looked for run.json or \*.jsonl\). No recorded runs"
        ):
            load(name)
    record("gpumon-runs/20260921T141320-train-012345", seconds=1)
    with pytest.raises(RunError, match=r"Recorded runs here: gpumon-runs/20260921T141320-train-012345 \(1\)\."):
        load("nowhere")


def test_files_that_hold_no_otlp_are_no_run(tmp_path):
    """A data set of JSON lines is not a recording."""
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(
        RunError, match=r"no OTLP lines in .*data\.jsonl: line 1 is damaged, skipped \(2 lines in all\)"
    ):
        load(tmp_path / "data.jsonl")
    with pytest.raises(RunError, match="is empty"):
        load(tmp_path / "empty.jsonl")


def test_a_run_that_recorded_nothing_is_still_a_run(tmp_path):
    """`run.json` alone: the command ended before the first export."""
    write_run(tmp_path)
    run = load(tmp_path)

    assert (run.lines, run.info["service"]) == (0, "train")


def test_the_newest_run_is_the_one_that_started_last(tmp_path):
    """By what `run.json` says, not by names or file times."""
    for name, started in (("b", "2026-01-02T00:00:00Z"), ("a", "2026-01-03T00:00:00Z"), ("c", "2026-01-01T00:00:00Z")):
        write_run(tmp_path / name, started=started)
    (tmp_path / "not-a-run").mkdir()

    assert newest_run(tmp_path) == tmp_path / "a"
    assert [path.name for path in recorded_runs(tmp_path)] == ["a", "b", "c"]
    with pytest.raises(RunError, match="no recorded runs under"):
        newest_run(tmp_path / "nowhere")


def test_a_file_that_was_replaced_is_read_from_its_start(tmp_path):
    """The Collector's file exporter truncates its file when it starts."""
    recorder = Recorder(tmp_path)
    recorder.window(Training()).window(Training())
    with Loader(recorder.metrics) as loader:
        assert loader.refresh() == 2
        shutil.copy(recorder.metrics, tmp_path / "kept")
        recorder.metrics.write_text(metrics_line(START_S + 9, [(m.STEP_COUNT, 1, {m.STAGE: "train"})]))
        assert loader.refresh() == 1


def test_one_run_of_a_file_that_holds_several(tmp_path):
    """A Collector's file goes on from run to run: the newest is reported on, others by their id."""
    file = tmp_path / "otlp.jsonl"
    runs = {"aaaa1111" * 4: 100.0, "aaaa2222" * 4: 900.0}
    lines = []
    for number, (run_id, begin_s) in enumerate(runs.items(), 1):
        steps = [(m.STEP_COUNT, 30 * number, {m.STAGE: "train"}), (m.STEP_TIME, 15.0 * number, {m.STAGE: "train"})]
        for second in range(20):
            at_s = START_S + begin_s + second
            lines.append(metrics_line(at_s, steps, run_id=run_id, instance=f"i{number}"))
    agent = [(m.DISK_UTILIZATION, 0.5, {m.SYSTEM_DEVICE: "sda"})]
    lines.append(metrics_line(START_S + 950.0, agent, run_id="", instance="agent"))
    file.write_text("".join(lines))

    newest = build_report(file)
    assert newest.run["id"] == "aaaa2222" * 4
    assert newest.steps.count == 60
    assert [each for each in newest.missing if "it holds 2 runs" in each["reason"]]

    other = build_report(f"{file}?run=aaaa1111")
    assert other.run["id"] == "aaaa1111" * 4
    assert other.steps.count == 30
    assert not [each for each in other.missing if "it holds 2 runs" in each["reason"]]

    with pytest.raises(RunError, match="'aaaa' begins the id of 2 runs"):
        build_report(f"{file}?run=aaaa")
    with pytest.raises(RunError, match=r"no run 'bbbb' in .*; there are: aaaa2222.*, aaaa1111"):
        build_report(f"{file}?run=bbbb")
