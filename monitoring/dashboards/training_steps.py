"""*Training run*: the rows about steps and the loading of their data."""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from gpumon.rules import thresholds as limit
from monitoring.dashboards.board import Row
from monitoring.dashboards.panel import Panel, Query
from monitoring.dashboards.select import OVER, RUN, RUNS_MACHINES, TRAIN, rate
from monitoring.promql import percent, series

_WAITING_IS_BAD: Final = {0.0: "green", limit.NO_ALARM_WAIT: "yellow", limit.LARGE_LOSS: "red"}


def _per_step(metric: m.Metric, by: str) -> str:
    return f"{rate(metric, TRAIN, by)} / on () group_left () (sum({rate(m.STEP_COUNT, TRAIN)}) > 0)"


def _quantile(of: float, metric: m.Metric, where: dict[str, str]) -> str:
    return f"histogram_quantile({of}, sum by (le) (rate({series(metric, where, part='_bucket')}{OVER})))"


def _waiting(by: str = "") -> str:
    return f"{rate(m.PHASE_TIME, {**TRAIN, m.PHASE: 'data.wait'}, by)} / ({rate(m.STEP_TIME, TRAIN, by)} > 0)"


_BUSY: Final = series(m.GPU_UTILIZATION, {**RUNS_MACHINES, m.HW_GPU_TASK: "general"})

ALERTS: Final = (
    'ALERTS{monitor="gpumon", alertstate="firing", instance=~"$instance"} '
    'or ALERTS{monitor="gpumon", alertstate="firing", gpumon_node_id=~"$node", instance=""}'
)

GLANCE: Final = Row(
    "At a glance",
    [
        Panel(
            "stat",
            "Waiting for data",
            "Share of the training steps' time that waits for data. A healthy loader stays below "
            f"{percent(limit.NO_ALARM_WAIT)}; from {percent(limit.LARGE_LOSS)} on the run is DataLoadingBound.",
            "percentunit",
            [Query(_waiting())],
            width=4,
            height=4,
            levels=_WAITING_IS_BAD,  # type: ignore[arg-type]
        ),
        Panel(
            "stat",
            "Steps",
            "Training steps (optimizer updates) per second, of all ranks together.",
            "suffix: steps/s",
            [Query(rate(m.STEP_COUNT, TRAIN))],
            width=4,
            height=4,
        ),
        Panel(
            "stat",
            "Samples",
            "Samples that training steps used per second, of all ranks together.",
            "suffix: samples/s",
            [Query(rate(m.SAMPLE_COUNT, TRAIN))],
            width=4,
            height=4,
        ),
        Panel(
            "stat",
            "Step, p95",
            "95 % of the training steps take no longer.",
            "s",
            [Query(_quantile(0.95, m.STEP_DURATION, TRAIN))],
            width=4,
            height=4,
        ),
        Panel(
            "stat",
            "GPU busy",
            "Mean share of time a kernel ran, over the GPUs of the run's machines that are used.",
            "percentunit",
            [Query(f"avg(max by (hw_id) ({_BUSY}) >= {limit.USED_GPU:g})")],
            width=4,
            height=4,
            levels={0.0: "red", limit.IDLE_GPU: "yellow", limit.BUSY: "green"},
        ),
        Panel(
            "stat",
            "Alerts",
            "Alerts that fire for the run's processes, and for the devices of its machines.",
            "none",
            [Query(f"count({ALERTS}) or vector(0)")],
            width=4,
            height=4,
            levels={0.0: "green", 1.0: "red"},
        ),
    ],
)

STEPS: Final = Row(
    "Steps",
    [
        Panel(
            "series",
            "Step time",
            "How long training steps take. Each dot is a step that was kept as a trace: a click on it opens the trace, "
            "with the device readings of the step's own time.",
            "s",
            [
                Query(_quantile(0.5, m.STEP_DURATION, TRAIN), "p50"),
                Query(_quantile(0.95, m.STEP_DURATION, TRAIN), "p95", exemplars=True),
                Query(_quantile(0.99, m.STEP_DURATION, TRAIN), "p99"),
            ],
        ),
        Panel(
            "stack",
            "Where a step's time goes",
            "Seconds of a mean training step per phase; together they are the step.",
            "s",
            [Query(_per_step(m.PHASE_TIME, "gpumon_phase"), "{{gpumon_phase}}")],
        ),
        Panel(
            "series",
            "Waiting for data",
            "Share of the training steps' time that waits for data, per rank.",
            "percentunit",
            [Query(_waiting("gpumon_rank, instance"), "rank {{gpumon_rank}} {{instance}}")],
            levels=_WAITING_IS_BAD,  # type: ignore[arg-type]
            most=1.0,
        ),
        Panel(
            "series",
            "First batch of an epoch",
            "Mean wait for the first batch of an epoch: workers starting. Where it is long: persistent_workers, or "
            "fewer and longer epochs (FirstBatchSlow).",
            "s",
            [
                Query(
                    f"sum(increase({series(m.FIRST_OF_EPOCH_WAIT_TIME, TRAIN)}[5m])) / "
                    f"(sum(increase({series(m.FIRST_OF_EPOCH_COUNT, TRAIN)}[5m])) > 0)",
                    "wait per epoch",
                )
            ],
        ),
        Panel(
            "series",
            "Steps by stage",
            "Steps per second of training, validation and test.",
            "suffix: steps/s",
            [Query(rate(m.STEP_COUNT, RUN, "gpumon_stage"), "{{gpumon_stage}}")],
        ),
        Panel(
            "series",
            "Own time of a step, per rank",
            "Mean time of a training step without communication: the rank with the most is the one that the others "
            "wait for.",
            "s",
            [
                Query(
                    f"({rate(m.STEP_TIME, TRAIN, 'gpumon_rank, instance')} - "
                    f"({rate(m.PHASE_TIME, {**TRAIN, m.PHASE: 'communication'}, 'gpumon_rank, instance')} "
                    f"or 0 * {rate(m.STEP_TIME, TRAIN, 'gpumon_rank, instance')})) / "
                    f"({rate(m.STEP_COUNT, TRAIN, 'gpumon_rank, instance')} > 0)",
                    "rank {{gpumon_rank}} {{instance}}",
                )
            ],
        ),
        Panel(
            "stack",
            "Device time of a step",
            "Seconds of a mean measured step on the device's compute stream, per phase, its idle time included.",
            "s",
            [
                Query(
                    f"{rate(m.PHASE_GPU_TIME, TRAIN, 'gpumon_phase')} / on () group_left () "
                    f"(sum({rate(m.STEP_GPU_COUNT, TRAIN)}) > 0)",
                    "{{gpumon_phase}}",
                )
            ],
        ),
        Panel(
            "series",
            "Steps that failed or were skipped",
            "Steps that raised, and updates that a gradient scaler skipped (inf or NaN gradients), per second.",
            "suffix: steps/s",
            [
                Query(rate(m.STEP_FAILURES, RUN, "gpumon_stage"), "failed, {{gpumon_stage}}"),
                Query(rate(m.STEP_SKIPPED, RUN, "gpumon_stage"), "skipped, {{gpumon_stage}}"),
            ],
        ),
    ],
)

DATA: Final = Row(
    "Loading data",
    [
        Panel(
            "stack",
            "Where fetches spend their time",
            "Seconds of fetching per second, in the workers or the training thread, each on one account. `runnable`: "
            "a CPU is missing; `blocked.disk`: a file of a disk is waited for.",
            "suffix: s/s",
            [Query(rate(m.FETCH_TIME, RUN, "gpumon_fetch_account"), "{{gpumon_fetch_account}}")],
        ),
        Panel(
            "series",
            "Read by fetches",
            "Bytes per second that fetches really read from a device, page cache left out.",
            "Bps",
            [Query(rate(m.FETCH_READ, RUN, "system_device"), "{{system_device}}")],
        ),
        Panel(
            "series",
            "How long batches lie ready",
            "From the moment a batch is ready until it is asked for; 0 when the trainer waited for it. Near 0: the "
            "loader is the brake.",
            "s",
            [
                Query(_quantile(0.5, m.FETCH_READY_AGE, RUN), "p50"),
                Query(_quantile(0.95, m.FETCH_READY_AGE, RUN), "p95"),
            ],
        ),
        Panel(
            "series",
            "Loader",
            "Workers of the loader that feeds the steps, batches that each of them prefetches, samples per batch, and "
            "CPUs that the training may use.",
            "none",
            [
                Query(f"max({series(m.LOADER_WORKERS, RUN)})", "workers"),
                Query(f"max({series(m.LOADER_PREFETCH, RUN)})", "prefetched per worker"),
                Query(f"max({series(m.LOADER_BATCH_SIZE, RUN)})", "samples per batch"),
                Query(f"max({series(m.CPU_USABLE, RUN)})", "usable CPUs"),
            ],
        ),
        Panel(
            "table",
            "Where the data is",
            "Each place that data is read from, with the device or file system behind it.",
            "none",
            [
                Query(
                    "group by (gpumon_data_path, gpumon_storage_kind, system_device, system_filesystem_type, "
                    f"system_filesystem_mountpoint) ({series(m.DATASET_INFO, RUN)})"
                )
            ],
            width=24,
            height=5,
            columns={
                "gpumon_data_path": "path",
                "gpumon_storage_kind": "kind",
                "system_device": "device",
                "system_filesystem_type": "file system",
                "system_filesystem_mountpoint": "mounted at",
                "Value": "seen",
            },
        ),
    ],
)
