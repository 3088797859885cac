"""*Disks and health*: how disks answer, and how well they are."""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from gpumon.rules import thresholds as limit
from monitoring.dashboards.board import Board, Row, Variable
from monitoring.dashboards.panel import Panel, Query
from monitoring.dashboards.select import OVER, per_device
from monitoring.promql import percent, series, values_of

_HOSTS: Final = {"host.name": "=~$host"}
_DISK: Final = {m.HW_ID: "=~$disk"}
_DEVICE: Final = {m.SYSTEM_DEVICE: "=~$device"}
_STATES: Final = ("ok", "degraded", "predicted_failure", "failed")
STATE_WORDS: Final = {
    0: ("ok", "green"),
    1: ("degraded", "yellow"),
    2: ("predicted failure", "orange"),
    3: ("failed", "red"),
}
_NAME: Final = "{{host_name}} {{hw_id}}"


def of_disk(expression: str, *more: str) -> str:
    """Of each physical disk, by serial number."""
    return per_device(expression, "hw_id", *more, where=_HOSTS)


def of_device(expression: str, *more: str) -> str:
    """Of each block device."""
    return per_device(expression, "system_device", *more, where=_HOSTS)


def state(where: dict[str, str]) -> str:
    """The state of a disk as a number, see `STATE_WORDS`."""
    known = [
        f"({series(m.STATUS, {**where, m.HW_TYPE: 'physical_disk', m.HW_STATE: each})} == 1) * {number}"
        for number, each in enumerate(_STATES)
    ]
    return f"({' or '.join(known)})"


def _named(expression: str) -> str:
    """With the block devices and the model of a disk."""
    info = series(m.SMART_INFO, _DISK)
    return f"{expression} * on (job, instance, hw_id) group_left (system_device, hw_model) {info}"


_ROW = {"host_name": "machine", "system_device": "device", "hw_model": "model", "hw_id": "serial number"}

_READS_THE_LOG: Final = per_device(series(m.COLLECTOR_UP, {m.COLLECTOR: "kernel"}), where=_HOSTS)

HEALTH: Final = Row(
    "Health of physical disks",
    [
        Panel(
            "table",
            "State",
            "Health of each physical disk. Predicted failure: its SMART data foretells that it fails; degraded: it "
            "wears out or has old errors.",
            "none",
            [Query(f"sort_desc({of_disk(_named(state(_DISK)), 'system_device', 'hw_model')})")],
            columns={**_ROW, "Value": "state"},
            words=STATE_WORDS,  # type: ignore[arg-type]
        ),
        Panel(
            "timeline",
            "State over time",
            "The same as it was.",
            "none",
            [Query(of_disk(state(_DISK)), _NAME)],
            words=STATE_WORDS,  # type: ignore[arg-type]
        ),
        Panel(
            "series",
            "Rated writes used",
            f"Wear: a warning from {percent(limit.WORN[0])}, critical from {percent(limit.WORN[1])} (DiskWearing).",
            "percentunit",
            [Query(f"1 - {of_disk(series(m.PHYSICAL_DISK_ENDURANCE, _DISK))}", _NAME)],
            levels={0.0: "green", limit.WORN[0]: "yellow", limit.WORN[1]: "red"},
        ),
        Panel(
            "series",
            "Disk temperature",
            "As the disks' own sensors say.",
            "celsius",
            [Query(of_disk(series(m.TEMPERATURE, {**_DISK, m.GPU_INDEX: ""})), _NAME)],
            least=None,
        ),
        Panel(
            "series",
            "Error counters",
            "Counters that foretell failures, the same for SATA, SAS and NVMe: reallocated, pending and unreadable "
            "sectors, media errors; link: the cable.",
            "none",
            [Query(of_disk(series(m.SMART_COUNT, _DISK), "gpumon_smart_counter"), _NAME + " {{gpumon_smart_counter}}")],
        ),
        Panel(
            "series",
            "Growth of error counters",
            "Within the last seven days. Any growth, but that of the link's errors, foretells a failure (DiskFailing).",
            "none",
            [
                Query(
                    of_disk(series(m.SMART_GROWTH, _DISK), "gpumon_smart_counter"), _NAME + " {{gpumon_smart_counter}}"
                )
            ],
            levels={0.0: "green", 1.0: "red"},
        ),
        Panel(
            "series",
            "Errors of the kernel",
            "Reads and writes that the kernel gave up, per second, by kind of error; 0 of a disk without any, where "
            "the kernel's log can be read.",
            "suffix: errors/s",
            [
                Query(
                    f"{of_device(f'rate({series(m.DISK_ERRORS, _DEVICE)}{OVER})', 'error_type')} "
                    "or on (host_name, system_device) "
                    f"0 * {of_device(series(m.DISK_UTILIZATION, _DEVICE))} "
                    f"and on (host_name) {_READS_THE_LOG} == 1",
                    "{{host_name}} {{system_device}} {{error_type}}",
                )
            ],
        ),
        Panel(
            "series",
            "Age of SMART readings",
            "How old the last good reading of a disk is; disks in standby are left asleep.",
            "s",
            [Query(of_disk(series(m.SMART_AGE, _DISK)), _NAME)],
        ),
        Panel(
            "table",
            "SMART attributes",
            "Raw values as the disks give them, packed ones unpacked.",
            "none",
            [
                Query(
                    of_disk(
                        series(m.PHYSICAL_DISK_SMART, _DISK),
                        "gpumon_smart_attribute_number",
                        "hw_physical_disk_smart_attribute",
                    )
                )
            ],
            columns={
                "host_name": "machine",
                "hw_id": "serial number",
                "gpumon_smart_attribute_number": "number",
                "hw_physical_disk_smart_attribute": "attribute",
                "Value": "raw value",
            },
        ),
        Panel(
            "table",
            "Attributes below their threshold",
            "Those that foretell failure, now or before, and a self-test that failed.",
            "none",
            [Query(of_disk(series(m.SMART_FAILED, _DISK), "hw_physical_disk_smart_attribute", "gpumon_smart_when"))],
            columns={
                "host_name": "machine",
                "hw_id": "serial number",
                "hw_physical_disk_smart_attribute": "attribute",
                "gpumon_smart_when": "when",
                "Value": "failed",
            },
        ),
    ],
)

TRAFFIC: Final = Row(
    "How disks answer",
    [
        Panel(
            "series",
            "Await",
            "Mean time of a read or write (iostat's r_await, w_await); absent without I/O.",
            "s",
            [
                Query(
                    of_device(series(m.DISK_AWAIT, _DEVICE), "disk_io_direction"),
                    "{{host_name}} {{system_device}} {{disk_io_direction}}",
                )
            ],
        ),
        Panel(
            "series",
            "Await by the kernel's counters",
            "The same over Grafana's own interval, from counters that nothing is lost of between two points.",
            "s",
            [
                Query(
                    of_device(
                        f"(rate({series(m.DISK_OPERATION_TIME, _DEVICE)}{OVER}) / "
                        f"(rate({series(m.DISK_OPERATIONS, _DEVICE)}{OVER}) > 0))",
                        "disk_io_direction",
                    ),
                    "{{host_name}} {{system_device}} {{disk_io_direction}}",
                )
            ],
        ),
        Panel(
            "series",
            "Disk throughput",
            "Bytes per second.",
            "Bps",
            [
                Query(
                    of_device(f"rate({series(m.DISK_IO, _DEVICE)}{OVER})", "disk_io_direction"),
                    "{{host_name}} {{system_device}} {{disk_io_direction}}",
                )
            ],
        ),
        Panel(
            "series",
            "Operations",
            "Reads and writes per second.",
            "iops",
            [
                Query(
                    of_device(f"rate({series(m.DISK_OPERATIONS, _DEVICE)}{OVER})", "disk_io_direction"),
                    "{{host_name}} {{system_device}} {{disk_io_direction}}",
                )
            ],
        ),
        Panel(
            "series",
            "Requests in flight",
            "Mean number of requests in flight (iostat's aqu-sz).",
            "none",
            [Query(of_device(series(m.DISK_QUEUE_LENGTH, _DEVICE)), "{{host_name}} {{system_device}}")],
        ),
        Panel(
            "series",
            "Disk utilization",
            "Share of time with requests in flight (iostat's %util). Alone it says nothing: an SSD at 100 % may do "
            "much more.",
            "percentunit",
            [Query(of_device(series(m.DISK_UTILIZATION, _DEVICE)), "{{host_name}} {{system_device}}")],
            most=1.0,
        ),
        Panel(
            "series",
            "Size of a request",
            "Mean size of a read or write (iostat's rareq-sz, wareq-sz).",
            "bytes",
            [
                Query(
                    of_device(series(m.DISK_REQUEST_SIZE, _DEVICE), "disk_io_direction"),
                    "{{host_name}} {{system_device}} {{disk_io_direction}}",
                )
            ],
        ),
        Panel(
            "table",
            "Devices",
            "Block devices, what they are and which hold a run's data set or checkpoints.",
            "none",
            [
                Query(
                    of_device(
                        series(m.DISK_INFO, _DEVICE),
                        *("hw_model", "gpumon_disk_type", "gpumon_disk_holds_dataset", "gpumon_disk_holds_checkpoints"),
                        *("system_filesystem_mountpoint", "system_filesystem_type", "gpumon_disk_parents"),
                    )
                )
            ],
            columns={
                "host_name": "machine",
                "system_device": "device",
                "hw_model": "model",
                "gpumon_disk_type": "type",
                "gpumon_disk_holds_dataset": "data set",
                "gpumon_disk_holds_checkpoints": "checkpoints",
                "system_filesystem_mountpoint": "mounted at",
                "system_filesystem_type": "file system",
                "gpumon_disk_parents": "on",
                "Value": "seen",
            },
        ),
    ],
)

BOARD: Final = Board(
    uid="gpumon-disks-and-health",
    title="gpumon: disks and health",
    description="How disks answer, how well they are, and which one is about to fail.",
    rows=[HEALTH, TRAFFIC],
    variables=(
        Variable("host", "Machine", values_of("host.name", {"gpumon.node.id": "!="}), "host.name"),
        Variable(
            "disk",
            "Physical disk",
            f"label_values({series(m.SMART_AGE)}, hw_id)",
            "Serial number, or the WWN where two have the same one.",
        ),
        Variable(
            "device", "Block device", f"label_values({series(m.DISK_UTILIZATION)}, system_device)", "As lsblk names it."
        ),
    ),
    since="now-6h",
    alerts='ALERTS{monitor="gpumon", alertstate="firing", alertname=~"Disk.*", host_name=~"$host"}',
)
