"""*Training run*: the rows about the devices of the run's machines, and about gpumon itself."""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from gpumon.rules import thresholds as limit
from monitoring.dashboards.board import Row
from monitoring.dashboards.panel import Panel, Query
from monitoring.dashboards.select import OVER, RUN, RUNS_MACHINES, per_device, rate
from monitoring.promql import series

_GPU: Final = ("gpumon_gpu_index", "hw_id")
_GPU_NAME: Final = "{{host_name}} GPU {{gpumon_gpu_index}}"


def _gpu(metric: m.Metric, where: dict[str, str] | None = None, *more: str) -> str:
    return per_device(series(metric, {**RUNS_MACHINES, **(where or {})}), *_GPU, *more)


def _disk(metric: m.Metric, *more: str) -> str:
    return per_device(series(metric, RUNS_MACHINES), "system_device", *more)


GPUS: Final = Row(
    "GPUs of the run's machines",
    [
        Panel(
            "series",
            "GPU utilization",
            "Share of time a kernel ran. Low while steps wait for data: the loader is the brake.",
            "percentunit",
            [Query(_gpu(m.GPU_UTILIZATION, {m.HW_GPU_TASK: "general"}), _GPU_NAME)],
            most=1.0,
        ),
        Panel(
            "series",
            "Multiprocessors, tensor cores, memory bandwidth",
            "Shares of what the GPU has, by NVML's performance counters (Hopper and later).",
            "percentunit",
            [
                Query(_gpu(m.GPU_SM_ACTIVITY), f"{_GPU_NAME} multiprocessors"),
                Query(_gpu(m.GPU_TENSOR_ACTIVITY), f"{_GPU_NAME} tensor cores"),
                Query(_gpu(m.GPU_DRAM_ACTIVITY), f"{_GPU_NAME} memory bandwidth"),
            ],
            most=1.0,
        ),
        Panel(
            "series",
            "GPU memory",
            "Memory used, and how much there is; of a divided GPU its parts, too.",
            "bytes",
            [
                Query(_gpu(m.GPU_MEMORY_USAGE), _GPU_NAME + " used {{hw_id}}"),
                Query(_gpu(m.GPU_MEMORY_LIMIT), _GPU_NAME + " size {{hw_id}}"),
            ],
        ),
        Panel(
            "series",
            "Memory of the framework's allocator",
            "Device memory that the framework's allocator gave out (allocated) and holds (reserved).",
            "bytes",
            [
                Query(
                    f"max by (instance, gpumon_device_index, gpumon_allocator_state) "
                    f"({series(m.ALLOCATOR_MEMORY_USAGE, RUN)})",
                    "{{instance}} device {{gpumon_device_index}} {{gpumon_allocator_state}}",
                )
            ],
        ),
        Panel(
            "series",
            "GPU power",
            "Power drawn, and the limit in force.",
            "watt",
            [
                Query(_gpu(m.POWER, {m.HW_TYPE: "gpu"}), f"{_GPU_NAME} drawn"),
                Query(_gpu(m.GPU_POWER_LIMIT), f"{_GPU_NAME} limit"),
            ],
        ),
        Panel(
            "series",
            "GPU temperature",
            "Of the GPU and of its memory, and from where on the GPU slows itself down.",
            "celsius",
            [
                Query(
                    per_device(series(m.TEMPERATURE, {**RUNS_MACHINES, m.HW_PARENT: "=~.+"}), *_GPU),
                    _GPU_NAME + " {{hw_id}}",
                ),
                Query(
                    per_device(
                        series(
                            m.TEMPERATURE_LIMIT,
                            {**RUNS_MACHINES, m.HW_ID: "=~.+/core", m.HW_LIMIT_TYPE: "high.degraded"},
                        ),
                        "gpumon_gpu_index",
                    ),
                    f"{_GPU_NAME} slows down",
                ),
            ],
            least=None,
        ),
        Panel(
            "series",
            "GPU clock",
            "Clock of the multiprocessors.",
            "hertz",
            [Query(_gpu(m.GPU_CLOCK_FREQUENCY, {m.GPU_CLOCK: "sm"}), _GPU_NAME)],
        ),
        Panel(
            "series",
            "Clocks held down",
            "Share of time in which something held the clocks down: heat, the power brake, the power limit.",
            "percentunit",
            [
                Query(
                    per_device(
                        f"rate({series(m.GPU_THROTTLE_TIME, RUNS_MACHINES)}{OVER})",
                        *_GPU,
                        "gpumon_gpu_throttle_reason",
                    ),
                    _GPU_NAME + " {{gpumon_gpu_throttle_reason}}",
                )
            ],
            most=1.0,
        ),
        Panel(
            "series",
            "PCIe",
            "Bytes per second over PCIe.",
            "Bps",
            [
                Query(
                    per_device(f"rate({series(m.GPU_IO, RUNS_MACHINES)}{OVER})", *_GPU, "network_io_direction"),
                    _GPU_NAME + " {{network_io_direction}}",
                )
            ],
        ),
        Panel(
            "series",
            "NVLink",
            "Bytes per second over NVLink.",
            "Bps",
            [
                Query(
                    per_device(f"rate({series(m.GPU_NVLINK_IO, RUNS_MACHINES)}{OVER})", *_GPU, "network_io_direction"),
                    _GPU_NAME + " {{network_io_direction}}",
                )
            ],
        ),
    ],
)

DISKS: Final = Row(
    "Disks of the run's machines",
    [
        Panel(
            "series",
            "Await",
            "Mean time of a read or write (iostat's r_await, w_await). Normal up to "
            f"{limit.LATENCY_FLOOR_S['NVMe'] * 1e3:g} ms for NVMe, {limit.LATENCY_FLOOR_S['SSD'] * 1e3:g} ms for SSDs, "
            f"{limit.LATENCY_FLOOR_S['HDD'] * 1e3:g} ms for HDDs.",
            "s",
            [Query(_disk(m.DISK_AWAIT, "disk_io_direction"), "{{host_name}} {{system_device}} {{disk_io_direction}}")],
        ),
        Panel(
            "series",
            "Requests in flight",
            "Mean number of requests in flight (iostat's aqu-sz): what queues.",
            "none",
            [Query(_disk(m.DISK_QUEUE_LENGTH), "{{host_name}} {{system_device}}")],
        ),
        Panel(
            "series",
            "Disk throughput",
            "Bytes per second that disks transfer, whoever asks.",
            "Bps",
            [
                Query(
                    per_device(f"rate({series(m.DISK_IO, RUNS_MACHINES)}{OVER})", "system_device", "disk_io_direction"),
                    "{{host_name}} {{system_device}} {{disk_io_direction}}",
                )
            ],
        ),
        Panel(
            "series",
            "Disk utilization",
            "Share of time with requests in flight (iostat's %util). Alone it says nothing: an SSD at 100 % may do "
            "much more.",
            "percentunit",
            [Query(_disk(m.DISK_UTILIZATION), "{{host_name}} {{system_device}}")],
            most=1.0,
        ),
    ],
)

HOSTS: Final = Row(
    "Pressure, CPUs, memory",
    [
        Panel(
            "series",
            "Pressure",
            "Share of the last 10 s in which tasks stalled for a resource (PSI); some: at least one task, full: all.",
            "percentunit",
            [
                Query(
                    per_device(
                        series(m.PRESSURE_STALL_RATIO, RUNS_MACHINES),
                        "gpumon_pressure_resource",
                        "gpumon_pressure_kind",
                        "gpumon_pressure_scope",
                    ),
                    "{{host_name}} {{gpumon_pressure_resource}} {{gpumon_pressure_kind}} {{gpumon_pressure_scope}}",
                )
            ],
            most=1.0,
        ),
        Panel(
            "series",
            "CPU",
            "Share of all cores' time that is not idle, and utilization of the busiest single core.",
            "percentunit",
            [
                Query(
                    f"1 - {per_device(series(m.CPU_UTILIZATION, {**RUNS_MACHINES, m.CPU_MODE: 'idle'}))}",
                    "{{host_name}} all cores",
                ),
                Query(per_device(series(m.CPU_BUSIEST, RUNS_MACHINES)), "{{host_name}} busiest core"),
            ],
            most=1.0,
        ),
        Panel(
            "series",
            "CPU time of the training",
            "CPU seconds per second of the trainer and its workers, and seconds in which they could run without a CPU.",
            "suffix: s/s",
            [
                Query(rate(m.PROCESS_CPU_TIME, RUN, "gpumon_process_role"), "{{gpumon_process_role}} on a CPU"),
                Query(
                    rate(m.PROCESS_RUNQUEUE_TIME, RUN, "gpumon_process_role"), "{{gpumon_process_role}} waits for one"
                ),
            ],
        ),
        Panel(
            "series",
            "Memory",
            "Memory available on the machine, and resident memory of the trainer and its workers.",
            "bytes",
            [
                Query(per_device(series(m.MEMORY_AVAILABLE, RUNS_MACHINES)), "{{host_name}} available"),
                Query(
                    f"sum by (gpumon_process_role) ({series(m.PROCESS_MEMORY_USAGE, RUN)})",
                    "{{gpumon_process_role}} resident",
                ),
            ],
        ),
        Panel(
            "series",
            "Held back by the CPU quota",
            "Share of time in which the cgroup's CPU quota held threads back.",
            "percentunit",
            [
                Query(
                    f"max by (instance) (rate({series(m.CPU_THROTTLED_PERIODS, RUN)}{OVER})) / "
                    f"(max by (instance) (rate({series(m.CPU_PERIODS, RUN)}{OVER})) > 0)",
                    "{{instance}}",
                )
            ],
            most=1.0,
        ),
        Panel(
            "series",
            "Network",
            "Bytes per second over the machine's network interfaces.",
            "Bps",
            [
                Query(
                    per_device(
                        f"rate({series(m.NETWORK_IO, RUNS_MACHINES)}{OVER})",
                        "network_interface_name",
                        "network_io_direction",
                    ),
                    "{{host_name}} {{network_interface_name}} {{network_io_direction}}",
                )
            ],
        ),
    ],
)

ITSELF: Final = Row(
    "gpumon itself",
    [
        Panel(
            "series",
            "CPU time that gpumon takes",
            "CPU seconds of gpumon per second: in the training thread (hot path) and beside it.",
            "percentunit",
            [Query(rate(m.OVERHEAD_TIME, RUN, "gpumon_overhead"), "{{gpumon_overhead}}")],
        ),
        Panel(
            "table",
            "What it reads",
            "1: the collector reads its source; 0: it cannot, and why.",
            "none",
            [
                Query(
                    "min by (instance, gpumon_collector, hw_id, gpumon_reason) "
                    f"({series(m.COLLECTOR_UP, RUNS_MACHINES)})"
                )
            ],
            columns={
                "gpumon_collector": "collector",
                "hw_id": "device",
                "gpumon_reason": "reason",
                "instance": "process",
                "Value": "reads",
            },
            words={0: ("no", "red"), 1: ("yes", "green")},
        ),
    ],
)
