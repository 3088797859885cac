"""Recorded series of a training's steps: shares of their time, and what costs too much of it.

Shares are those of `gpumon.rules.verdict`, over the last five minutes of each process instead of a whole run.
"""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from gpumon.rules import thresholds as limit
from monitoring.promql import series
from monitoring.rules.rule import Record
from monitoring.rules.targets import TARGET

TRAIN: Final = {m.STAGE: "train"}
_WINDOW: Final = "5m"
_WINDOW_S: Final = 300
CHECKPOINTS: Final = 0.05
"""Of a training's time. Not judged within a process."""

LIVE: Final = "instance:gpumon_training:live"
JUDGED: Final = "instance:gpumon_training:judged"
DATA_WAIT: Final = "instance:gpumon_data_wait:ratio_rate5m"
DATA_LOST: Final = "instance:gpumon_data_loading_bound:lost"
FIRST_LOST: Final = "instance:gpumon_first_batch_slow:lost"
TRANSFER_LOST: Final = "instance:gpumon_transfer_bound:lost"
COMMUNICATION_LOST: Final = "instance:gpumon_communication_bound:lost"
OWN_TIME: Final = "instance:gpumon_own_step_time:seconds"
STRAGGLES: Final = "instance:gpumon_straggler:excess"
CHECKPOINT_LOST: Final = "instance:gpumon_checkpoint_slow:lost"
PHASE: Final = "instance_phase:gpumon_phase:ratio_rate5m"
PHASE_TIME: Final = "instance_phase:gpumon_phase_time:rate5m"
STEADY_TIME: Final = "instance:gpumon_step_time_steady:rate5m"
_STEP_TIME: Final = "instance:gpumon_step_time:rate5m"
_FIRST_WAIT: Final = "instance:gpumon_first_of_epoch_wait:rate5m"
_FIRST_TIME: Final = "instance:gpumon_first_of_epoch_step_time:rate5m"
_WAIT: Final = "instance:gpumon_data_wait:rate5m"
_COMMUNICATION: Final = f'sum by (job, instance) ({PHASE_TIME}{{gpumon_phase="communication"}})'


def _rate(metric: m.Metric, by: str = "job, instance") -> str:
    return f"sum by ({by}) (rate({series(metric, TRAIN)}[{_WINDOW}]))"


def _or_zero(expression: str, like: str) -> str:
    return f"({expression} or 0 * {like})"


def _total(metric: m.Metric, where: dict[str, str] | None = None) -> str:
    return f"sum by (job, instance) ({series(metric, {**TRAIN, **(where or {})})})"


RECORDS: Final = (
    Record(
        LIVE,
        f"""
        group by (job, instance) (
          time() - timestamp({series(m.STEP_COUNT, TRAIN)})
          < clamp({_WINDOW_S * 2.5:.0f} / count_over_time({series(m.STEP_COUNT, TRAIN)}[{_WINDOW}]), 30, 150)
        )
        """,
        "1 while a training sends: its last point is no older than 2.5 of its intervals. One that ended is not "
        "judged any more, though Prometheus shows what was pushed for five more minutes.",
    ),
    Record(_STEP_TIME, _rate(m.STEP_TIME), "Seconds of training steps per second."),
    Record(PHASE_TIME, _rate(m.PHASE_TIME, "job, instance, gpumon_phase"), "The same per phase."),
    Record(
        _WAIT,
        f'sum by (job, instance) ({PHASE_TIME}{{gpumon_phase="data.wait"}})',
        "Seconds of waiting for data per second.",
    ),
    Record(
        _FIRST_WAIT, _or_zero(_rate(m.FIRST_OF_EPOCH_WAIT_TIME), _STEP_TIME), "Waits for first batches, per second."
    ),
    Record(
        _FIRST_TIME,
        _or_zero(_rate(m.FIRST_OF_EPOCH_STEP_TIME), _STEP_TIME),
        "Time of steps that begin an epoch, per second.",
    ),
    Record(
        STEADY_TIME,
        f"clamp_min({_STEP_TIME} - {_FIRST_TIME}, 0)",
        "Seconds of training steps per second, steps that begin an epoch left out.",
    ),
    Record(
        DATA_WAIT,
        f"clamp({_WAIT} - {_FIRST_WAIT}, 0, Inf) / ({STEADY_TIME} > 0)",
        "Share of the steps' time that waits for data, steps that begin an epoch left out.",
    ),
    Record(
        PHASE,
        f"""
        {PHASE_TIME}{{gpumon_phase!="data.wait"}}
        * on (job, instance) group_left () (
          clamp_min(1 - {DATA_WAIT}, 0) / (sum by (job, instance) ({PHASE_TIME}{{gpumon_phase!="data.wait"}}) > 0)
        )
        """,
        "Share of the steps' time per other phase, steps that begin an epoch left out.",
    ),
    *(
        Record(
            f"instance:gpumon_step_duration_seconds:p{percent}_5m",
            f"histogram_quantile({percent / 100}, {_rate_of_buckets})",
            f"{percent} % of the training steps take no longer.",
        )
        for percent in (50, 95, 99)
        for _rate_of_buckets in [
            f"sum by (job, instance, le) (rate({series(m.STEP_DURATION, TRAIN, part='_bucket')}[{_WINDOW}]))"
        ]
    ),
    Record(
        JUDGED,
        f"""
        {LIVE}
        and on (job, instance)
        (sum by (job, instance) (increase({series(m.STEP_COUNT, TRAIN)}[{_WINDOW}])) >= {limit.MIN_STEPS})
        and on (job, instance)
        ({_STEP_TIME} * {_WINDOW_S} >= {limit.MIN_STEP_TIME_S:g})
        unless on (job, instance)
        ({_WAIT} > 1.05 * {_STEP_TIME})
        """,
        f"1 for a live training with {limit.MIN_STEPS} steps and {limit.MIN_STEP_TIME_S:g} s of them in the window.",
    ),
)


def _phase_lost(phase: str) -> str:
    """Share of the run's time that a phase costs beyond what is tolerated, where it is a verdict."""
    return f"""
        sum by (job, instance) ({PHASE}{{gpumon_phase="{phase}"}} >= {limit.LARGE_LOSS:g})
        * {STEADY_TIME} - {limit.TOLERATED_WAIT:g} * {STEADY_TIME}
        and on (job, instance) {JUDGED}
        """


def _of_run(part: str, lost: str, at_least: float) -> str:
    """Over the whole run, as its counters are: they begin at 0 with it."""
    return f"""
        ({lost}) / {_total(m.STEP_TIME)}
        and on (job, instance) ({part} / {_total(m.STEP_TIME)} >= {at_least:g})
        and on (job, instance) ({_total(m.STEP_COUNT)} >= {limit.MIN_STEPS})
        and on (job, instance) ({_total(m.STEP_TIME)} >= {limit.MIN_STEP_TIME_S:g})
        and on (job, instance) {LIVE}
        """


def _straggles() -> str:
    """Of runs with several ranks, which alone have a median to exceed."""
    of_run = f'{OWN_TIME} * on (job, instance) group_left (gpumon_run_id) {TARGET}{{gpumon_run_id!=""}}'
    return f"""
        sum by (job, instance) (
          {of_run}
          - on (gpumon_run_id) group_left () quantile by (gpumon_run_id) (0.5, {of_run})
          and on (gpumon_run_id) count by (gpumon_run_id) ({of_run}) > 1
        )
        / on (job, instance) (
          {_STEP_TIME} / (sum by (job, instance) (rate({series(m.STEP_COUNT, TRAIN)}[{_WINDOW}])) > 0)
        )
        and on (job, instance) {JUDGED}
        """


_FIRST: Final = _total(m.FIRST_OF_EPOCH_WAIT_TIME)
_CHECKPOINT: Final = _total(m.PHASE_TIME, {m.PHASE: "checkpoint"})

LOST: Final = (
    Record(
        DATA_LOST,
        f"""
        clamp_min(
          ({_WAIT} - {limit.TOLERATED_WAIT:g} * {_STEP_TIME}) and ({_FIRST_WAIT} / {_WAIT} >= {limit.STARTUP:g})
          or {_WAIT} - {_FIRST_WAIT} - {limit.TOLERATED_WAIT:g} * {STEADY_TIME}
        , 0)
        and on (job, instance) {JUDGED}
        and on (job, instance) (
          {DATA_WAIT} >= {limit.LARGE_LOSS:g}
          or (
            {DATA_WAIT} >= {limit.NO_ALARM_WAIT:g}
            unless {DATA_WAIT} <= max by (job, instance) (
              {PHASE}{{gpumon_phase=~"transfer|communication|checkpoint|other"}}
            )
          )
          or ({_WAIT} / {_STEP_TIME} >= {limit.LARGE_LOSS:g} and {_FIRST_WAIT} / {_WAIT} >= {limit.STARTUP:g})
        )
        """,
        "Share of the run's time that is lost to waits for data, where they are what costs the time.",
    ),
    Record(
        FIRST_LOST,
        _of_run(
            _FIRST, f"{_FIRST} - {limit.TOLERATED_WAIT:g} * {_total(m.FIRST_OF_EPOCH_STEP_TIME)}", limit.FIRST_BATCHES
        ),
        "Share of the run's step time that is lost to the first batches of epochs, where that is much.",
    ),
    Record(TRANSFER_LOST, _phase_lost("transfer"), "The same of copies to the device."),
    Record(COMMUNICATION_LOST, _phase_lost("communication"), "The same of communication with other ranks."),
    Record(
        OWN_TIME,
        f"""
        ({_STEP_TIME} - ({_COMMUNICATION} or 0 * {_STEP_TIME}))
        / (sum by (job, instance) (rate({series(m.STEP_COUNT, TRAIN)}[{_WINDOW}])) > 0)
        """,
        "Time of a mean step without communication: what a rank takes by itself.",
    ),
    Record(STRAGGLES, _straggles(), "By how much of a step a rank's own time exceeds that of its run's median rank."),
    Record(CHECKPOINT_LOST, _of_run(_CHECKPOINT, _CHECKPOINT, CHECKPOINTS), "The same of checkpoints."),
)
