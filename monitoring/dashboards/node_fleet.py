"""*Node fleet*: machines, their GPUs and who holds them, the worst disks."""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from gpumon.rules import thresholds as limit
from monitoring.dashboards.board import Board, Row, Variable
from monitoring.dashboards.disks_and_health import STATE_WORDS, state
from monitoring.dashboards.panel import Panel, Query
from monitoring.dashboards.select import on_host, per_device
from monitoring.promql import agents, percent, senders, series, values_of

_HOSTS: Final = {"host.name": "=~$host"}
_NODES: Final = {**_HOSTS, "gpumon.node.id": "!="}
_HOLDER: Final = "gpumon_job_id, gpumon_job_user, k8s_namespace_name, k8s_pod_name, k8s_container_name"
_IDLE_FOR: Final = "30m"
_GENERAL: Final = {m.HW_GPU_TASK: "general"}


def _gpu(expression: str) -> str:
    return per_device(expression, "gpumon_gpu_index", "hw_id", where=_HOSTS)


_GPUS: Final = _gpu(series(m.GPU_INFO, {m.HW_PARENT: ""}))
_BUSY: Final = f"{_gpu(series(m.GPU_UTILIZATION, _GENERAL))} >= {limit.USED_GPU:g}"
_HELD: Final = (
    f"group by (host_name, hw_id, {_HOLDER}) "
    f"({on_host(series(m.DEVICE_HOLDER_INFO, {m.HW_ID: '=~.+', m.HW_PARENT: ''}), _HOSTS)})"
)
_USED_LATELY: Final = (
    f"(max by (hw_id) (max_over_time({series(m.GPU_UTILIZATION, _GENERAL)}[{_IDLE_FOR}])) >= {limit.USED_GPU:g})"
)
_HOLDER_COLUMNS: Final = {
    "gpumon_job_id": "job",
    "gpumon_job_user": "user",
    "k8s_namespace_name": "namespace",
    "k8s_pod_name": "pod",
    "k8s_container_name": "container",
}


def _count(title: str, description: str, expr: str, **more: object) -> Panel:
    return Panel("stat", title, description, "none", [Query(f"count({expr}) or vector(0)")], 3, 4, **more)  # type: ignore[arg-type]


GLANCE: Final = Row(
    "At a glance",
    [
        _count("Machines", "That send, or are scraped.", f"group by (gpumon_node_id) ({senders(_NODES)})"),
        _count("Agents", "`gpumon agent`, one per machine.", f"group by (gpumon_node_id) ({agents(_HOSTS)})"),
        _count(
            "Trainings",
            "Processes that did a step within the last minutes.",
            on_host(f"group by (job, instance) (rate({series(m.STEP_COUNT)}[5m]) > 0)", _HOSTS),
        ),
        _count("GPUs", "Whole GPUs, however they are divided.", _GPUS),
        _count("GPUs busy", f"Where a kernel ran for {percent(limit.USED_GPU)} of the time.", _BUSY),
        _count(
            "GPUs held", "That a Slurm job or a Kubernetes container holds.", f"group by (host_name, hw_id) ({_HELD})"
        ),
        _count(
            "GPUs held and idle",
            f"Held, and not used within {_IDLE_FOR}.",
            f"group by (host_name, hw_id) ({_HELD}) unless on (hw_id) {_USED_LATELY}",
            levels={0.0: "green", 1.0: "yellow"},
        ),
        _count(
            "Disks about to fail",
            "Failed, or their SMART data foretells it.",
            per_device(
                f"({series(m.STATUS, {m.HW_TYPE: 'physical_disk', m.HW_STATE: '=~failed|predicted_failure'})} == 1)",
                "hw_id",
                where=_HOSTS,
            ),
            levels={0.0: "green", 1.0: "red"},
        ),
    ],
)

GPUS: Final = Row(
    "GPUs",
    [
        Panel(
            "series",
            "GPU utilization",
            "Mean over the GPUs of a machine.",
            "percentunit",
            [Query(f"avg by (host_name) ({_gpu(series(m.GPU_UTILIZATION, _GENERAL))})", "{{host_name}}")],
            most=1.0,
        ),
        Panel(
            "series",
            "GPU memory used",
            "Of all GPUs of a machine.",
            "bytes",
            [
                Query(
                    f"sum by (host_name) ({_gpu(series(m.GPU_MEMORY_USAGE, {m.HW_PARENT: ''}))})",
                    "{{host_name}}",
                )
            ],
        ),
        Panel(
            "series",
            "GPU power",
            "Of all GPUs of a machine.",
            "watt",
            [Query(f"sum by (host_name) ({_gpu(series(m.POWER, {m.HW_TYPE: 'gpu'}))})", "{{host_name}}")],
        ),
        Panel(
            "series",
            "MIG instances",
            "Memory used by each part of a divided GPU.",
            "bytes",
            [
                Query(
                    _gpu(series(m.GPU_MEMORY_USAGE, {m.HW_PARENT: "=~.+"})),
                    "{{host_name}} GPU {{gpumon_gpu_index}} {{hw_id}}",
                )
            ],
        ),
        Panel(
            "table",
            "Who holds which GPU",
            f"Each held GPU with its holder, and its mean utilization over {_IDLE_FOR}.",
            "percentunit",
            [
                Query(
                    f"{_HELD} * on (hw_id) group_left () "
                    f"max by (hw_id) (avg_over_time({series(m.GPU_UTILIZATION, _GENERAL)}[{_IDLE_FOR}]))"
                )
            ],
            columns={"host_name": "machine", "hw_id": "GPU", **_HOLDER_COLUMNS, "Value": f"busy, {_IDLE_FOR}"},
        ),
        Panel(
            "table",
            "Idle GPUs by holder",
            f"How many GPUs a job or a container holds that were not used within {_IDLE_FOR}.",
            "none",
            [Query(f"count by ({_HOLDER}) ({_HELD} unless on (hw_id) {_USED_LATELY})")],
            columns={**_HOLDER_COLUMNS, "Value": "idle GPUs"},
        ),
        Panel(
            "timeline",
            "State of GPUs",
            "As the driver and its XIDs tell: degraded after uncorrected errors and XIDs, failed where it is lost.",
            "none",
            [
                Query(
                    _gpu(
                        "("
                        + " or ".join(
                            f"({series(m.STATUS, {m.HW_TYPE: 'gpu', m.HW_STATE: each})} == 1) * {number}"
                            for each, number in (("ok", 0), ("degraded", 1), ("failed", 3))
                        )
                        + ")"
                    ),
                    "{{host_name}} GPU {{gpumon_gpu_index}}",
                )
            ],
            words=STATE_WORDS,  # type: ignore[arg-type]
        ),
        Panel(
            "table",
            "Models",
            "Model, driver and place of each.",
            "none",
            [
                Query(
                    per_device(
                        series(m.GPU_INFO, {m.HW_PARENT: ""}),
                        *("gpumon_gpu_index", "hw_model", "hw_driver_version", "gpumon_gpu_mig", "hw_id"),
                        where=_HOSTS,
                    )
                )
            ],
            columns={
                "host_name": "machine",
                "gpumon_gpu_index": "number",
                "hw_model": "model",
                "hw_driver_version": "driver",
                "gpumon_gpu_mig": "MIG",
                "hw_id": "UUID",
                "Value": "seen",
            },
        ),
    ],
)

DISKS: Final = Row(
    "Disks",
    [
        Panel(
            "table",
            "Worst disks",
            "The twenty physical disks in the worst state.",
            "none",
            [
                Query(
                    "topk(20, "
                    + per_device(
                        f"{state({})} * on (job, instance, hw_id) group_left (system_device, hw_model) "
                        f"{series(m.SMART_INFO)}",
                        *("hw_id", "system_device", "hw_model"),
                        where=_HOSTS,
                    )
                    + ")"
                )
            ],
            columns={
                "host_name": "machine",
                "system_device": "device",
                "hw_model": "model",
                "hw_id": "serial number",
                "Value": "state",
            },
            words=STATE_WORDS,  # type: ignore[arg-type]
        ),
        Panel(
            "series",
            "Slowest disks",
            "The ten disks whose reads take longest (await).",
            "s",
            [
                Query(
                    "topk(10, "
                    + per_device(series(m.DISK_AWAIT, {m.DISK_IO_DIRECTION: "read"}), "system_device", where=_HOSTS)
                    + ")",
                    "{{host_name}} {{system_device}}",
                )
            ],
        ),
    ],
)

MACHINES: Final = Row(
    "Machines",
    [
        Panel(
            "series",
            "CPU",
            "Share of all cores' time that is not idle.",
            "percentunit",
            [
                Query(
                    f"1 - {per_device(series(m.CPU_UTILIZATION, {m.CPU_MODE: 'idle'}), where=_HOSTS)}", "{{host_name}}"
                )
            ],
            most=1.0,
        ),
        Panel(
            "series",
            "Memory available",
            "Without swapping.",
            "bytes",
            [Query(per_device(series(m.MEMORY_AVAILABLE), where=_HOSTS), "{{host_name}}")],
        ),
        Panel(
            "series",
            "I/O pressure",
            "Share of the last 10 s in which at least one task of a machine stalled for I/O (PSI).",
            "percentunit",
            [
                Query(
                    per_device(
                        series(
                            m.PRESSURE_STALL_RATIO,
                            {m.PRESSURE_RESOURCE: "io", m.PRESSURE_KIND: "some", m.PRESSURE_SCOPE: "system"},
                        ),
                        where=_HOSTS,
                    ),
                    "{{host_name}}",
                )
            ],
            most=1.0,
        ),
        Panel(
            "table",
            "Agents",
            "How long ago an agent was heard of, of those that were within a day.",
            "s",
            [
                Query(
                    f"sort_desc(time() - (max by (host_name) (timestamp({agents(_HOSTS)})) or on (host_name) "
                    f"max by (host_name) (max_over_time(timestamp({agents(_HOSTS)})[1d:1m]))))"
                )
            ],
            columns={"host_name": "machine", "Value": "last heard"},
            levels={0.0: "green", 120.0: "yellow", 600.0: "red"},
        ),
    ],
)

BOARD: Final = Board(
    uid="gpumon-node-fleet",
    title="gpumon: node fleet",
    description="Machines and their GPUs: busy, idle, and who holds them; the worst disks; the agents.",
    rows=[GLANCE, GPUS, DISKS, MACHINES],
    variables=(Variable("host", "Machine", values_of("host.name", {"gpumon.node.id": "!="}), "host.name"),),
    since="now-6h",
)
