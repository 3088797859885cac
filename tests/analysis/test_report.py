"""Reports of recorded runs: what they say, what they hold it against, and what they could not see."""

import json
import math
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest

from compare_rows import is_same
from gpumon import metrics as m
from gpumon.analysis import report as module
from gpumon.analysis.load import load
from gpumon.analysis.quantiles import quantile
from gpumon.analysis.report import build_report
from gpumon.errors import RunError
from recorded import (
    START_S,
    Disk,
    Gpu,
    Recorder,
    Training,
    as_deltas,
    event_line,
    metrics_line,
    record,
    span,
    spans_line,
    step_spans,
    write_run,
)

SCHEMA = json.loads(Path(module.__file__).with_name("report.schema.json").read_text())
SLOW = Training(disks=[Disk(unloaded_s=0.078)])
COMPUTE = Training(
    phases={"data.wait": 0.03, "forward": 0.4, "backward": 0.5, "optimizer": 0.05, "other": 0.02},
    accounts={("cpu", ""): 1.0},
    fetch_s=0.01,
    trainer_cpus=1.0,
)


def report(path):
    """The report's JSON, held against its schema."""
    content = build_report(path).as_dict()
    jsonschema.validate(content, SCHEMA, format_checker=jsonschema.FormatChecker())
    json.dumps(content, allow_nan=False)
    return content


def finding(content, rule="DataLoadingBound"):
    return next(item for item in content["findings"] if item["rule"] == rule)


def missing(content):
    return {item["what"]: item["reason"] for item in content["missing"]}


def test_a_slow_disk_is_named_with_its_numbers(tmp_path):
    """Share, device, mount point, file system, latency and what it is held against, in one sentence."""
    content = report(record(tmp_path, SLOW))
    found = finding(content)

    assert content["verdict"] == "data_loading_bound"
    assert (found["cause"], found["device"], found["severity"], found["rank"]) == (
        "disk_slow",
        "loop0",
        "critical",
        None,
    )
    assert found["seconds_lost"] == pytest.approx(0.68 * 20, rel=0.02)
    assert (found["from_s"], found["to_s"]) == (0.0, 20.0)
    for words in (
        "70 % of each training step waits for data",
        "loop0",
        "/data/images",
        "ext4",
        "80 ms",
        "95 %",
        "2 workers",
    ):
        assert words in content["headline"]
    await_ = next(item for item in found["evidence"] if item["metric"] == "gpumon.disk.await")
    assert (await_["value"], await_["reference"]) == pytest.approx((0.08, 0.078))
    assert await_["unit"] == "s" and await_["source"] == "measured before the loader started"


def test_steps_are_counted_from_metrics(tmp_path):
    """All of them, whatever spans were kept: counts, phases that add up, durations."""
    recorder = Recorder(tmp_path)
    for _ in range(20):
        recorder.window(SLOW)
    recorder.write_spans(step_spans(3, START_S + 1, 0.2, {"data.wait": 0.1}))
    write_run(tmp_path, ended_s=recorder.at_s)
    steps = report(tmp_path)["steps"]

    assert (steps["count"], steps["samples"], steps["epochs"], steps["failed"]) == (200, 6400, 1, 0)
    assert steps["data_wait_fraction"] == pytest.approx(0.7)
    assert sum(steps["phases"].values()) == pytest.approx(1.0)
    assert steps["phases"]["backward"] == pytest.approx(0.15)
    assert steps["duration_s"] == pytest.approx({"mean": 0.1, "p50": 0.1, "p95": 0.1, "max": 0.1})


def test_devices_have_means_and_peaks(tmp_path):
    """The data set's disk first, then a busy one; idle ones are left out; CPU and GPU."""
    idle = Disk("sdb", holds_dataset=False, queue=0.0, utilization=0.0, read_bytes_per_s=0.0)
    busy = Disk("sda", "HDD", holds_dataset=False, await_s=0.012, utilization=0.6)
    content = report(record(tmp_path, Training(disks=[idle, busy, *SLOW.disks], gpus=[Gpu(busy=0.19)])))
    disks = [item for item in content["devices"] if item["type"] == "disk"]

    assert [(item["id"], item["holds_dataset"], item.get("kind")) for item in disks] == [
        ("loop0", True, "virtual"),
        ("sda", False, "HDD"),
    ]
    assert disks[0]["await_s"] == pytest.approx({"mean": 0.08, "peak": 0.08})
    assert disks[0]["read_bytes_per_s"] == pytest.approx({"mean": 5e6, "peak": 5e6})
    assert disks[0]["queue_length"]["mean"] == pytest.approx(2.0)
    assert (disks[0]["mount_point"], disks[0]["file_system"], disks[0]["unloaded_await_s"]) == (
        "/data/images",
        "ext4",
        0.078,
    )
    by_type = {item["type"]: item for item in content["devices"]}
    assert by_type["gpu"]["utilization"]["mean"] == pytest.approx(0.19)
    assert by_type["cpu"]["usable"] == 2
    assert by_type["cpu"]["utilization"]["mean"] == pytest.approx(0.3)


def test_fetches_add_up_to_their_wall_time(tmp_path):
    """Accounts with device, largest first."""
    fetches = report(record(tmp_path, SLOW))["fetches"]

    assert (fetches["workers"], fetches["count"]) == (2, 200)
    assert fetches["mean_s"] == pytest.approx(0.17)
    assert sum(item["seconds"] for item in fetches["accounts"]) == pytest.approx(fetches["wall_s"])
    assert fetches["accounts"][0] == {
        "account": "blocked.disk",
        "device": "loop0",
        "call": None,
        "file_system": None,
        "fraction": pytest.approx(0.95),
        "seconds": pytest.approx(32.3),
    }


def test_a_healthy_run_has_no_findings(tmp_path):
    """Compute takes the time; the sentence says so."""
    content = report(record(tmp_path, COMPUTE))

    assert (content["verdict"], content["findings"], content["missing"]) == ("compute_bound", [], [])
    assert content["headline"] == "Nothing stands out: compute 95 % of the step, data wait 3 %."


@pytest.mark.parametrize(
    ("training", "cause", "device"),
    [
        (Training(disks=[Disk(await_s=0.0007, queue=0.03, unloaded_s=0.0004)]), "disk_quota", "loop0"),
        (Training(disks=[Disk(await_s=0.027, queue=2.9, unloaded_s=0.011)]), "disk_saturated", "loop0"),
        (
            Training(disks=[Disk(await_s=0.08, queue=6.0, unloaded_s=0.002, read_bytes_per_s=5e7)]),
            "disk_contended",
            "loop0",
        ),
        (Training(disks=[Disk(await_s=0.003, queue=2.0, unloaded_s=0.003)]), "too_few_workers", "loop0"),
        (
            Training(disks=[Disk(await_s=0.013, queue=3.0)], refaulted_bytes_per_s=4e6, limit_hits_per_s=2),
            "memory_pressure",
            "loop0",
        ),
        (
            Training(accounts={("blocked.network_fs", "fuse.sshfs"): 0.97, ("cpu", ""): 0.03}, disks=[]),
            "network_filesystem",
            None,
        ),
        (Training(accounts={("blocked.socket", ""): 0.97, ("cpu", ""): 0.03}, disks=[]), "network", None),
        (Training(accounts={("cpu", ""): 0.99, ("runnable", ""): 0.01}, disks=[]), "loader_cpu", None),
        (Training(accounts={("cpu", ""): 0.4, ("runnable", ""): 0.6}, disks=[]), "cpu_limit", None),
        (
            Training(accounts={("cpu", ""): 0.95, ("runnable", ""): 0.05}, throttled_fraction=0.5, disks=[]),
            "cpu_limit",
            None,
        ),
        (Training(accounts={("blocked.sleep", ""): 0.97, ("cpu", ""): 0.03}, disks=[]), "too_few_workers", None),
        (Training(accounts={("cpu", ""): 1.0}, fetch_s=0.01, handover_fraction=0.9, disks=[]), "handover", None),
        (
            Training(first_wait_s=3.0, epochs_per_s=0.5, phases={"data.wait": 0.05, "forward": 0.95}),
            "worker_startup",
            None,
        ),
        (Training(accounts={("blocked.other", "futex"): 0.97, ("cpu", ""): 0.03}, disks=[]), "unknown", None),
        (
            Training(
                accounts={("blocked.disk", "loop0"): 0.95, ("cpu", ""): 0.05}, workers=0, disks=[Disk(unloaded_s=0.08)]
            ),
            "disk_slow",
            "loop0",
        ),
    ],
)
def test_every_cause_comes_out_of_a_recording(tmp_path, training, cause, device):
    """From the lines of a run to the cause by name."""
    content = report(record(tmp_path, training))
    found = finding(content)

    assert (content["verdict"], found["cause"], found["device"]) == ("data_loading_bound", cause, device)
    assert found["summary"] == content["headline"]
    assert 0 < found["confidence"] <= 0.95
    assert 1 <= len(found["advice"]) <= 3


def test_a_disk_that_became_slow_is_judged_by_the_time_it_was(tmp_path):
    """Quick at first: its own quiet windows are what the rest is held against."""
    recorder = Recorder(tmp_path)
    quick = Disk(await_s=0.002, queue=0.4, read_bytes_per_s=5e7)
    for _ in range(10):
        recorder.window(Training(phases=COMPUTE.phases, fetch_s=0.01, disks=[quick], own_read_bytes_per_s=5e7))
    for _ in range(20):
        recorder.window(Training(disks=[Disk(await_s=0.08, queue=2.0)]))
    write_run(tmp_path, ended_s=recorder.at_s)
    content = report(tmp_path)
    found = finding(content)

    assert (found["cause"], found["device"]) == ("disk_slow", "loop0")
    assert (found["from_s"], found["to_s"]) == (10.0, 30.0)
    assert "40× its quiet baseline (2.0 ms)" in content["headline"]


def test_exports_that_are_far_apart_are_no_quota(tmp_path):
    """With two exports a minute, half of the run has no disk counters: nothing is held against that half."""
    content = report(record(tmp_path, Training(disks=[Disk(unloaded_s=0.08)]), seconds=60, window_s=30.0))

    assert finding(content)["cause"] == "disk_slow"


def test_two_ranks_are_one_training(tmp_path):
    """Steps as each rank makes them, samples of both, one disk between them."""
    for rank in (0, 1):
        recorder = Recorder(tmp_path, rank=rank, instance=f"instance-{rank}")
        for _ in range(20):
            recorder.window(Training(disks=[Disk(unloaded_s=0.08, queue=4.0, read_bytes_per_s=1e7)]))
    write_run(tmp_path, ended_s=recorder.at_s)
    content = report(tmp_path)

    assert content["run"]["ranks"] == [0, 1]
    assert (content["steps"]["count"], content["steps"]["samples"]) == (200, 12800)
    assert content["steps"]["data_wait_fraction"] == pytest.approx(0.7)
    found = finding(content)
    assert found["cause"] == "disk_slow"
    assert found["seconds_lost"] == pytest.approx(13.6, rel=0.05)
    assert next(item for item in content["devices"] if item["id"] == "loop0")["read_bytes_per_s"][
        "mean"
    ] == pytest.approx(1e7)


def test_a_helper_process_that_trains_nothing_adds_nothing(tmp_path):
    """It samples the same devices; only what trained is counted."""
    record(tmp_path, SLOW)
    helper = Recorder(tmp_path, instance="helper")
    for second in range(20):
        helper.at_s = START_S + second + 0.5
        helper.write(
            [
                (m.DISK_UTILIZATION, 0.1, {m.SYSTEM_DEVICE: "loop0"}),
                (m.OVERHEAD_TIME, 0.1 * second, {m.OVERHEAD: "background"}),
            ]
        )
    content = report(tmp_path)

    assert content["steps"]["count"] == 200
    assert next(item for item in content["devices"] if item["id"] == "loop0")["utilization"]["mean"] == pytest.approx(
        1.0
    )


def test_a_killed_run_still_has_its_report(tmp_path):
    """SIGKILL leaves no end and a torn last line: everything until then is there."""
    record(tmp_path, SLOW, seconds=15, ended=None, exit_code=None, signal=None)
    with open(next(tmp_path.glob("metrics.*")), "a") as file:
        file.write('{"resourceMetrics":[{"resour')
    content = report(tmp_path)

    assert (content["run"]["complete"], content["run"]["exit_code"]) == (False, None)
    assert content["run"]["duration_s"] == 15.0
    assert content["verdict"] == "data_loading_bound"
    assert content["missing"] == []


@pytest.mark.parametrize(("given", "expected"), [
    ({"exit_code": 0}, (True, 0, None)),
    ({"exit_code": 3}, (True, 3, None)),
    ({"exit_code": 137, "signal": 9}, (False, 137, 9)),
    ({"exit_code": -15}, (False, 143, 15)),
    ({"exit_code": None}, (True, None, None)),
])  # fmt: skip
def test_how_a_run_ended(tmp_path, given, expected):
    """As `run.json` says it; a signal is not an end by itself."""
    run = report(record(tmp_path, COMPUTE, **given))["run"]

    assert (run["complete"], run["exit_code"], run["signal"]) == expected


def test_what_was_not_seen_is_said(tmp_path):
    """Blind collectors, damaged lines, lost records, assumed steps, dropped segments, notes of the recorder."""
    training = Training(extra=[
        (m.COLLECTOR_UP, 0, {m.COLLECTOR: "gpu", m.REASON: "NVML: driver not loaded"}),
        (m.FETCH_LOST, 12, {}),
        (m.STEP_ASSUMED, 40, {m.STAGE: "train"}),
    ])  # fmt: skip
    record(
        tmp_path,
        training,
        dropped={"traces": 3, "metrics": 0, "logs": 0},
        not_recorded=["/usr/bin/other has no gpumon"],
    )
    file = next(tmp_path.glob("metrics.*"))
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:4], "garbage\n", *lines[4:]]))
    content = report(tmp_path)
    said = missing(content)

    assert said["gpu"] == "NVML: driver not loaded"
    assert said[file.name] == "line 5 is damaged, skipped"
    assert said["fetches"] == "overwritten before they were read, and in no account: 12"
    assert "40 of 200" in said["steps"]
    assert said["traces"].startswith("3 segments were deleted")
    assert said["recording"] == "/usr/bin/other has no gpumon"
    assert content["run"]["complete"] is False
    assert content["steps"]["assumed"] == 40


def test_a_run_without_metrics_is_reported_as_what_it_is(tmp_path):
    """The command ended before anything was exported."""
    write_run(tmp_path, ended_s=START_S + 0.2)
    content = report(tmp_path)

    assert (content["verdict"], content["headline"]) == ("insufficient_data", "No training step was seen.")
    assert content["steps"]["data_wait_fraction"] is None
    assert missing(content)["metrics"] == "none were recorded"


def test_a_collector_file_is_a_run_too(tmp_path):
    """One file of a Collector's exporter: spans and metrics mixed, no run.json."""
    record(tmp_path / "run", SLOW)
    spans = Recorder(tmp_path / "run")
    spans.write_spans(step_spans(3, START_S + 1, 0.2, {"data.wait": 0.1}))
    files = sorted((tmp_path / "run").glob("*.jsonl"))
    mixed = [
        line for pair in zip(*(file.read_text().splitlines() * 20 for file in files), strict=False) for line in pair
    ]
    file = tmp_path / "otlp.jsonl"
    file.write_text("\n".join(dict.fromkeys(mixed)) + "\n")
    content = report(file)

    assert (content["verdict"], finding(content)["cause"]) == ("data_loading_bound", "disk_slow")
    assert (content["run"]["service"], content["run"]["hosts"], content["run"]["exit_code"]) == (
        "train",
        ["node17"],
        None,
    )
    assert content["run"]["duration_s"] == pytest.approx(20.0)
    assert content["run"]["started"] == "2026-09-21T14:13:20.000Z"


def test_a_collector_file_holds_more_than_the_run(tmp_path):
    """Another application's spans, the Collector's own host metrics, an hour before and after: nothing of it counts."""
    recorder = Recorder(tmp_path / "run")
    for _ in range(30):
        recorder.window(Training(gpus=[Gpu(busy=0.2)]))
    recorder.write_spans(step_spans(3, START_S + 2, 0.1, {"forward": 0.1}))
    own = recorder.metrics.read_text() + recorder.traces.read_text()
    shop = {"run_id": "", "service": "shop", "instance": "web", "host.name": "web01"}
    others = [
        line
        for at_s in (START_S - 3600, START_S + 5, START_S + 3600)
        for line in (
            spans_line([span("GET /", at_s, 1.0, int(at_s), int(at_s))], **shop),
            metrics_line(at_s, [(m.DISK_UTILIZATION, 1.0, {m.SYSTEM_DEVICE: "sdz"})], **shop),
            event_line(at_s, "gpumon.gpu.xid", {}, **shop),
        )
    ]
    alone, mixed = tmp_path / "alone.jsonl", tmp_path / "mixed.jsonl"
    alone.write_text(own)
    mixed.write_text("".join(others) + own)
    expected, found = (build_report(file).as_dict() for file in (alone, mixed))

    for part in ("verdict", "findings", "steps", "devices", "missing"):
        assert is_same(found[part], expected[part]), part
    assert {**found["run"], "path": None} == {**expected["run"], "path": None}
    assert found["run"]["duration_s"] == pytest.approx(30, abs=1)


def test_points_that_came_twice_change_nothing(tmp_path):
    """A Collector's file has a request twice where it was sent again."""
    once, twice = tmp_path / "once.jsonl", tmp_path / "twice.jsonl"
    recorder = Recorder(tmp_path / "run")
    for _ in range(30):
        recorder.window(Training())
    once.write_text(recorder.metrics.read_text())
    twice.write_text("".join(2 * line for line in recorder.metrics.read_text().splitlines(keepends=True)))
    expected, found = (build_report(file).as_dict() for file in (once, twice))

    assert expected["devices"][0]["read_bytes_per_s"]["mean"] > 0
    for part in ("verdict", "findings", "steps", "devices"):
        assert is_same(found[part], expected[part])


def test_deltas_are_added_up(tmp_path):
    """The temporality that a vendor asks for changes no figure."""
    recorder = Recorder(tmp_path / "run")
    for number in range(30):
        recorder.window(Training(step_s=0.05 if number % 3 else 0.2, epochs_per_s=0.1))
    cumulative, deltas = tmp_path / "cumulative.jsonl", tmp_path / "deltas.jsonl"
    cumulative.write_text(recorder.metrics.read_text())
    deltas.write_text("".join(as_deltas(recorder.metrics.read_text().splitlines())))
    expected, found = (build_report(file).as_dict() for file in (cumulative, deltas))

    assert expected["steps"]["count"] > 300
    for part in ("verdict", "findings", "steps", "fetches", "devices", "missing"):
        assert is_same(found[part], expected[part]), part


def test_a_run_begins_with_its_first_step(tmp_path):
    """Its provider may export a minute later, once, and its points do not say since when they count."""
    recorder = Recorder(tmp_path)
    recorder.write_spans(step_spans(1, START_S, 0.1, {"forward": 0.1}))
    recorder.window(Training(), seconds=60)
    file = tmp_path / "otlp.jsonl"
    file.write_text(recorder.metrics.read_text() + recorder.traces.read_text())

    assert build_report(file).run["duration_s"] == pytest.approx(60, abs=0.5)


def test_a_gpus_other_engines_do_not_make_it_idle(tmp_path):
    """Encoder and decoder have a utilization of their own."""
    recorder = Recorder(tmp_path)
    for _ in range(3):
        recorder.window(Training(gpus=[Gpu(busy=0.8), Gpu("GPU-1", 1, busy=0.6)]))
    rows = load(tmp_path).connection.execute("select gpu_utilization from gpumon_windows").fetchall()

    assert [value for (value,) in rows] == [pytest.approx(0.7)] * 3


def test_the_identity_may_be_on_the_points(tmp_path):
    """Where the provider is the application's, run and rank are attributes of points, not of the resource."""
    recorder = Recorder(tmp_path, on_points={"gpumon.rank": 3, "gpumon.run.id": "abc"})
    for _ in range(20):
        recorder.window(SLOW)
    content = report(tmp_path)

    assert content["run"]["service"] == "app"
    assert (content["run"]["ranks"], content["run"]["id"]) == ([3], "abc")
    assert content["steps"]["count"] == 200


def test_the_newest_run_is_the_default(tmp_path, monkeypatch):
    """`gpumon report` without a name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="no recorded runs under 'gpumon-runs/'"):
        build_report()
    record("gpumon-runs/a", COMPUTE)
    record("gpumon-runs/b", SLOW, started="2026-09-22T00:00:00.000Z", ended=None)

    assert build_report().path == Path("gpumon-runs/b")


def test_reports_read_as_values(tmp_path):
    """In Python: attributes, and one line of repr."""
    found = build_report(record(tmp_path, SLOW))

    assert found.steps.data_wait_fraction == pytest.approx(0.7)
    assert found.findings[0].cause == "disk_slow"
    assert repr(found) == "<Report train 200 steps: data_loading_bound (disk_slow on loop0)>"


@pytest.mark.parametrize(
    ("q", "expected"),
    [(0.5, 0.02), (0.25, 0.015), (0.95, 0.38), (0.0, 0.01), (1.0, 0.4)],
)
def test_quantiles_lie_on_a_line_within_their_bucket(q, expected):
    """Ten fast steps and ten slow ones; never outside of what was seen."""
    assert quantile(q, [0, 10, 10, 0], [0.01, 0.02, 0.5], 0.005, 0.4) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("mean", "spread"), [(10.3, 0.3), (12.5, 1.0), (15.5, 0.2), (26.5, 0.4)])
def test_quantiles_of_a_steady_loop(mean, spread):
    """Nearly all steps in one bucket, with one that was slow: the sum says where in it."""
    drawn = random.Random(3)
    steps = sorted([*(max(1.0, drawn.gauss(mean, spread)) for _ in range(500)), 300.0])
    bounds = [10.0, 16.0, 25.0, 40.0, 63.0, 100.0, 160.0, 250.0, 400.0]
    counts = [sum(low < step <= high for step in steps) for low, high in pairwise([0.0, *bounds, math.inf])]

    for q in (0.5, 0.95):
        found = quantile(q, counts, bounds, steps[0], steps[-1], sum(steps))
        assert found == pytest.approx(steps[round(q * 500)], rel=0.12), q


@pytest.mark.timeout(120)
def test_a_million_steps_are_reported_within_seconds_and_half_a_gigabyte(tmp_path):
    """A fresh process, 10 minutes at 0.6 ms a step: time, and memory at its peak."""
    recorder = Recorder(tmp_path)
    extra = [(m.DISK_UTILIZATION, 0.1, {m.SYSTEM_DEVICE: f"sd{letter}"}) for letter in "abcdefghijklmnopqrstuvwx"]
    extra += [
        (m.DISK_IO, 5 * number, {m.SYSTEM_DEVICE: f"sd{number}", m.DISK_IO_DIRECTION: "read"}) for number in range(100)
    ]
    fast = Training(step_s=0.0006, extra=extra)
    for window in range(330):
        recorder.window(fast, 1.0 if window < 300 else 10.0)
        recorder.write_spans(
            step_spans(window * 1000 + 1, recorder.at_s, 0.01, {"data.wait": 0.005, "forward": 0.004}, "slow")
        )
    write_run(tmp_path, ended_s=recorder.at_s)
    code = (
        "import sys, time; began = time.monotonic()\n"
        "from gpumon.analysis.report import build_report\n"
        "report = build_report(sys.argv[1])\n"
        "took = time.monotonic() - began\n"
        # Not ru_maxrss: that of a child begins with what its parent, this test process, had.
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(report.steps.count, took, peak)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=os.environ)
    steps, seconds, kib = done.stdout.split()

    assert int(steps) >= 1_000_000
    assert float(seconds) <= 5.0
    assert int(kib) <= 512 * 1024


def test_a_report_needs_no_run_of_ours(tmp_path):
    """Another service's metrics in a Collector file: no steps, no error."""
    file = tmp_path / "other.jsonl"
    file.write_text(metrics_line(START_S, [(m.CPU_BUSIEST, 0.5, {})]))

    assert report(file)["verdict"] == "insufficient_data"
