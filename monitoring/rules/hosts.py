"""Rules over machines and over gpumon itself."""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from gpumon.rules import thresholds as limit
from monitoring.promql import percent, series
from monitoring.rules.growth import grows
from monitoring.rules.rule import Alert, Group, Record
from monitoring.rules.targets import TARGET, of_node, with_host, with_run
from monitoring.rules.training import DATA_LOST, LIVE, PHASE_TIME

AVAILABLE: Final = 0.05
"""Of a machine's memory; less is a warning. Not judged within a process."""
MEMORY: Final = "node:system_memory:bytes"
USAGE: Final = "instance:process_memory_usage:bytes"
OF_ALL: Final = "instance:system_memory:bytes"
UP: Final = "instance:gpumon_collector:up"

RECORDS: Final = (
    Record(
        MEMORY,
        of_node(f"sum by (job, instance) ({series(m.MEMORY_USAGE)})"),
        "Memory of a machine, used and free.",
    ),
    Record(
        USAGE,
        f"sum by (job, instance) ({series(m.PROCESS_MEMORY_USAGE)})",
        "Resident memory of a training and its workers.",
    ),
    Record(
        OF_ALL,
        f"""
        sum by (job, instance) (
          {LIVE} * on (job, instance) group_left (gpumon_node_id) {TARGET}
          * on (gpumon_node_id) group_left () {MEMORY}
        )
        """,
        "Memory of the machine that a training is on.",
    ),
    Record(
        UP,
        f"max by (job, instance, gpumon_collector) ({series(m.COLLECTOR_UP, {m.HW_ID: ''})})",
        "1 while a collector reads its source.",
    ),
)

_COLLECTOR: Final = "on (job, instance, gpumon_collector)"
_DOWN: Final = (
    f"group by (job, instance, gpumon_collector, gpumon_reason) ({series(m.COLLECTOR_UP, {m.HW_ID: ''})} == 0)"
)

_GROWS: Final = (
    f"Less than {percent(AVAILABLE)} of the machine's memory is available; or the memory of a training and its workers "
    f"rises in each of five stretches of 6 min, by {limit.MEMORY_GROWTH_BYTES / (1 << 30):g} GiB and "
    f"{percent(limit.MEMORY_GROWTH)} of the machine's in all."
)
_LISTS: Final = (
    "look for lists that grow with every step, and data sets of Python objects that workers copy page by page."
)

ALERTS: Final = (
    Alert(
        "HostMemoryGrowth",
        "warning",
        with_host(f"{of_node(series(m.MEMORY_AVAILABLE))} / on (gpumon_node_id) {MEMORY} < {AVAILABLE:g}"),
        "{{ $labels.host_name }} has {{ $value | humanizePercentage }} of its memory left.",
        _GROWS,
        _LISTS,
        "1m",
        "available",
    ),
    Alert(
        "HostMemoryGrowth",
        "warning",
        with_run(f"{grows(USAGE, OF_ALL)}\nand on (job, instance) {LIVE}"),
        "Memory of {{ $labels.job }} on {{ $labels.host_name }} (rank {{ $labels.gpumon_rank }}) grew by "
        "{{ $value | humanize1024 }}B within half an hour.",
        _GROWS,
        _LISTS,
        "5m",
        "growth",
    ),
    Alert(
        "CollectorBlind",
        "info",
        with_run(
            f"""
            {_DOWN} and {_COLLECTOR} (max_over_time({UP}[1h]) == 1)
            or (
              group by (job, instance, gpumon_collector, gpumon_reason) (
                {series(m.COLLECTOR_UP, {m.COLLECTOR: "=~disk|dataset", m.HW_ID: ""})} == 0
              )
              and on (job, instance) {DATA_LOST}
            )
            or (
              group by (job, instance, gpumon_collector, gpumon_reason) (
                {series(m.COLLECTOR_UP, {m.COLLECTOR: "gpu", m.HW_ID: ""})} == 0
              )
              and on (job, instance) {PHASE_TIME}{{gpumon_phase="transfer"}} > 0
              unless on (job, instance) {DATA_LOST}
            )
            """
        ),
        "{{ $labels.job }} on {{ $labels.host_name }} cannot read {{ $labels.gpumon_collector }}: "
        "{{ $labels.gpumon_reason }}.",
        "A collector reads nothing that read its source within the last hour, or that a verdict needs: the disks of a "
        "training that waits for data, the GPU of one that copies to it.",
        "`gpumon doctor` on that machine says what is readable there and how to repair the rest.",
        "5m",
    ),
)

GROUP: Final = Group("gpumon.host", (*RECORDS, *ALERTS))
