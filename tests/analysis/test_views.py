"""Given points and spans, the rows of every view; the same on DuckDB and on ClickHouse."""

import math
from bisect import bisect_left
from itertools import pairwise

import pytest

import clickhouse_oracle
from compare_rows import assert_same_rows
from gpumon import metrics as m
from gpumon.analysis.load import load
from gpumon.analysis.rows import query
from gpumon.analysis.views import VIEWS, text
from gpumon.metrics import DURATION_BOUNDS
from recorded import (
    RUN_ID,
    START_S,
    Disk,
    Gpu,
    Recorder,
    Training,
    record,
    record_agent,
    record_everything,
    step_spans,
)

TRAIN = {m.STAGE: "train"}


def rows(run, view, columns, where="true", order="all"):
    """Chosen columns of a view; times as seconds since the start of the recording."""
    shown = ", ".join(
        f"round({name} - {START_S}, 6)" if name in ("begin_s", "end_s", "at_s") else name for name in columns
    )
    return run.connection.execute(f"select {shown} from {view} where {where} order by {order}").fetchall()


def exports(tmp_path, *points, step=1.0, **who):
    """One export a second, of the points given for each."""
    recorder = Recorder(tmp_path, **who)
    for given in points:
        recorder.at_s += step
        recorder.write(given)
    return load(tmp_path)


def test_points_have_their_identity_as_columns(tmp_path):
    """Device, part, role: what tells series apart, whatever attribute says it."""
    run = exports(
        tmp_path,
        [
            (m.DISK_IO, 5, {m.SYSTEM_DEVICE: "sda", m.DISK_IO_DIRECTION: "read"}),
            (m.PROCESS_CPU_TIME, 1.5, {m.PROCESS_ROLE: "trainer", m.CPU_MODE: "user"}),
            (
                m.PRESSURE_STALL_RATIO,
                0.5,
                {m.PRESSURE_SCOPE: "cgroup", m.PRESSURE_RESOURCE: "io", m.PRESSURE_KIND: "some"},
            ),
            (m.MEMORY_USAGE, 7, {m.SYSTEM_MEMORY_STATE: "used"}),
            (m.CPU_BUSIEST, 0.9, {}),
        ],
    )

    assert rows(run, "stg_points", ("metric", "kind", "device", "part", "role", "value", "at_s")) == [
        ("gpumon.cpu.busiest.utilization", "gauge", "", "", "", 0.9, 1.0),
        ("gpumon.pressure.stall.ratio", "gauge", "", "cgroup.io.some", "", 0.5, 1.0),
        ("process.cpu.time", "counter", "", "user", "trainer", 1.5, 1.0),
        ("system.disk.io", "counter", "sda", "read", "", 5.0, 1.0),
        ("system.memory.usage", "gauge", "", "used", "", 7.0, 1.0),
    ]


def test_a_point_that_ends_its_series_is_no_reading(tmp_path):
    """A Collector that scrapes writes 0 with a flag when a series is gone."""
    recorder = Recorder(tmp_path)
    recorder.at_s += 1
    recorder.write([(m.CPU_BUSIEST, 0.5, {})])
    recorder.at_s += 1
    recorder.write([(m.CPU_BUSIEST, 0.0, {})])
    first, last = recorder.metrics.read_text().splitlines()
    recorder.metrics.write_text(first + "\n" + last.replace('"asDouble"', '"flags":1,"asDouble"') + "\n")

    assert rows(load(tmp_path), "stg_points", ("value", "at_s")) == [(0.5, 1.0)]


def test_counters_that_ran_before_have_no_first_change(tmp_path):
    """A disk counts since the boot; steps count since the training began."""
    device = {m.SYSTEM_DEVICE: "sda", m.DISK_IO_DIRECTION: "read"}
    run = exports(
        tmp_path,
        [(m.DISK_IO, 1000, device), (m.STEP_COUNT, 4, TRAIN)],
        [(m.DISK_IO, 1300, device), (m.STEP_COUNT, 9, TRAIN)],
        [(m.DISK_IO, 200, device), (m.STEP_COUNT, 9, TRAIN)],
    )

    assert rows(run, "stg_counters", ("metric", "at_s", "delta")) == [
        ("gpumon.step.count", 1.0, 4.0),
        ("gpumon.step.count", 2.0, 5.0),
        ("gpumon.step.count", 3.0, 0.0),
        ("system.disk.io", 1.0, None),
        ("system.disk.io", 2.0, 300.0),
        ("system.disk.io", 3.0, 0.0),
    ]


def test_windows_reach_from_export_to_export(tmp_path):
    """The first is as long as the second; processes have their own."""
    recorder = Recorder(tmp_path)
    for at_s in (2, 4, 14):
        recorder.at_s = START_S + at_s
        recorder.write([(m.STEP_COUNT, at_s, TRAIN)])
    run = exports(tmp_path, [(m.STEP_COUNT, 1, TRAIN)], rank=1, instance="instance-1")

    assert rows(run, "stg_windows", ("rank", "begin_s", "end_s")) == [
        (0, 0.0, 2.0),
        (0, 2.0, 4.0),
        (0, 4.0, 14.0),
        (1, 0.0, 1.0),
    ]


def test_windows_count_all_steps_beside_the_disk_of_the_data_set(tmp_path):
    """From counters, whatever spans were kept; a second disk that holds no data stays out."""
    training = Training(
        disks=[Disk(), Disk("sda", holds_dataset=False, await_s=0.3, read_bytes_per_s=9e9)], gpus=[Gpu(busy=0.2)]
    )
    run = load(record(tmp_path, training, seconds=3))
    columns = (
        "end_s",
        "steps",
        "samples",
        "step_s",
        "wait_s",
        "forward_s",
        "wait_fraction",
        "disk",
        "disk_await_s",
        "disk_queue",
    )

    found = rows(run, "gpumon_windows", columns, "end_s > 0", "end_s")
    assert [row[0] for row in found] == [1.0, 2.0, 3.0]
    for row in found:
        assert row[1:7] == pytest.approx((10, 320, 1.0, 0.7, 0.1, 0.7))
        assert row[7:] == ("loop0", 0.08, 2.0)
    (reading,) = rows(
        run, "gpumon_windows", ("cpu_utilization", "gpu_utilization", "disk_read_bytes_per_s"), "end_s % 10 = 2"
    )
    assert reading == pytest.approx((0.3, 0.2, 5e6))


def test_device_windows_have_means_and_rates(tmp_path):
    """A gauge as it is, a counter per second and as a change."""
    run = load(record(tmp_path, seconds=4, window_s=2.0))
    columns = ("end_s", "value", "delta")

    assert rows(run, "gpumon_device_windows", columns, "metric = 'system.disk.io' and part = 'read'") == [
        (4.0, 5e6, 1e7)
    ]
    assert rows(run, "gpumon_device_windows", columns, "metric = 'gpumon.disk.await'") == [
        (2.0, 0.08, None),
        (4.0, 0.08, None),
    ]


def test_totals_and_phases_add_up(tmp_path):
    """Phases of a stage are its step time."""
    run = load(record(tmp_path, Training(first_wait_s=2.0, epochs_per_s=0.5), seconds=4))
    ((steps, samples, epochs, step_s, first, first_wait_s),) = rows(
        run, "gpumon_totals", ("steps", "samples", "epochs", "step_s", "first_of_epoch_steps", "first_of_epoch_wait_s")
    )

    assert (steps, samples, epochs, first) == (40, 1280, 2, 2)
    assert (step_s, first_wait_s) == pytest.approx((8.0, 4.14))
    assert run.connection.execute("select sum(phase_s) from gpumon_phases").fetchone()[0] == pytest.approx(step_s)


def test_accounts_of_fetches_by_window_and_worker(tmp_path):
    """Two workers, 10 fetches of 170 ms a second between them."""
    run = load(record(tmp_path, seconds=1))

    assert rows(
        run,
        "gpumon_fetches",
        ("worker_id", "round(fetches, 6)", "round(wall_s, 6)", "round(cpu_s, 6)", "round(blocked_disk_s, 6)"),
    ) == [
        (0, 5.0, 0.85, 0.034, 0.8075),
        (1, 5.0, 0.85, 0.034, 0.8075),
    ]
    assert rows(run, "gpumon_fetch_accounts", ("account", "device", "round(seconds, 6)"), "worker_id = 1") == [
        ("blocked.disk", "loop0", 0.8075),
        ("cpu", "", 0.034),
        ("runnable", "", 0.0085),
    ]


def test_collectors_say_why_they_were_blind(tmp_path):
    """The last state, whether it ever worked, and the reason of the last failure."""

    def up(name, value, reason=None):
        return (m.COLLECTOR_UP, value, {m.COLLECTOR: name, **({m.REASON: reason} if reason else {})})

    run = exports(
        tmp_path,
        [up("disk", 1), up("gpu", 0, "NVML: driver not loaded"), up("host", 1)],
        [up("disk", 1), up("gpu", 0, "NVML: driver not loaded"), up("host", 0, "gone")],
    )

    assert rows(run, "gpumon_collectors", ("collector", "up", "was_up", "reason")) == [
        ("disk", 1, 1, None),
        ("gpu", 0, 0, "NVML: driver not loaded"),
        ("host", 0, 1, "gone"),
    ]


def test_the_last_state_of_a_histogram_counts(tmp_path):
    """Cumulative buckets: earlier ones are part of it."""
    run = load(record(tmp_path, seconds=3))
    index = 1 + bisect_left(DURATION_BOUNDS, 0.1)  # SQL counts from 1
    columns = ("number", "total", "minimum", "maximum", f"counts[{index}]")
    ((number, total, minimum, maximum, bucket),) = rows(
        run, "stg_histograms", columns, "metric = 'gpumon.step.duration'"
    )

    assert (number, minimum, maximum, bucket) == (30, 0.1, 0.1, 30)
    assert total == pytest.approx(3.0)


def test_kept_steps_have_their_parts(tmp_path):
    """One row per step, phases from its children; the slowest carry the readings of their own window."""
    recorder = Recorder(tmp_path)
    for _ in range(4):
        recorder.window(Training())
    own = {
        "gpumon.window.disk.device": "loop0",
        "gpumon.window.disk.await": 0.093,
        "gpumon.epoch": 1,
        "gpumon.batch.size": 32,
    }
    recorder.write_spans(step_spans(3, START_S + 0.5, 0.4, {"data.wait": 0.3, "forward": 0.1}, "slow", **own))
    recorder.write_spans(step_spans(9, START_S + 2.0, 0.2, {"data.wait": 0.1, "optimizer": 0.05}))
    recorder.write_spans(step_spans(1, START_S + 3.0, 0.9, {"forward": 0.9}, stage="validation"))
    run = load(tmp_path)

    columns = (
        "stage",
        "step",
        "epoch",
        "samples",
        "duration_s",
        "wait_s",
        "forward_s",
        "optimizer_s",
        "keep_reason",
        "is_slow",
    )
    assert rows(run, "gpumon_steps", columns) == [
        ("train", 3, 1, 32, 0.4, 0.3, 0.1, 0.0, "slow", 1),
        ("train", 9, None, None, 0.2, 0.1, 0.0, 0.05, "sampled", 0),
        ("validation", 1, None, None, 0.9, 0.0, 0.9, 0.0, "sampled", 0),
    ]
    assert rows(run, "gpumon_slow_steps", ("place", "step", "duration_s", "disk", "disk_await_s", "disk_queue")) == [
        (1, 3, 0.4, "loop0", 0.093, 2.0),
        (2, 9, 0.2, "loop0", 0.08, 2.0),
    ]


def varied(tmp_path, windows=30):
    """A run whose disk slows down and recovers, and whose steps follow."""
    recorder = Recorder(tmp_path)
    for window in range(windows):
        delay = 0.02 + 0.06 * math.sin(window / 4) ** 2
        step_s = 0.05 + delay
        wait = {"data.wait": delay / step_s, "forward": 0.04 / step_s, "optimizer": 0.01 / step_s}
        recorder.window(
            Training(step_s=step_s, phases=wait, disks=[Disk(await_s=delay)], gpus=[Gpu(busy=1 - delay / step_s)])
        )
    own = {"gpumon.window.disk.await": 0.08}
    recorder.write_spans(step_spans(3, START_S + 5.5, 0.4, {"data.wait": 0.3, "forward": 0.1}, "slow", **own))
    recorder.write_spans(step_spans(4, START_S + 9.5, 0.2, {"data.wait": 0.1}))
    return load(tmp_path)


def test_correlations_find_what_moves_with_a_phase(tmp_path):
    """Await rises with the wait, the GPU falls; both without lag, over all windows."""
    run = varied(tmp_path)
    found = {
        row[0]: row[1:]
        for row in rows(
            run,
            "gpumon_correlations",
            ("metric", "r", "rho", "lag_windows", "n"),
            "phase = 'data.wait' and part in ('read', 'general')",
        )
    }

    assert found["gpumon.disk.await"][:2] == pytest.approx((1.0, 1.0), abs=0.01)
    assert found["gpumon.disk.await"][2:] == (0, 30)
    assert found["hw.gpu.utilization"][:2] == pytest.approx((-1.0, -1.0), abs=0.02)


def test_correlations_see_a_device_that_is_ahead(tmp_path):
    """The disk slows down one window before the steps do."""
    recorder = Recorder(tmp_path)
    delays = [0.02 + 0.06 * (window % 7 in (2, 3)) + 0.001 * window for window in range(40)]
    for before, now in pairwise(delays):
        wait = {"data.wait": before / (0.05 + before), "forward": 0.05 / (0.05 + before)}
        recorder.window(Training(step_s=0.05 + before, phases=wait, disks=[Disk(await_s=now)]))
    run = load(tmp_path)
    ((lag, r, n),) = rows(
        run, "gpumon_correlations", ("lag_windows", "r", "n"), "phase = 'data.wait' and metric = 'gpumon.disk.await'"
    )

    assert (lag, n) == (1, 38)
    assert r > 0.95


def test_disk_health_is_empty_until_smart_is_read(tmp_path):
    """No reading, no row."""
    assert rows(varied(tmp_path, 3), "gpumon_disk_health", ("serial_number",)) == []


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_says_what_a_row_is(view):
    """A header with the meaning, the grain and the units; the file is the view."""
    first, *rest = text(view).splitlines()

    assert first.startswith("-- ") and (first.endswith(".") or rest[0].startswith("-- "))
    assert "-- Grain:   one row per " in text(view)
    assert f"create or replace view {view} as" in text(view)


def test_clickhouse_gives_the_same_rows(tmp_path):
    """One SQL text, two engines: every view, every row, every column."""
    run = load(record_everything(tmp_path, node="node-17"))
    theirs = clickhouse_oracle.run_views(run.connection, VIEWS)
    for view in VIEWS:
        ours = query(run.connection.execute, f"select * from {view}")
        assert ours, f"{view} is not tested: it is empty"
        assert_same_rows(ours, theirs[view], view)
    assert {row["run_id"] for row in theirs["gpumon_windows"]} == {RUN_ID, ""}  # the agent belongs to no run


def agent_beside(tmp_path):
    """20 s of a training on node-1 that uses GPU-0 and reads sda itself; agents on node-1 and node-2, every 5 s."""
    read = {m.DISK_IO_DIRECTION: "read"}
    exports(
        tmp_path,
        *(
            [
                (m.GPU_INFO, 1, {m.HW_ID: "GPU-0", m.GPU_INDEX: 0}),
                (m.DISK_IO, 100 * second, {m.SYSTEM_DEVICE: "sda", **read}),
                (m.CPU_USABLE, 4, {}),
            ]
            for second in range(20)
        ),
        node="node-1",
    )
    for node, each in (("node-1", 50), ("node-2", 7)):
        told = [
            [
                (m.DISK_IO, each * number, {m.SYSTEM_DEVICE: "sda", **read}),
                (m.DISK_IO, each * number, {m.SYSTEM_DEVICE: "sdb", **read}),
                (m.DISK_QUEUE_LENGTH, float(number), {m.SYSTEM_DEVICE: "sdb"}),
                *((m.GPU_INFO, 1, {m.HW_ID: gpu, m.GPU_INDEX: place}) for place, gpu in enumerate(("GPU-0", "GPU-1"))),
                *((m.TEMPERATURE, 60, {m.HW_ID: f"{gpu}/core"}) for gpu in ("GPU-0", "GPU-1")),
                (m.EXPORT_DROPPED, 0, {m.SIGNAL: "metrics"}),
            ]
            for number in range(4)
        ]
        record_agent(tmp_path / f"{node}.jsonl", told, node, every_s=5.0, start_s=START_S + 2.25, instance=node)
    return load(tmp_path)


def test_a_window_has_what_the_agent_of_its_node_exported(tmp_path):
    """The reading whose interval holds the window's middle: a gauge as it is, of a counter the window's share."""
    found = rows(
        agent_beside(tmp_path),
        "gpumon_device_windows",
        ("end_s", "metric", "round(value, 6) as value", "round(delta, 6) as delta"),
        f"run_id = '{RUN_ID}' and device = 'sdb'",
    )

    # Exports at 2.25, 7.25, 12.25 and 17.25 s, in which the queue was 0, 1, 2 and 3.
    held = [0.0] * 2 + [1.0] * 5 + [2.0] * 5 + [3.0] * 5
    queue = [(end, value) for end, metric, value, _ in found if metric == "gpumon.disk.queue.length"]
    assert queue == [(float(end), value) for end, value in enumerate(held, 1)]
    # What the counter was before the first of them is not known.
    assert [(end, value, delta) for end, metric, value, delta in found if metric == "system.disk.io"] == [
        (float(end), 10.0, 10.0) for end in range(3, 18)
    ]


def test_before_an_agent_exported_there_is_nothing_of_it(tmp_path):
    """Its first reading is of its own interval, not of all that was before."""
    exports(tmp_path, *([(m.DISK_IO, 1, {m.SYSTEM_DEVICE: "sda"})] for _second in range(20)), node="node-1")
    told = [[(m.DISK_IO, 1, {m.SYSTEM_DEVICE: "sdb"}), (m.DISK_QUEUE_LENGTH, 1.0, {m.SYSTEM_DEVICE: "sdb"})]] * 2
    record_agent(tmp_path / "agent.jsonl", told, "node-1", every_s=5.0, start_s=START_S + 12.25)
    found = rows(load(tmp_path), "gpumon_device_windows", ("end_s",), f"run_id = '{RUN_ID}' and metric like '%queue%'")

    assert found == [(float(end),) for end in range(8, 18)]


def test_what_a_process_reads_itself_is_its_own(tmp_path):
    """Beside the agent's reading of the same series its own one counts, alone."""
    found = rows(
        agent_beside(tmp_path),
        "gpumon_device_windows",
        ("value", "delta"),
        f"run_id = '{RUN_ID}' and device = 'sda' and end_s > {START_S + 1}",
    )

    assert found == [(100.0, 100.0)] * 19


def test_of_the_agents_gpus_those_that_the_process_uses(tmp_path):
    """A process says which they are; of what an agent says of itself nothing is a run's."""
    run = agent_beside(tmp_path)
    mine = f"run_id = '{RUN_ID}'"

    assert rows(run, "(select distinct device from gpumon_device_windows where device like 'GPU%')", ("device",)) == [
        ("GPU-0/core",),
        ("GPU-1/core",),
    ]
    temperatures = rows(run, "gpumon_device_windows", ("device", "value"), f"{mine} and metric = 'hw.temperature'")
    assert set(temperatures) == {("GPU-0/core", 60.0)}
    assert not rows(run, "gpumon_device_windows", ("metric",), f"{mine} and metric like 'gpumon.export.%'")
