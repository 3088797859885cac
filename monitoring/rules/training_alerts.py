"""Alerts over a training's steps."""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from gpumon.rules import thresholds as limit
from monitoring.promql import percent, series
from monitoring.rules.rule import Alert, Group
from monitoring.rules.targets import with_run
from monitoring.rules.training import (
    CHECKPOINT_LOST,
    CHECKPOINTS,
    COMMUNICATION_LOST,
    DATA_LOST,
    FIRST_LOST,
    LIVE,
    LOST,
    RECORDS,
    STRAGGLES,
    TRAIN,
    TRANSFER_LOST,
)

HOLD: Final = "2m"
STALLED_STEPS: Final = 10
STALLED_S: Final = 60
"""A training without steps for so many 95th percentiles of its step and so long. Not judged within a process."""


def by_loss(name: str, record: str, *, what: str, when: str, advice: str, hold: str = HOLD) -> list[Alert]:
    """One alert per severity, by the share of the run's time that is lost, which *record* has."""
    bounds = {
        "critical": f">= {limit.CRITICAL:g}",
        "warning": f">= {limit.WARNING:g} < {limit.CRITICAL:g}",
        "info": f"< {limit.WARNING:g}",
    }
    return [
        Alert(
            name,
            severity,
            with_run(f"{record} {bound}"),
            f"{{{{ $labels.job }}}} on {{{{ $labels.host_name }}}} (rank {{{{ $labels.gpumon_rank }}}}): "
            f"{{{{ $value | humanizePercentage }}}} of its time lost {what}.",
            f"{when} By the share of the run's time that is lost: warning from {percent(limit.WARNING)}, critical from "
            f"{percent(limit.CRITICAL)}, else info.",
            advice,
            hold,
        )
        for severity, bound in bounds.items()
    ]


def _straggler(severity: str, bound: str) -> Alert:
    return Alert(
        "RankStraggler",
        severity,
        with_run(f"{STRAGGLES} {bound}"),
        "Rank {{ $labels.gpumon_rank }} of {{ $labels.job }}, on {{ $labels.host_name }}, takes "
        "{{ $value | humanizePercentage }} of a step longer than its run's median rank: the others wait for it.",
        "A rank's own time (without communication) exceeds the median rank's: warning from "
        f"{percent(limit.WARNING)} of a step, critical from {percent(limit.CRITICAL)}.",
        "the dashboard *Training run*, for this rank alone and for another, shows which phase it is.",
        HOLD,
    )


def _stalled() -> str:
    """No step over the shortest of some windows that is long enough for the training's steps."""
    buckets = f"sum by (job, instance, le) ({series(m.STEP_DURATION, TRAIN, part='_bucket')})"
    choices = [
        f"(sum by (job, instance) (increase({series(m.STEP_COUNT)}[{window_s // 60}m])) == 0 "
        f"and histogram_quantile(0.95, {buckets}) <= {window_s / STALLED_STEPS:g})"
        for window_s in (STALLED_S, 300, 1800, 3600)
    ]
    return "\n".join(
        [
            f"histogram_quantile(0.95, {buckets})",
            "and on (job, instance) (",
            "  " + "\n  or ".join(choices),
            ")",
            f"and on (job, instance) {LIVE}",
        ]
    )


ALERTS: Final = (
    *by_loss(
        "DataLoadingBound",
        DATA_LOST,
        what="waiting for data",
        when=f"Waiting for data takes {percent(limit.LARGE_LOSS)} of the steps' time, or "
        f"{percent(limit.NO_ALARM_WAIT)} and more than transfers, communication, checkpoints and the rest each.",
        advice="`gpumon report` names the cause: a disk, the network, too few workers or CPUs.",
    ),
    *by_loss(
        "FirstBatchSlow",
        FIRST_LOST,
        what="waiting for the first batches of epochs",
        when=f"Waits for the first batches of epochs take {percent(limit.FIRST_BATCHES)} of all the run's step time.",
        advice="`persistent_workers=True`, or fewer and longer epochs.",
        hold="10m",
    ),
    *by_loss(
        "TransferBound",
        TRANSFER_LOST,
        what="in copies to the device",
        when=f"Copies to the device take {percent(limit.LARGE_LOSS)} of the steps' time.",
        advice="`pin_memory=True` and `.to(device, non_blocking=True)`: copies then overlap with compute.",
    ),
    *by_loss(
        "CommunicationBound",
        COMMUNICATION_LOST,
        what="in communication with other ranks",
        when=f"Communication with other ranks takes {percent(limit.LARGE_LOSS)} of the steps' time.",
        advice="look for the slowest rank first: the others wait for it in their communication.",
    ),
    *by_loss(
        "CheckpointSlow",
        CHECKPOINT_LOST,
        what="in checkpoints",
        when=f"Checkpoints take {percent(CHECKPOINTS)} of all the run's step time.",
        advice="save less often, to a quicker disk, or in the background.",
        hold="10m",
    ),
    _straggler("critical", f">= {limit.CRITICAL:g}"),
    _straggler("warning", f">= {limit.WARNING:g} < {limit.CRITICAL:g}"),
    Alert(
        "TrainingStalled",
        "critical",
        with_run(_stalled()),
        "{{ $labels.job }} on {{ $labels.host_name }} (rank {{ $labels.gpumon_rank }}) sends, and does no step any "
        "more; 95 % of its steps took less than {{ $value | humanizeDuration }}.",
        f"No step, of whatever stage, for {STALLED_STEPS} times the 95th percentile of the step time and "
        f"{STALLED_S} s (in windows of 1 min, 5 min, 30 min and 1 h), while the process goes on sending.",
        "`py-spy dump --pid PID` on every rank shows where it hangs; one rank that ended leaves the others waiting.",
        "1m",
    ),
)

GROUP: Final = Group("gpumon.training", (*RECORDS, *LOST, *ALERTS))
