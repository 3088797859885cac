"""*Alerts*: what Prometheus' rules say, now and before."""

from __future__ import annotations

from typing import Final

from monitoring.dashboards.board import Board, Row, Variable
from monitoring.dashboards.panel import Colour, Panel, Query

_HERE: Final = 'monitor="gpumon", host_name=~"$host"'
_CHOSEN: Final = _HERE + ', alertname=~"$rule", severity=~"$severity"'
_FIRING: Final = f'ALERTS{{{_CHOSEN}, alertstate="firing"}}'
_DEVICE: Final = "alertname, severity, reason, host_name, job, gpumon_rank, gpumon_gpu_index, system_device, hw_id"


def _count(severity: str, colour: Colour) -> Panel:
    return Panel(
        "stat",
        severity.capitalize(),
        f"Alerts of severity {severity} that fire now.",
        "none",
        [Query(f'count(ALERTS{{{_HERE}, alertstate="firing", severity="{severity}"}}) or vector(0)')],
        width=6,
        height=4,
        levels={0.0: "green", 1.0: colour},
    )


NOW: Final = Row(
    "Now",
    [
        _count("critical", "red"),
        _count("warning", "orange"),
        _count("info", "blue"),
        Panel(
            "stat",
            "Pending",
            "Conditions that hold, and not yet for long enough.",
            "none",
            [Query(f'count(ALERTS{{{_CHOSEN}, alertstate="pending"}}) or vector(0)')],
            width=6,
            height=4,
        ),
        Panel(
            "table",
            "Firing",
            "Each alert that fires now, with its device.",
            "none",
            [Query(f"count by ({_DEVICE}) ({_FIRING})")],
            width=24,
            columns={
                "alertname": "rule",
                "severity": "severity",
                "reason": "reason",
                "host_name": "machine",
                "job": "training",
                "gpumon_rank": "rank",
                "gpumon_gpu_index": "GPU",
                "system_device": "disk",
                "hw_id": "device",
                "Value": "alerts",
            },
        ),
    ],
)

BEFORE: Final = Row(
    "Over time",
    [
        Panel(
            "timeline",
            "Alerts",
            "When each rule fired, per machine and device.",
            "none",
            [
                Query(
                    f"max by (alertname, severity, host_name, job, gpumon_gpu_index, system_device) ({_FIRING})",
                    "{{alertname}} {{severity}} {{host_name}} {{job}} {{gpumon_gpu_index}} {{system_device}}",
                )
            ],
            width=24,
            height=12,
            words={1: ("fires", "red")},
        ),
        Panel(
            "stack",
            "Firing by severity",
            "How many alerts fire.",
            "none",
            [Query(f"count by (severity) ({_FIRING})", "{{severity}}")],
        ),
        Panel(
            "stack",
            "Firing by rule",
            "How many alerts of each rule fire.",
            "none",
            [Query(f"count by (alertname) ({_FIRING})", "{{alertname}}")],
        ),
    ],
)

BOARD: Final = Board(
    uid="gpumon-alerts",
    title="gpumon: alerts",
    description="The alerts of prometheus/rules/gpumon.yml: which fire, since when, for which device.",
    rows=[NOW, BEFORE],
    variables=(
        Variable("rule", "Rule", 'label_values(ALERTS{monitor="gpumon"}, alertname)', "The rule's name."),
        Variable(
            "severity", "Severity", 'label_values(ALERTS{monitor="gpumon"}, severity)', "critical, warning or info."
        ),
        Variable("host", "Machine", 'label_values(ALERTS{monitor="gpumon"}, host_name)', "host.name"),
    ),
    since="now-24h",
)
