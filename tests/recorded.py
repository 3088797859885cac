"""Writes run directories as gpumon would, from a few figures: what a training did, window by window.

A recording has the catalogue's metrics as OTLP lines. `Training` holds the figures of one second; `record`
writes a whole run of them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from gpumon import metrics as m
from gpumon.telemetry.otlp_json import attributes
from gpumon.tracing.spans import SPAN_NAMES

START_S = 1_790_000_000.0
RUN_ID = "0123456789abcdef0123456789abcdef"
SCOPE = {"name": "gpumon", "version": "0"}


def resource(rank=0, instance="instance-0", run_id=RUN_ID, service="train", node="", **extra):
    """The resource of one process of a run; without *run_id* that of a node's agent."""
    described = {
        "service.name": service,
        "service.instance.id": instance,
        "host.name": "node17",
        "process.pid": 4711,
        **extra,
    }
    if run_id:
        described |= {"gpumon.run.id": run_id, "gpumon.rank": rank}
    if node:
        described["gpumon.node.id"] = node
    return {"attributes": attributes(described)}


def metrics_line(at_s, points, on_points=None, **who):
    """One export: *points* are (metric, value, attributes); a histogram's value is (counts, total, min, max).

    *on_points*: attributes of every point, as in a process whose provider is the application's.
    """
    at = str(round(at_s * 1e9))
    by_metric = {}
    for metric, value, given in points:
        point = {"timeUnixNano": at}
        if given or on_points:
            point["attributes"] = attributes({**given, **(on_points or {})})
        if metric.kind == "histogram":
            counts, total, lowest, highest = value
            point.update(
                count=str(sum(counts)),
                sum=total,
                bucketCounts=[str(count) for count in counts],
                explicitBounds=list(m.DURATION_BOUNDS),
                **({"min": lowest, "max": highest} if any(counts) else {}),
            )
        elif isinstance(value, int):
            point["asInt"] = str(value)
        else:
            point["asDouble"] = value
        by_metric.setdefault(metric, []).append(point)
    encoded = []
    for metric, data_points in by_metric.items():
        data = {"dataPoints": data_points}
        if metric.kind != "gauge":
            data["aggregationTemporality"] = 2
        if metric.kind == "counter":
            data["isMonotonic"] = True
        kind = {"gauge": "gauge", "histogram": "histogram"}.get(metric.kind, "sum")
        encoded.append({"name": metric.name, "description": metric.description, "unit": metric.unit, kind: data})
    speaker = {"attributes": attributes({"service.name": "app"})} if on_points else resource(**who)
    return _line({"resourceMetrics": [{"resource": speaker, "scopeMetrics": [{"scope": SCOPE, "metrics": encoded}]}]})


def span(name, begin_s, duration_s, trace, span_id, parent="", status=0, **given):
    """One span as the protocol has it; attributes with `_` for `.`."""
    encoded = {
        "traceId": f"{trace:032x}",
        "spanId": f"{span_id:016x}",
        "name": name,
        "kind": 1,
        "startTimeUnixNano": str(round(begin_s * 1e9)),
        "endTimeUnixNano": str(round(begin_s * 1e9) + round(duration_s * 1e9)),
        "attributes": attributes(given),
        "status": {"code": status} if status else {},
    }
    if parent:
        encoded["parentSpanId"] = f"{parent:016x}"
    return encoded


def spans_line(spans, **who):
    return _line({"resourceSpans": [{"resource": resource(**who), "scopeSpans": [{"scope": SCOPE, "spans": spans}]}]})


def step_spans(number, begin_s, duration_s, phases, reason="sampled", stage="train", **window):
    """A kept step: its root and one child per phase, one after the other."""
    root = span(
        f"{stage}.step",
        begin_s,
        duration_s,
        number,
        number * 16,
        **{
            "gpumon.step.number": number,
            "gpumon.stage": stage,
            "gpumon.keep.reason": reason,
            "gpumon.step.slow": reason == "slow",
            "gpumon.step.first_of_epoch": reason == "first_of_epoch",
            **window,
        },
    )
    spans, at = [root], begin_s
    for place, (phase, seconds) in enumerate(phases.items(), 1):
        child = span(
            SPAN_NAMES.get(phase, phase),
            at,
            seconds,
            number,
            number * 16 + place,
            parent=number * 16,
            **{"gpumon.phase": phase},
        )
        spans.append(child)
        at += seconds
    return spans


@dataclass
class Disk:
    """A disk while a training reads from it: figures per second and per operation."""

    name: str = "loop0"
    type: str = "virtual"
    await_s: float = 0.08
    queue: float = 2.0
    utilization: float = 1.0
    read_bytes_per_s: float = 5e6
    write_bytes_per_s: float = 0.0
    reads_per_s: float | None = None  # default: what the queue gives at this latency
    holds_dataset: bool = True
    unloaded_s: float | None = None
    unloaded_queue: float = 0.0
    mount_point: str = "/data/images"
    file_system: str = "ext4"


@dataclass
class Gpu:
    """A GPU during one second."""

    name: str = "GPU-0"
    index: int = 0
    busy: float = 0.97
    celsius: float = 80.0
    clock_hz: float = 1.98e9
    throttled: dict[str, float] = field(default_factory=dict)  # share of the second, by reason
    watts: float = 640.0
    memory_bytes: float = 40 * 2**30
    width: int = 16
    generation: int = 5
    state: str = "ok"
    uncorrected: int = 0  # errors per second


@dataclass
class Training:
    """One second of a training, in the figures that its metrics have; change it between windows."""

    step_s: float = 0.1
    phases: dict[str, float] = field(
        default_factory=lambda: {"data.wait": 0.7, "forward": 0.1, "backward": 0.15, "optimizer": 0.03, "other": 0.02}
    )
    workers: int = 2
    prefetch: int = 2
    batch_size: int = 32
    persistent: bool = False
    fetch_s: float = 0.17  # wall time of one fetch; one fetch per step
    accounts: dict = field(
        default_factory=lambda: {("blocked.disk", "loop0"): 0.95, ("cpu", ""): 0.04, ("runnable", ""): 0.01}
    )
    own_read_bytes_per_s: float = 5e6
    handover_fraction: float = 0.0  # of waits
    disks: list[Disk] = field(default_factory=lambda: [Disk()])
    trainer_cpus: float = 0.25
    cpu_utilization: float = 0.3
    cpus: float = 2.0
    throttled_fraction: float | None = None  # of quota periods
    refaulted_bytes_per_s: float = 0.0
    limit_hits_per_s: float = 0.0
    gpus: list[Gpu] = field(default_factory=list)
    epochs_per_s: float = 0.05
    first_wait_s: float = 0.0  # of each epoch's first step, on top of the regular wait
    extra: list = field(default_factory=list)


class Recorder:
    """Adds up a training's figures and writes a line per window."""

    def __init__(
        self, directory, rank=0, instance="instance-0", run_id=RUN_ID, start_s=START_S, on_points=None, node=""
    ):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.who = {"rank": rank, "instance": instance, "run_id": run_id, "node": node}
        self.on_points = on_points
        self.at_s = start_s
        self.sums = {}
        self.counts = [0] * (len(m.DURATION_BOUNDS) + 1)
        self.durations = [0.0, float("inf"), 0.0]
        self.metrics = self.directory / f"metrics.{rank}.4711.jsonl"
        self.traces = self.directory / f"traces.{rank}.4711.jsonl"

    def add(self, metric, value, **given):
        """Add to a counter."""
        key = (metric, tuple(sorted((name, worth) for name, worth in given.items() if worth != "")))
        self.sums[key] = self.sums.get(key, 0) + value

    def window(self, training, seconds=1.0):
        """One window of *seconds* in which *training* went on."""
        self.at_s += seconds
        for metric, value, given in _sums(training, seconds):
            self.add(metric, value, **given)
        steps = round(seconds / training.step_s)
        bucket = next(
            (i for i, bound in enumerate(m.DURATION_BOUNDS) if training.step_s <= bound), len(m.DURATION_BOUNDS)
        )
        self.counts[bucket] += steps
        self.durations[0] += steps * training.step_s
        self.durations[1] = min(self.durations[1], training.step_s)
        self.durations[2] = max(self.durations[2], training.step_s)
        points = [(metric, value, dict(given)) for (metric, given), value in self.sums.items()]
        points += _gauges(training)
        points.append((m.STEP_DURATION, (list(self.counts), *self.durations), {m.STAGE: "train"}))
        self.write(points + training.extra)
        return self

    def write(self, points):
        """Append one export to the metrics file."""
        with open(self.metrics, "a") as file:
            file.write(metrics_line(self.at_s, points, self.on_points, **self.who))

    def write_spans(self, spans):
        with open(self.traces, "a") as file:
            file.write(spans_line(spans, **self.who))


def record(directory, training=None, seconds=20, window_s=1.0, **run):
    """A whole run: *seconds* windows of *training*, and `run.json`."""
    training = training or Training()
    recorder = Recorder(directory)
    for _ in range(round(seconds / window_s)):
        recorder.window(training, window_s)
    write_run(directory, ended_s=recorder.at_s, **run)
    return Path(directory)


def record_everything(directory, windows=30, run_id=RUN_ID, node="", **run):
    """A run that has something for every view and every table: devices that vary, limits, health, spans, an event.

    Two ranks; the second has the application's provider, so that its points say themselves whose they are.
    With *node*, an agent there exported as well: disks of its own, a GPU of the run and one of somebody else.
    """
    recorder = Recorder(directory, run_id=run_id, node=node)
    for window in range(windows):
        delay = 0.02 + 0.06 * math.sin(window / 4) ** 2
        step_s = 0.05 + delay
        wait = {"data.wait": delay / step_s, "forward": 0.04 / step_s, "optimizer": 0.01 / step_s}
        recorder.window(
            Training(
                step_s=step_s,
                phases=wait,
                disks=[Disk(await_s=delay, unloaded_s=0.078), Disk("sda", holds_dataset=False, utilization=0.4)],
                gpus=[Gpu(busy=1 - delay / step_s, throttled={"sw_thermal_slowdown": 0.5}, celsius=70 + window)],
                throttled_fraction=0.1,
                refaulted_bytes_per_s=4e4,
                extra=_health_and_limits(window),
            )
        )
    own = {"gpumon.window.disk.device": "loop0", "gpumon.window.disk.await": 0.093, "gpumon.batch.size": 32}
    recorder.write_spans(step_spans(3, recorder.at_s - 2.5, 0.4, {"data.wait": 0.3, "forward": 0.1}, "slow", **own))
    recorder.write_spans(step_spans(4, recorder.at_s - 1.25, 0.2, {"data.wait": 0.1, "optimizer": 0.05}))
    recorder.write_spans(step_spans(1, recorder.at_s - 1.0, 0.9, {"forward": 0.9}, stage="validation"))
    with open(recorder.directory / "logs.0.4711.jsonl", "a") as file:
        file.write(
            event_line(recorder.at_s - 3, "gpumon.gpu.xid", {m.HW_ID: "GPU-0", "gpumon.gpu.xid": 79}, run_id=run_id)
        )
    other = Recorder(
        directory, rank=1, instance="instance-1", run_id=run_id, on_points={"gpumon.run.id": run_id, "gpumon.rank": 1}
    )
    for _ in range(3):
        other.window(Training(workers=0, accounts={("blocked.other", "futex"): 1.0}))
    if node:
        exports = [
            [
                (m.DISK_IO, 5e6 * number**2, {m.SYSTEM_DEVICE: "nvme7n1", m.DISK_IO_DIRECTION: "read"}),
                (m.DISK_AWAIT, 0.001 * (1 + number % 3), {m.SYSTEM_DEVICE: "nvme7n1", m.DISK_IO_DIRECTION: "read"}),
                *((m.GPU_INFO, 1, {m.HW_ID: gpu, m.GPU_INDEX: index}) for index, gpu in enumerate(("GPU-0", "GPU-9"))),
                *((m.TEMPERATURE, 50 + number, {m.HW_ID: f"{gpu}/core"}) for gpu in ("GPU-0", "GPU-9")),
                (m.COLLECTOR_UP, 1, {m.COLLECTOR: "disk"}),
            ]
            for number in range(1 + windows // 5)
        ]
        record_agent(recorder.directory / "agent.jsonl", exports, node, every_s=5.0)
    write_run(directory, ended_s=recorder.at_s, id=run_id, **run)
    return Path(directory)


def record_agent(file, exports, node, every_s=15.0, start_s=START_S, instance="agent"):
    """A node's agent: in *file* one line for each of *exports*, its points, *every_s* seconds apart."""
    with open(file, "a") as out:
        for number, points in enumerate(exports):
            at_s = start_s + number * every_s
            out.write(metrics_line(at_s, points, run_id="", service="gpumon-agent", instance=instance, node=node))


def as_deltas(lines):
    """What the same process sends where deltas are preferred: counters and histograms since the last export."""
    before, sent = {}, []
    for line in map(json.loads, lines):
        for metric in line["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]:
            data = metric.get("histogram") or (metric["sum"] if metric.get("sum", {}).get("isMonotonic") else None)
            if data is None:
                continue
            data["aggregationTemporality"] = 1
            for point in data["dataPoints"]:
                key = metric["name"], json.dumps(point.get("attributes"))
                was, before[key] = before.get(key, {}), dict(point)
                for name in {"asInt", "count"} & point.keys():
                    point[name] = str(int(point[name]) - int(was.get(name, 0)))
                for name in {"asDouble", "sum"} & point.keys():
                    point[name] -= was.get(name, 0.0)
                if "bucketCounts" in point:
                    earlier = was.get("bucketCounts", ["0"] * len(point["bucketCounts"]))
                    pairs = zip(point["bucketCounts"], earlier, strict=True)
                    point["bucketCounts"] = [str(int(now) - int(then)) for now, then in pairs]
        sent.append(json.dumps(line) + "\n")
    return sent


def event_line(at_s, name, given, **who):
    """An event among the logs."""
    record = {
        "timeUnixNano": str(round(at_s * 1e9)),
        "severityNumber": 13,
        "body": {"stringValue": name},
        "eventName": name,
        "attributes": attributes(given),
    }
    scoped = {"scope": SCOPE, "logRecords": [record]}
    return _line({"resourceLogs": [{"resource": resource(**who), "scopeLogs": [scoped]}]})


def _health_and_limits(window):
    disk, loop = {m.HW_ID: "S6XNNS0W"}, {m.SYSTEM_DEVICE: "loop0"}
    return [
        (m.SMART_INFO, 1, {**disk, m.HW_MODEL: "SSD 870", m.HW_SERIAL_NUMBER: "S6XNNS0W", m.SYSTEM_DEVICE: "loop0"}),
        (m.SMART_COUNT, 304 + window // 10, {**disk, m.SMART_COUNTER: "reallocated"}),
        (m.SMART_GROWTH, 12, {**disk, m.SMART_COUNTER: "reallocated"}),
        (m.SMART_FAILED, 1, {**disk, m.SMART_ATTRIBUTE: "Reallocated_Sector_Ct", m.SMART_WHEN: "now"}),
        (m.PHYSICAL_DISK_SMART, 304 + window // 10, {**disk, m.SMART_ATTRIBUTE: "Reallocated_Sector_Ct"}),
        (m.PHYSICAL_DISK_ENDURANCE, 0.4, {**disk, m.PHYSICAL_DISK_STATE: "remaining"}),
        (m.STATUS, 1, {**disk, m.HW_STATE: "predicted_failure"}),
        (m.DISK_ERRORS, window, {**loop, m.ERROR_TYPE: "read"}),
        (m.CPU_QUOTA, 2.0, {m.LIMIT_SOURCE: "/sys/fs/cgroup/cpu.max"}),
        (m.DISK_LIMIT_IO, 5e6, {**loop, m.DISK_IO_DIRECTION: "read", m.LIMIT_SOURCE: "/sys/fs/cgroup/io.max"}),
        (m.COLLECTOR_UP, 0, {m.COLLECTOR: "smart", m.REASON: "no smartctl"}),
        (m.COLLECTOR_DURATION, ([0] * (len(m.DURATION_BOUNDS) + 1), 0.0, None, None), {m.COLLECTOR: "smart"}),
    ]


def write_run(directory, ended_s=None, **given):
    """`run.json` of a run that ended by itself, or as *given*."""
    run = {
        "schema": "gpumon.run/1",
        "id": RUN_ID,
        "service": "train",
        "started": _rfc3339(START_S),
        "ended": _rfc3339(ended_s) if ended_s else None,
        "host": "node17",
        "command": ["python", "train.py"],
        "exit_code": 0,
        "signal": None,
        "processes": [],
        "dropped": {"traces": 0, "metrics": 0, "logs": 0},
        "not_recorded": [],
        **given,
    }
    Path(directory).mkdir(parents=True, exist_ok=True)
    Path(directory, "run.json").write_text(json.dumps(run))


def _sums(t, seconds):
    stage = {m.STAGE: "train"}
    steps = round(seconds / t.step_s)
    epochs = t.epochs_per_s * seconds
    first_wait = epochs * t.first_wait_s
    step_s = steps * t.step_s
    yield m.STEP_COUNT, steps, stage
    yield m.SAMPLE_COUNT, steps * t.batch_size, stage
    yield m.EPOCH_COUNT, epochs, stage
    yield m.STEP_FAILURES, 0, stage
    yield m.STEP_TIME, step_s + first_wait, stage
    for phase, share in t.phases.items():
        yield m.PHASE_TIME, share * step_s + (first_wait if phase == "data.wait" else 0.0), {**stage, m.PHASE: phase}
    yield m.FIRST_OF_EPOCH_COUNT, epochs, stage
    wait = t.phases.get("data.wait", 0.0) * t.step_s
    yield m.FIRST_OF_EPOCH_WAIT_TIME, first_wait + epochs * wait, stage
    yield m.FIRST_OF_EPOCH_STEP_TIME, first_wait + epochs * t.step_s, stage
    yield m.HANDOVER_TIME, t.handover_fraction * t.phases.get("data.wait", 0.0) * step_s, {}
    for worker in range(t.workers) or [-1]:
        share = steps / (t.workers or 1)
        yield m.FETCH_COUNT, share, {m.WORKER_ID: worker}
        for (account, where), part in t.accounts.items():
            given = {m.FETCH_ACCOUNT: account, m.WORKER_ID: worker}
            key = {
                "blocked.disk": m.SYSTEM_DEVICE,
                "blocked.network_fs": m.FETCH_FILE_SYSTEM,
                "blocked.other": m.FETCH_CALL,
            }
            if where:
                given[key[account]] = where
            yield m.FETCH_TIME, part * share * t.fetch_s, given
    for disk in t.disks:
        at = {m.SYSTEM_DEVICE: disk.name}
        reads = (disk.queue / disk.await_s if disk.reads_per_s is None else disk.reads_per_s) * seconds
        if disk.holds_dataset:
            yield m.FETCH_READ, t.own_read_bytes_per_s * seconds, at
        for direction, size, operations in (
            ("read", disk.read_bytes_per_s, reads),
            ("write", disk.write_bytes_per_s, 0),
        ):
            yield m.DISK_IO, size * seconds, {**at, m.DISK_IO_DIRECTION: direction}
            yield m.DISK_OPERATIONS, operations, {**at, m.DISK_IO_DIRECTION: direction}
            yield m.DISK_OPERATION_TIME, operations * disk.await_s, {**at, m.DISK_IO_DIRECTION: direction}
    for gpu in t.gpus:
        at = {m.HW_ID: gpu.name, m.GPU_INDEX: gpu.index}
        for reason in ("sw_power_cap", "sw_thermal_slowdown", "hw_thermal_slowdown"):
            yield m.GPU_THROTTLE_TIME, gpu.throttled.get(reason, 0.0) * seconds, {**at, m.GPU_THROTTLE_REASON: reason}
        yield m.ERRORS, gpu.uncorrected * seconds, {**at, m.HW_TYPE: "gpu", m.ERROR_TYPE: "uncorrected"}
    yield m.PROCESS_CPU_TIME, t.trainer_cpus * seconds, {m.PROCESS_ROLE: "trainer", m.CPU_MODE: "user"}
    if t.throttled_fraction is not None:
        yield m.CPU_PERIODS, 10 * seconds, {}
        yield m.CPU_THROTTLED_PERIODS, 10 * seconds * t.throttled_fraction, {}
    if t.refaulted_bytes_per_s:
        yield m.MEMORY_REFAULTS, t.refaulted_bytes_per_s / 4096 * seconds, {}
        yield m.MEMORY_LIMIT_HITS, t.limit_hits_per_s * seconds, {}


def _gauges(t):
    points = [
        (m.LOADER_WORKERS, t.workers, {}),
        (m.LOADER_PREFETCH, t.prefetch, {}),
        (m.LOADER_BATCH_SIZE, t.batch_size, {}),
        (m.LOADER_PERSISTENT, int(t.persistent), {}),
        (m.CPU_USABLE, t.cpus, {}),
        (m.CPU_UTILIZATION, t.cpu_utilization, {m.CPU_MODE: "user"}),
        (m.CPU_UTILIZATION, 1 - t.cpu_utilization, {m.CPU_MODE: "idle"}),
        (m.COLLECTOR_UP, 1, {m.COLLECTOR: "disk"}),
    ]
    for gpu in t.gpus:
        at = {m.HW_ID: gpu.name, m.GPU_INDEX: gpu.index}
        points += [
            (m.GPU_UTILIZATION, gpu.busy, {**at, m.HW_GPU_TASK: "general"}),
            *((m.GPU_UTILIZATION, 0.0, {**at, m.HW_GPU_TASK: task}) for task in ("encoder", "decoder")),
            (m.TEMPERATURE, gpu.celsius, {**at, m.HW_ID: f"{gpu.name}/core", m.HW_PARENT: gpu.name}),
            (m.TEMPERATURE_LIMIT, 89.0, {**at, m.HW_LIMIT_TYPE: "high.degraded"}),
            (m.GPU_CLOCK_FREQUENCY, gpu.clock_hz, {**at, m.GPU_CLOCK: "sm"}),
            (m.POWER, gpu.watts, {**at, m.HW_TYPE: "gpu"}),
            (m.GPU_POWER_LIMIT, 700.0, at),
            (m.GPU_MEMORY_USAGE, gpu.memory_bytes, at),
            (m.GPU_MEMORY_LIMIT, 80 * 2**30, at),
            (m.GPU_PCIE_WIDTH, gpu.width, at),
            (m.GPU_PCIE_WIDTH_LIMIT, 16, at),
            (m.GPU_PCIE_GENERATION, gpu.generation, at),
            (m.GPU_PCIE_GENERATION_LIMIT, 5, at),
            *((m.STATUS, int(gpu.state == state), {**at, m.HW_STATE: state}) for state in ("ok", "degraded", "failed")),
            (m.GPU_INFO, 1, {**at, m.HW_MODEL: "NVIDIA H100", m.HW_DRIVER_VERSION: "580.159"}),
        ]
    for disk in t.disks:
        at = {m.SYSTEM_DEVICE: disk.name}
        if disk.queue or disk.reads_per_s:
            points.append((m.DISK_AWAIT, disk.await_s, {**at, m.DISK_IO_DIRECTION: "read"}))
        points += [
            (m.DISK_QUEUE_LENGTH, disk.queue, at),
            (m.DISK_UTILIZATION, disk.utilization, at),
            (
                m.DISK_INFO,
                1,
                {
                    **at,
                    m.DISK_TYPE: disk.type,
                    m.DISK_HOLDS_DATASET: disk.holds_dataset,
                    m.SYSTEM_FILESYSTEM_MOUNTPOINT: disk.mount_point,
                    m.SYSTEM_FILESYSTEM_TYPE: disk.file_system,
                },
            ),
        ]
        if disk.holds_dataset:
            points.append(
                (
                    m.DATASET_INFO,
                    1,
                    {
                        **at,
                        m.DATA_PATH: disk.mount_point,
                        m.STORAGE_KIND: "block",
                        m.SYSTEM_FILESYSTEM_MOUNTPOINT: disk.mount_point,
                        m.SYSTEM_FILESYSTEM_TYPE: disk.file_system,
                    },
                )
            )
        if disk.unloaded_s is not None:
            points += [(m.DISK_UNLOADED_AWAIT, disk.unloaded_s, at), (m.DISK_UNLOADED_QUEUE, disk.unloaded_queue, at)]
    return points


def _line(content):
    return json.dumps(content, separators=(",", ":")) + "\n"


def _rfc3339(at_s):
    from datetime import datetime, timezone

    return datetime.fromtimestamp(at_s, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
