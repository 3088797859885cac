"""Runs in ClickHouse: the views and the report say what they say of the run directory, whoever filled the tables."""

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from clickhouse_flow import DATABASES, Gateway, address, items
from compare_rows import assert_same_rows, is_same
from gpumon.analysis.clickhouse.address import parse
from gpumon.analysis.clickhouse.install import install
from gpumon.analysis.clickhouse.run import KnownRun, choose, open_run
from gpumon.analysis.clickhouse.server import Server
from gpumon.analysis.clickhouse.tables import Layout
from gpumon.analysis.load import load
from gpumon.analysis.report import build_report
from gpumon.analysis.rows import query
from gpumon.analysis.views import VIEWS
from gpumon.errors import RunError
from gpumon.export import export
from peers import ClickHouse, needs_clickhouse, needs_collector
from recorded import START_S, Recorder, Training, as_deltas, record_everything, write_run

pytestmark = [needs_clickhouse, needs_collector]

SECOND = 10**9


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """The Collector, which makes the tables of `theirs`; those of `ours` and all views are installed by gpumon."""
    folder = tmp_path_factory.mktemp("clickhouse")
    with ClickHouse(folder / "engine") as clickhouse:
        clickhouse.query("create database ours")
        with Server(parse(address(clickhouse, "ours"))) as server:
            install(server, layout=Layout(ttl_days=36_500))
        with Gateway(folder / "collector", clickhouse) as gateway:
            with Server(parse(address(clickhouse, "theirs"))) as server:
                install(server)
            yield gateway


def send(gateway, run, run_id):
    """Through the Collector into both databases."""
    outcome = export(run, gateway.http)
    assert outcome.is_whole, outcome.reasons
    wanted = items(run)
    gateway.wait_for(run_id, **{**wanted, "logs": wanted["logs"] + 1})  # what run.json says is an event more


@pytest.fixture(scope="module")
def recorded(gateway, tmp_path_factory):
    """A recording with something for every view, whose exports are at whole seconds; it is in both databases."""
    run_id = "aa" * 16
    told = {"exit_code": 3, "not_recorded": ["so it is."]}
    run = record_everything(tmp_path_factory.mktemp("recorded"), run_id=run_id, node="node-19", **told)
    send(gateway, run, run_id)
    return run


@pytest.fixture(scope="module")
def trained(gateway, tmp_path_factory):
    """A real training, recorded by `gpumon run`; it is in both databases."""
    run = tmp_path_factory.mktemp("trained") / "run"
    script = Path(__file__).parents[1] / "scenarios" / "train.py"
    options = "--kind made --length 400 --sleep 0.03 --workers 2 --batch 4 --epochs 2 --pause 0.01"
    subprocess.run(
        [*f"{sys.executable} -m gpumon run --no-report --out {run} -- {sys.executable} {script} {options}".split()],
        check=True,
        timeout=120,
        capture_output=True,
    )
    send(gateway, run, json.loads((run / "run.json").read_text())["id"])
    return run


@lru_cache
def report(name):
    """But for where it is."""
    content = build_report(name).as_dict()
    del content["run"]["path"]
    return content


def run_id_of(run):
    return json.loads((run / "run.json").read_text())["id"]


def assert_same_views(run, name):
    """Every view of a loaded run and of ClickHouse, row by row."""
    with open_run(name) as theirs:
        for view in VIEWS:
            ours = query(run.execute, f"select * from {view}")
            assert_same_rows(ours, query(theirs.execute, f"select * from {view}"), f"{view} of {name}")


def in_whole_seconds(run, folder):
    """The same run as it is where points have no fraction of a second."""
    folder.mkdir()
    for path in run.glob("*.jsonl"):
        lines = path.read_text().splitlines()
        (folder / path.name).write_text(
            "".join(f"{_floored(line) if 'resourceMetrics' in line else line}\n" for line in lines)
        )
    (folder / "run.json").write_text((run / "run.json").read_text())
    return folder


def _floored(text):
    line = json.loads(text)
    for resource in line["resourceMetrics"]:
        for scope in resource["scopeMetrics"]:
            for metric in scope["metrics"]:
                for point in next(metric[kind] for kind in ("gauge", "sum", "histogram") if kind in metric)[
                    "dataPoints"
                ]:
                    point["timeUnixNano"] = str(int(point["timeUnixNano"]) // SECOND * SECOND)
    return json.dumps(line)


@pytest.mark.parametrize("database", DATABASES)
def test_every_view_of_a_recording(gateway, recorded, database):
    """What the Collector's exporter inserted, into its own tables and into ours: every row of every view."""
    run = load(recorded)

    assert all(query(run.execute, f"select * from {view} limit 1") for view in VIEWS)
    assert_same_views(run, address(gateway.clickhouse, database, run_id_of(recorded)))


@pytest.mark.parametrize("database", DATABASES)
def test_the_report_of_a_recording(gateway, recorded, database):
    """Verdict, figures, findings, devices, and how the run ended, which run.json alone says."""
    ours, theirs = report(recorded), report(address(gateway.clickhouse, database, run_id_of(recorded)))

    assert (ours["run"]["exit_code"], ours["verdict"]) == (3, "data_loading_bound")
    assert {finding["rule"] for finding in ours["findings"]} >= {"DataLoadingBound", "DiskFailing", "GpuError"}
    assert_same_reports(ours, theirs)


def assert_same_reports(ours, theirs):
    for part in ours:
        assert is_same(ours[part], theirs[part]), (part, ours[part], theirs[part])


def test_a_real_training_in_our_tables(gateway, trained):
    """To the nanosecond: every view, row by row, and the whole report."""
    name = address(gateway.clickhouse, "ours", run_id_of(trained))
    assert_same_views(load(trained), name)
    ours = report(trained)

    assert ours["steps"]["count"] == 200
    assert ours["verdict"] == "data_loading_bound"
    assert_same_reports(ours, report(name))


def test_a_real_training_in_the_exporters_tables(gateway, trained, tmp_path):
    """Whole seconds are all that these keep: the rows of that run, and the same verdict and sums."""
    name = address(gateway.clickhouse, "theirs", run_id_of(trained))
    floored = in_whole_seconds(trained, tmp_path / "floored")
    assert_same_views(load(floored), name)
    ours, theirs = report(trained), report(name)

    assert ours["verdict"] == theirs["verdict"]
    assert [(found["rule"], found["cause"], found["device"]) for found in ours["findings"]] == [
        (found["rule"], found["cause"], found["device"]) for found in theirs["findings"]
    ]
    for part in ("run", "steps", "missing", "fetches"):
        assert is_same(ours[part], theirs[part]), (part, ours[part], theirs[part])
    assert_same_reports(report(floored), theirs)  # devices too: what is busy for some seconds only is so in both


def test_our_tables_keep_nanoseconds(gateway, trained):
    """Every time of a point, as the run's files have it; in the exporter's own tables none has a fraction."""
    times = {
        int(point["timeUnixNano"])
        for path in trained.glob("metrics.*.jsonl")
        for line in path.read_text().splitlines()
        for resource in json.loads(line)["resourceMetrics"]
        for scope in resource["scopeMetrics"]
        for metric in scope["metrics"]
        for point in metric.get("gauge", {}).get("dataPoints", ())
    }
    found = {}
    for database, nanoseconds in (("ours", "toUnixTimestamp64Nano(TimeUnix)"), ("theirs", "toUnixTimestamp(TimeUnix)")):
        rows = gateway.clickhouse.query(
            f"select distinct toString({nanoseconds}) as at from {database}.otel_metrics_gauge "
            f"where ResourceAttributes['gpumon.run.id'] = '{run_id_of(trained)}'"
        )
        found[database] = {int(row["at"]) for row in rows}

    assert any(time % SECOND for time in times)
    assert found["ours"] == times
    assert found["theirs"] == {time // SECOND for time in times}


def test_two_exports_within_one_second_add_up(gateway, tmp_path):
    """Where points have whole seconds two of a counter may be at one: nothing is counted twice, or lost."""
    run_id = "bb" * 16
    recorder = Recorder(tmp_path, run_id=run_id)
    for seconds in (1.0, 0.8, 0.1, 1.1, 0.5, 0.4, 0.3, 1.0) * 3:
        recorder.window(Training(step_s=0.05), seconds)
    write_run(tmp_path, ended_s=recorder.at_s, id=run_id)
    send(gateway, tmp_path, run_id)
    ours, theirs = report(tmp_path), report(address(gateway.clickhouse, "theirs", run_id))

    for part in ("steps", "fetches", "verdict"):
        assert is_same(ours[part], theirs[part]), part


def test_deltas_are_added_up(gateway, tmp_path):
    """As on the run that was not sent as deltas."""
    recorder = Recorder(tmp_path / "run", run_id="dd" * 16)
    for number in range(30):
        recorder.window(Training(step_s=0.05 if number % 3 else 0.2))
    write_run(tmp_path / "run", id="dd" * 16, ended_s=recorder.at_s)
    expected = build_report(tmp_path / "run").as_dict()
    recorder.metrics.write_text("".join(as_deltas(recorder.metrics.read_text().splitlines())))
    send(gateway, tmp_path / "run", "dd" * 16)
    found = build_report(address(gateway.clickhouse, "ours", "dd" * 16)).as_dict()

    assert expected["steps"]["count"] == 450
    for part in ("verdict", "findings", "steps", "fetches", "devices"):
        assert is_same(found[part], expected[part]), part


def test_runs_do_not_mix(gateway, recorded, trained):
    """Many runs in the same tables: what is asked of one, named by how its id begins, is of that one alone."""
    for database in DATABASES:
        for run in (recorded, trained):
            with open_run(address(gateway.clickhouse, database, run_id_of(run)[:8])) as found:
                assert found.path == address(gateway.clickhouse, database, run_id_of(run))
                for table in ("stg_points", "stg_spans", "gpumon_processes", "stg_histograms"):
                    ids = query(found.execute, f"select distinct run_id from {table} where run_id <> ''")
                    assert ids == [{"run_id": run_id_of(run)}], table
                assert (
                    len(query(found.execute, """select "Body" from otel_logs where "EventName" = 'gpumon.run'""")) == 1
                )


def test_the_newest_run_is_the_default(gateway, recorded, trained):
    """Of what the database holds: recordings of this test are older than a training of now."""
    with open_run(address(gateway.clickhouse, "ours")) as found:
        assert found.path.endswith(f"?run={run_id_of(trained)}")


def test_a_run_that_is_not_there(gateway, recorded, trained):
    """The ones that are, newest first, with what tells them apart."""
    name = address(gateway.clickhouse, "ours")
    with pytest.raises(RunError) as error:
        build_report(f"{name}?run=nowhere")

    text = str(error.value)
    assert text.startswith(f"no run 'nowhere' in {name}; there are: {run_id_of(trained)} (train, ")
    assert f"{run_id_of(recorded)} (train, 2026-09-21T14:13:21Z, " in text


def test_ids_that_begin_alike():
    """Too short a beginning names all that it could be; a whole id is meant, whatever begins with it."""
    runs = [KnownRun(id, "train", START_S, START_S + 60, 7) for id in ("eec0", "eed0", "eed01", "ff")]

    def chosen(text):
        return choose(runs, parse(f"clickhouse://host/otel?run={text}")).id

    assert (chosen("eec"), chosen("eed0"), chosen("f")) == ("eec0", "eed0", "ff")
    with pytest.raises(RunError, match=r"'ee' begins the id of 3 runs in clickhouse://host:8123/otel: eec0 .*, eed0 "):
        chosen("ee")
    with pytest.raises(RunError, match=r"no runs in clickhouse://host:8123/otel"):
        choose([], parse("clickhouse://host/otel"))
