"""Rules over GPUs, each once per machine however many processes report it."""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from gpumon.rules import thresholds as limit
from monitoring.promql import percent, series
from monitoring.rules.growth import grows
from monitoring.rules.rule import Alert, Group, Record
from monitoring.rules.targets import TARGET, at_node, of_device, with_host
from monitoring.rules.training import (
    COMMUNICATION_LOST,
    DATA_LOST,
    JUDGED,
    LIVE,
    STEADY_TIME,
    TRANSFER_LOST,
)
from monitoring.rules.training_alerts import by_loss

INFO: Final = "device:gpumon_gpu:info"
UTILIZATION: Final = "device:hw_gpu_utilization:ratio"
USED: Final = "device:hw_gpu_used:bool"
SLOWED: Final = "device:gpumon_gpu_slowed:ratio5m"
CAPPED: Final = "device:gpumon_gpu_capped:ratio5m"
FREE_CLOCK: Final = "device:gpumon_gpu_clock_unslowed:hertz"
CLOCK: Final = "device:gpumon_gpu_clock:hertz"
TEMPERATURE: Final = "device:hw_temperature:celsius"
USAGE: Final = "device:hw_gpu_memory_usage:bytes"
UNCORRECTED: Final = "device:hw_errors_uncorrected:count"
BUSY: Final = "instance:gpumon_gpu_busy:ratio5m"
OVERHEAD_LOST: Final = "instance:gpumon_overhead_bound:lost"
ON_DEVICE: Final = "on (gpumon_node_id, hw_id)"

_GENERAL: Final = {m.HW_GPU_TASK: "general"}
_BRAKES: Final = "=~.*(thermal|power_brake).*"
_CAP: Final = "=~.*power_cap.*"
_GPU: Final = "GPU {{ $labels.gpumon_gpu_index }} ({{ $labels.hw_model }}) on {{ $labels.host_name }}"
_WARNING, _CRITICAL = limit.MEMORY_PRESSURE


def _named(expression: str) -> str:
    """With the GPU's number and model, and its machine's name."""
    joined = f"* {ON_DEVICE} group_left (gpumon_gpu_index, hw_model) {INFO}"
    return with_host(f"({expression}) {joined}")


def _throttled(reason: str) -> str:
    return f"""
        clamp_max(
          {of_device(f"rate({series(m.GPU_THROTTLE_TIME, {m.GPU_THROTTLE_REASON: reason})}[5m])")}
          / (avg_over_time({USED}[5m]) > 0)
        , 1)
        """


def _of_parent(expression: str) -> str:
    """Of a GPU's sensors: under the name of the GPU."""
    inner = f"max by (job, instance, hw_parent) ({expression})"
    return of_device(f'label_replace({inner}, "hw_id", "$1", "hw_parent", "(.+)")')


def _info() -> str:
    by = "gpumon_node_id, hw_id, gpumon_gpu_index, hw_model"
    from_agent = f'* on (job, instance) group_left (gpumon_node_id) {TARGET}{{gpumon_run_id=""}}'
    return f"""
        topk by (gpumon_node_id, hw_id) (1,
          group by ({by}) ({series(m.GPU_INFO)} {from_agent})
          or {ON_DEVICE}
          group by ({by}) ({at_node(series(m.GPU_INFO))})
          or {ON_DEVICE}
          group by ({by}) ({at_node(series(m.STATUS, {m.HW_TYPE: "gpu"}))})
        )
        """


def _busy() -> str:
    """Of the GPUs that a training uses: its own series; else its node's, where it is the only training there."""
    own = f"avg by (job, instance) (avg_over_time({series(m.GPU_UTILIZATION, _GENERAL)}[5m]) >= {limit.USED_GPU:g})"
    runs = f"{LIVE} * on (job, instance) group_left (gpumon_node_id, gpumon_run_id) {TARGET}"
    return f"""
        ({own} and on (job, instance) {LIVE})
        or on (job, instance)
        (
          {LIVE} * on (job, instance) group_left (gpumon_node_id) {TARGET}
          and on (job, instance) ({series(m.ALLOCATOR_MEMORY_USAGE)} > 0 or {series(m.GPU_PROCESS_MEMORY_USAGE)} > 0)
          and on (gpumon_node_id) count by (gpumon_node_id) (
            group by (gpumon_node_id, gpumon_run_id) ({runs})
          ) == 1
        )
        * on (gpumon_node_id) group_left ()
        avg by (gpumon_node_id) (avg_over_time({UTILIZATION}[5m]) >= {limit.USED_GPU:g})
        """


RECORDS: Final = (
    Record(INFO, _info(), "1 per GPU of a machine, with number and model."),
    Record(
        UTILIZATION,
        of_device(series(m.GPU_UTILIZATION, _GENERAL)),
        "Share of time a kernel ran, per GPU of a machine, whoever reports it.",
    ),
    Record(USED, f"{UTILIZATION} >= bool {limit.USED_GPU:g}", "1 while a GPU is used."),
    Record(SLOWED, _throttled(_BRAKES), "Share of the time a GPU is used in which heat or the power brake slows it."),
    Record(CAPPED, _throttled(_CAP), "The same for its power limit."),
    Record(CLOCK, of_device(series(m.GPU_CLOCK_FREQUENCY, {m.GPU_CLOCK: "sm"})), "Clock of the multiprocessors."),
    Record(
        FREE_CLOCK,
        f"{CLOCK} and {ON_DEVICE} ({USED} == 1) and {ON_DEVICE} ({of_device(series(m.GPU_THROTTLE_ACTIVE))} == 0)",
        "The same while a GPU is used and nothing holds its clocks down.",
    ),
    Record(
        TEMPERATURE,
        _of_parent(series(m.TEMPERATURE, {m.HW_ID: "=~.+/core"})),
        "Temperature of the GPU itself.",
    ),
    Record(USAGE, of_device(series(m.GPU_MEMORY_USAGE)), "Memory in use, per GPU of a machine."),
    Record(
        UNCORRECTED,
        of_device(series(m.ERRORS, {m.HW_TYPE: "gpu", m.ERROR_TYPE: "uncorrected"})),
        "Uncorrected memory errors since the driver was loaded, whichever process counted them.",
    ),
    Record(BUSY, _busy(), "Mean utilization of the GPUs that a training uses."),
    Record(
        OVERHEAD_LOST,
        f"""
        ({limit.BUSY:g} - ({BUSY} < {limit.IDLE_GPU:g})) * on (job, instance) {STEADY_TIME}
        and on (job, instance) {JUDGED}
        unless on (job, instance) ({DATA_LOST} or {TRANSFER_LOST} or {COMMUNICATION_LOST})
        """,
        "Share of the run's time in which its GPU could have worked and nothing else explains why it did not.",
    ),
)

_FELL: Final = (
    f"(1 - avg_over_time({CLOCK}[5m]) / max_over_time({FREE_CLOCK}[6h]) >= {limit.CLOCKS_FELL:g})"
    f" unless {ON_DEVICE} ({SLOWED} > 0)"
)
_PAST: Final = (
    f"{TEMPERATURE} >= {ON_DEVICE} "
    f"{_of_parent(series(m.TEMPERATURE_LIMIT, {m.HW_ID: '=~.+/core', m.HW_LIMIT_TYPE: 'high.degraded'}))}"
)
_OVERHEATS: Final = 'ALERTS{alertname="GpuOverheating", alertstate="firing"}'
_HOT: Final = (
    f"{limit.HOT_C:.0f} °C for {limit.HOT_S:.0f} s, until it is {limit.COOLER_C:.0f} °C cooler; critical at the "
    "device's own slowdown limit."
)
_COOLING: Final = "look at the airflow: fans, dust, blanking panels, the neighbours' exhaust, the room."


def _thermal(severity: str, bound: str) -> Alert:
    seconds = of_device(f"increase({series(m.GPU_THROTTLE_TIME, {m.GPU_THROTTLE_REASON: _BRAKES})}[5m])")
    few = f" and {ON_DEVICE} ({SLOWED} >= {limit.THERMAL:g} or {ON_DEVICE} ({seconds} >= {limit.THERMAL_S:g}))"
    return Alert(
        "GpuThermalThrottling",
        severity,
        _named(f"{SLOWED} {bound}{few if severity == 'warning' else ''}"),
        f"{_GPU} is slowed down by heat or the power brake for {{{{ $value | humanizePercentage }}}} "
        "of the time it works.",
        f"Heat or the power brake slows the GPU down for {limit.THERMAL_S:g} s or {percent(limit.THERMAL)} of the "
        f"time it works, within five minutes; critical from {percent(limit.THROTTLED_GPU)}.",
        _COOLING,
        "1m",
    )


def _link(reason: str, what: str, now: m.Metric, most: m.Metric) -> Alert:
    loaded = f"{UTILIZATION} >= {limit.LOADED_LINK:g}"
    return Alert(
        "PcieLinkDegraded",
        "warning",
        _named(f"{of_device(series(now))} < {ON_DEVICE} {of_device(series(most))} and {ON_DEVICE} ({loaded})"),
        f"The PCIe link of {_GPU} runs under load with {what}, less than GPU and slot have.",
        f"Under load ({percent(limit.LOADED_LINK)} busy) the link has fewer lanes or a lower generation than device "
        "and slot both have; an idle link trains down and is left alone.",
        "reseat the card and its riser, and compare with another slot; `nvidia-smi -q -d PCIE` shows replays.",
        "1m",
        reason,
    )


def _pressure(severity: str, bound: str) -> Alert:
    return Alert(
        "GpuMemoryPressure",
        severity,
        _named(f"{of_device(f'max_over_time({series(m.GPU_MEMORY_UTILIZATION)}[5m])')} {bound}"),
        f"Memory of {_GPU} is {{{{ $value | humanizePercentage }}}} used: a longer batch ends the run.",
        f"Peak of used memory: warning from {percent(_WARNING)}, critical from {percent(_CRITICAL)}.",
        "a smaller batch, activation checkpointing or a lower precision leave room.",
        "1m",
    )


def _error(reason: str, expr: str, what: str, keep: str = "") -> Alert:
    return Alert(
        "GpuError",
        "critical",
        _named(expr),
        f"{_GPU}: {what}. Results since then may be wrong.",
        "The GPU is lost or says that it failed (fatal XIDs too), has uncorrected memory errors that are new, or "
        "remapped rows that are pending or failed.",
        "save a checkpoint elsewhere, end the run and take the GPU out of service; `dmesg | grep -i xid` tells more.",
        reason=reason,
        keep=keep,
    )


ALERTS: Final = (
    *by_loss(
        "OverheadBound",
        OVERHEAD_LOST,
        what="though neither data nor copies explain it: its GPU is mostly idle",
        when=f"A GPU is used and busy less than {percent(limit.IDLE_GPU)}, and neither data, copies nor communication "
        "explain it.",
        advice="look for `.item()`, `.cpu()` and print in the loop; `torch.compile` makes fewer, larger kernels.",
    ),
    _thermal("critical", f">= {limit.THROTTLED_GPU:g}"),
    _thermal("warning", f"< {limit.THROTTLED_GPU:g}"),
    *(
        Alert(
            "GpuPowerCapped",
            severity,
            _named(f"{CAPPED} >= {limit.POWER_CAPPED:g} {fell} {ON_DEVICE} ({_FELL})"),
            f"{_GPU} is held at its power limit for {{{{ $value | humanizePercentage }}}} of the time it works{more}.",
            f"At its power limit for {percent(limit.POWER_CAPPED)} of the time it works: normal for a busy GPU, and a "
            f"warning where its clock is {percent(limit.CLOCKS_FELL)} below the best of the last six hours.",
            "raise the limit where the cooling allows it: `nvidia-smi -i NUMBER -pl WATTS`.",
            "10m",
        )
        for severity, fell, more in (("warning", "and", ", and its clock fell"), ("info", "unless", ""))
    ),
    Alert(
        "GpuOverheating",
        "critical",
        _named(_PAST),
        f"{_GPU} is at {{{{ $value | humanize }}}} °C, past its slowdown limit.",
        _HOT,
        _COOLING,
        f"{limit.HOT_S:.0f}s",
    ),
    Alert(
        "GpuOverheating",
        "warning",
        _named(
            f"({TEMPERATURE} >= {limit.HOT_C:g} "
            f"or ({TEMPERATURE} > {limit.HOT_C - limit.COOLER_C:g} and {ON_DEVICE} {_OVERHEATS}))\n"
            f"unless {ON_DEVICE} ({_PAST})"
        ),
        f"{_GPU} is at {{{{ $value | humanize }}}} °C.",
        _HOT,
        _COOLING,
        f"{limit.HOT_S:.0f}s",
    ),
    _link("width", "{{ $value }} lanes", m.GPU_PCIE_WIDTH, m.GPU_PCIE_WIDTH_LIMIT),
    _link("generation", "generation {{ $value }}", m.GPU_PCIE_GENERATION, m.GPU_PCIE_GENERATION_LIMIT),
    _pressure("critical", f">= {_CRITICAL:g}"),
    _pressure("warning", f">= {_WARNING:g} < {_CRITICAL:g}"),
    Alert(
        "GpuMemoryGrowth",
        "warning",
        _named(grows(USAGE, of_device(series(m.GPU_MEMORY_LIMIT)))),
        f"Memory in use on {_GPU} grew by {{{{ $value | humanize1024 }}}}B within half an hour.",
        f"Memory in use rises in each of five stretches of 6 min, by {limit.MEMORY_GROWTH_BYTES / (1 << 30):g} GiB and "
        f"{percent(limit.MEMORY_GROWTH)} of the memory in all.",
        "keep numbers, not tensors: `total += loss.item()`; detach what is stored between steps.",
        "5m",
    ),
    _error(
        "failed",
        of_device(f"({series(m.STATUS, {m.HW_TYPE: 'gpu', m.HW_STATE: 'failed'})} == 1)"),
        "it is lost or failed",
        keep="1h",  # the training that reports it may die of it, which is no sign of health
    ),
    _error(
        "uncorrected",
        f"{UNCORRECTED} - min_over_time({UNCORRECTED}[1h]) > 0",
        "{{ $value }} new uncorrected memory errors",
    ),
    _error(
        "remapping",
        of_device(f"({series(m.GPU_REMAPPED_ROWS, {m.GPU_REMAP: '=~pending|failed'})} > 0)"),
        "row remapping pending or failed",
    ),
)

GROUP: Final = Group("gpumon.gpu", (*RECORDS, *ALERTS))
