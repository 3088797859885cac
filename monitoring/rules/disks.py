"""Rules over disks: recorded await and utilization, and health."""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from gpumon.rules import thresholds as limit
from monitoring.promql import percent, series
from monitoring.rules.rule import Alert, Group, Record
from monitoring.rules.targets import TARGET, at_node, of_device, with_host

INFO: Final = "device:gpumon_smart:info"
FAILING: Final = "device:hw_status_failing:bool"
AWAIT: Final = "instance_device:system_disk_await_seconds:rate2m"
UTILIZATION: Final = "instance_device:system_disk_utilization:rate2m"
NEW_ERRORS: Final = "device:gpumon_disk_errors:increase10m"
IN_USE: Final = "device:gpumon_disk_in_use:info"
_ON_DEVICE: Final = "on (gpumon_node_id, hw_id)"
_DISK: Final = (
    "{{ or $labels.system_device $labels.hw_id }} ({{ $labels.hw_model }}, {{ $labels.hw_id }}) "
    "on {{ $labels.host_name }}"
)
_WORN, _WORN_OUT = limit.WORN


def _named(expression: str) -> str:
    """With the disk's block devices and model, and its machine's name."""
    joined = f"* {_ON_DEVICE} group_left (system_device, hw_model) {INFO}"
    return with_host(f"({expression}) {joined}")


def _info() -> str:
    by = "gpumon_node_id, hw_id, system_device, hw_model"
    return f"""
        topk by (gpumon_node_id, hw_id) (1,
          group by ({by}) ({series(m.SMART_INFO)} * on (job, instance) group_left (gpumon_node_id) {TARGET})
          or {_ON_DEVICE}
          group by ({by}) ({at_node(series(m.STATUS, {m.HW_TYPE: "physical_disk"}))})
        )
        """


def _rates(metric: m.Metric) -> str:
    return f"rate({series(metric)}[2m])"


def _new_errors() -> str:
    """The counter begins with gpumon at 0, or comes with its first error and begins at 1: `increase` sees no 1."""
    errors = series(m.DISK_ERRORS)
    first = f"({errors} > 0 unless last_over_time({errors}[1d] offset 2m))"
    by_sender = f"sum by (job, instance, system_device) (increase({errors}[10m]) > 0 or {first})"
    return of_device(by_sender, "system_device")


def _used() -> str:
    holds = (m.DISK_HOLDS_DATASET, m.DISK_HOLDS_CHECKPOINTS)
    return of_device(
        f"({' or '.join(series(m.DISK_INFO, {attribute: 'true'}) for attribute in holds)})", "system_device"
    )


RECORDS: Final = (
    Record(
        AWAIT,
        f"{_rates(m.DISK_OPERATION_TIME)} / ({_rates(m.DISK_OPERATIONS)} > 0)",
        "Mean time of a read or write over two minutes (iostat's r_await, w_await); absent without I/O.",
    ),
    Record(UTILIZATION, _rates(m.DISK_IO_TIME), "Share of time with requests in flight (iostat's %util)."),
)
HEALTH: Final = (
    Record(INFO, _info(), "1 per physical disk of a machine, with its block devices and model."),
    Record(
        FAILING,
        of_device(f"({series(m.STATUS, {m.HW_TYPE: 'physical_disk', m.HW_STATE: '=~failed|predicted_failure'})} == 1)"),
        "1 per physical disk that failed or foretells that it will.",
    ),
    Record(NEW_ERRORS, _new_errors(), "Reads and writes that the kernel gave up within ten minutes, per device."),
    Record(IN_USE, _used(), "1 per device with the data set or the checkpoints of a run."),
)


_WEARING_UNLESS: Final = f"unless {_ON_DEVICE} {FAILING}"


def _wearing(severity: str, reason: str, expr: str, what: str) -> Alert:
    return Alert(
        "DiskWearing",
        severity,
        _named(f"{expr}\n{_WEARING_UNLESS}"),
        f"Disk {_DISK}: {what}.",
        f"{percent(_WORN)} of the rated writes are used (critical: {percent(_WORN_OUT)}), a few errors are there and "
        "none of them new, a threshold was crossed before, the last self-test failed, or an NVMe disk's temperature is "
        "outside its limits.",
        "plan to replace it, and keep no only copy on it.",
        reason=reason,
    )


def _smart(where: dict[str, str], metric: m.Metric = m.SMART_COUNT) -> str:
    return series(metric, where)


_FAILS: Final = (
    "SMART foretells the disk's failure (an attribute below its threshold, errors that grow, too many of them), or the "
    "kernel gave up reads or writes on a disk with a run's data or checkpoints within a day."
)
_SAVE: Final = "save a checkpoint on another disk, copy what can still be read, replace the disk."

ALERTS: Final = (
    Alert(
        "DiskFailing",
        "critical",
        _named(FAILING),
        f"Disk {_DISK} has failed or is about to.",
        _FAILS,
        _SAVE,
        reason="smart",
    ),
    Alert(
        "DiskFailing",
        "critical",
        with_host(
            f"max_over_time({NEW_ERRORS}[1d]) and on (gpumon_node_id, system_device) last_over_time({IN_USE}[1d])",
            since="1d",  # the training that saw them may have ended of them
        ),
        "The kernel gave up {{ $value | humanize }} reads or writes on {{ $labels.system_device }} of "
        "{{ $labels.host_name }}, which holds data or checkpoints of a run.",
        _FAILS,
        _SAVE,
        reason="kernel",
    ),
    _wearing(
        "critical",
        "wear",
        f"1 - {of_device(series(m.PHYSICAL_DISK_ENDURANCE))} >= {_WORN_OUT:g}",
        "{{ $value | humanizePercentage }} of its rated writes are used",
    ),
    _wearing(
        "warning",
        "wear",
        f"1 - {of_device(series(m.PHYSICAL_DISK_ENDURANCE))} >= {_WORN:g} < {_WORN_OUT:g}",
        "{{ $value | humanizePercentage }} of its rated writes are used",
    ),
    _wearing(
        "warning",
        "errors",
        f"{of_device(_smart({m.SMART_COUNTER: '!=link'}))} > 0",
        "{{ $value }} errors, none of them new",
    ),
    _wearing(
        "warning",
        "before",
        of_device(series(m.SMART_FAILED, {m.SMART_WHEN: "before"})),
        "a threshold was crossed before, or the last self-test failed",
    ),
    _wearing(
        "warning",
        "temperature",
        f"floor({of_device(series(m.PHYSICAL_DISK_SMART, {m.SMART_ATTRIBUTE: 'critical_warning'}))} / 2) % 2 == 1",
        "its temperature is outside its limits",
    ),
    Alert(
        "DiskCableErrors",
        "warning",
        _named(f"{of_device(_smart({m.SMART_COUNTER: 'link'}, m.SMART_GROWTH))} > 0"),
        f"The link to disk {_DISK} had {{{{ $value }}}} errors within a week.",
        "Errors of the link to the disk grew within a week: the cable or the backplane, not the disk.",
        "reseat or replace the cable, or the slot.",
    ),
)

GROUPS: Final = (Group("gpumon.disk.io", RECORDS), Group("gpumon.disk.health", (*HEALTH, *ALERTS), interval="1m"))
