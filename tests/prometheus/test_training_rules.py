"""Alerts over steps, with promtool: firing, not firing, after the end, several runs, pushed and scraped."""

import pytest

from peers import needs_promtool
from rule_series import Line, Sender, assert_fires, promtool, said, training

pytestmark = needs_promtool

WAITS = {"data.wait": 0.4, "forward": 0.6}
ways = pytest.mark.parametrize("is_scraped", [False, True], ids=["pushed", "scraped"])


@ways
def test_a_healthy_training_fires_nothing_ever(is_scraped):
    assert_fires(training(is_scraped=is_scraped), {1: {}, 5: {}, 9.75: {}, 10.5: {}, 12: {}, 20: {}, 70: {}})


@ways
def test_a_training_that_waits_for_data(is_scraped):
    """It fires while it runs, and not half a minute after its end."""
    run = training(phases=WAITS, is_scraped=is_scraped)
    assert_fires(run, {1: {}, 5: {"DataLoadingBound critical": 1}, 9.75: {"DataLoadingBound critical": 1}, 11: {}})


@pytest.mark.parametrize(
    ("busy", "wait", "severity"),
    [(1.0, 0.3, "critical"), (0.5, 0.3, "warning"), (0.3, 0.3, "info"), (1.0, 0.15, "warning")],
)
def test_severity_is_by_the_share_of_the_runs_time(busy, wait, severity):
    run = training(phases={"data.wait": wait, "forward": 1 - wait}, busy=busy)
    assert_fires(run, {9: {f"DataLoadingBound {severity}": 1}})


def test_a_wait_that_is_not_the_largest_loss_is_no_finding():
    phases = {"data.wait": 0.15, "transfer": 0.18, "forward": 0.67}
    assert_fires(training(phases=phases), {9: {}})
    assert_fires(training(phases={**phases, "transfer": 0.1, "forward": 0.75}), {9: {"DataLoadingBound warning": 1}})


def test_validation_is_not_training():
    """Waits of another stage are nobody's loss."""
    healthy = training()
    validation = training(phases=WAITS, stage="validation")
    del validation.series['target_info{job="train", instance="i1", host_name="node1", gpumon_node_id="boot1", '
                          'gpumon_run_id="run1", gpumon_rank="0"}']  # fmt: skip
    assert_fires([healthy, validation], {9: {}})


def test_too_few_steps_are_not_judged():
    """Nineteen steps in the window, or less than 5 s of them."""
    assert_fires(training(phases=WAITS, steps_per_s=19 / 300), {9: {}})
    assert_fires(training(phases=WAITS, busy=0.012), {9: {}})


@pytest.mark.parametrize("has_own_provider", [False, True], ids=["", "provider of the application"])
def test_each_rank_of_each_run_is_judged_alone(has_own_provider):
    """Four processes of two runs on one host, of which two wait; the healthy ones stay out of it."""
    own = {"has_own_provider": has_own_provider}
    runs = [
        training(instance="i1", run="run1", rank="0", phases=WAITS, **own),
        training(instance="i2", run="run1", rank="1", phases=WAITS, **own),
        training(instance="i3", run="run2", rank="0", **own),
        training("other", "i4", run="run3", rank="0", **own),
    ]
    assert_fires(runs, {9: {"DataLoadingBound critical": 2}})
    alert = {"alertname": "DataLoadingBound", "monitor": "gpumon", "severity": "critical", "job": "train"}
    at = {"host_name": "node1", "gpumon_run_id": "run1"}
    promtool(
        runs,
        promql_expr_test=[
            {
                "expr": 'count by (alertname, monitor, severity, job, host_name, gpumon_run_id, gpumon_rank, instance) '
                '(ALERTS{alertstate="firing"})',
                "eval_time": "9m",
                "exp_samples": [
                    {"labels": labels({**alert, **at, "instance": "i1", "gpumon_rank": "0"}), "value": 1},
                    {"labels": labels({**alert, **at, "instance": "i2", "gpumon_rank": "1"}), "value": 1},
                ],
            }
        ],
    )  # fmt: skip


def labels(found):
    return "{" + ", ".join(f'{key}="{value}"' for key, value in found.items()) + "}"


def test_the_summary_has_the_device_and_the_number():
    promtool(
        training(phases=WAITS),
        alert_rule_test=[
            {
                "alertname": "DataLoadingBound",
                "eval_time": "9m",
                "exp_alerts": [
                    {
                        "exp_labels": {
                            "severity": "critical",
                            "monitor": "gpumon",
                            "job": "train",
                            "instance": "i1",
                            "host_name": "node1",
                            "gpumon_run_id": "run1",
                            "gpumon_rank": "0",
                        },
                        "exp_annotations": said(
                            "DataLoadingBound",
                            "train on node1 (rank 0): 38% of its time lost waiting for data.",
                            "critical",
                        ),
                    }
                ],
            }
        ],
    )


def test_a_restart_under_the_same_name_resets_counters():
    """A scraped training that starts anew at 0 is neither a burst of waits nor a stall."""
    run = training(minutes=20, is_scraped=True)
    for key, values in run.series.items():
        if "_total" in key or "_bucket" in key:
            first, _, rest = values.partition("x")
            run.series[key] = f"{first}x59 {first}x{int(rest.split()[0]) - 60} stale"
    assert_fires(run, {minute: {} for minute in (9, 10.25, 10.5, 11, 12, 13, 19)})


def test_a_gap_in_the_reports_is_no_stall_and_no_loss():
    """Nothing arrives for four minutes, then all goes on."""
    run = training(minutes=20)
    for key, values in run.series.items():
        begin, _, rest = values.partition("+")
        step, _, _ = rest.partition("x")
        step = float(step or 0)
        begin = float(begin.split("x")[0])
        later = f"{begin + step * 84:g}+{step:g}x35" if step else f"{begin:g}x35"
        run.series[key] = (f"{begin:g}+{step:g}x59" if step else f"{begin:g}x59") + f" _x24 {later}"
    assert_fires(run, {minute: {} for minute in (9, 11, 13, 14, 14.5, 15, 16, 19)})


# -- the first batches of epochs --------------------------------------------------------------------------


def test_first_batches_are_judged_over_the_whole_run():
    """12 % of the steps' time is a warning; the waits that they are part of are no disk's fault."""
    phases = {"data.wait": 0.14, "forward": 0.86}
    assert_fires(training(phases=phases, first_wait=0.12, minutes=20), {19: {"FirstBatchSlow warning": 1}})
    phases = {"data.wait": 0.18, "forward": 0.82}
    assert_fires(training(phases=phases, first_wait=0.04, minutes=20), {19: {"DataLoadingBound warning": 1}})


def test_one_slow_start_is_outrun():
    """30 s of waiting for the very first batch, and an hour of steps: within its 10 min the share is below 5 %."""
    run = training(minutes=60)
    key = next(key for key in run.series if key.startswith("gpumon_first_of_epoch_wait_time"))
    run.series[key] = str(Line().rises(1, 0.5).stays(59.5))
    assert_fires(run, {minute: {} for minute in (5, 10, 11, 12, 20, 59)})


# -- transfers, communication, checkpoints ----------------------------------------------------------------


@pytest.mark.parametrize(("phase", "alert"), [("transfer", "TransferBound"), ("communication", "CommunicationBound")])
def test_a_phase_that_takes_too_much(phase, alert):
    def run(share):
        return training(phases={"data.wait": 0.03, phase: share, "forward": 0.97 - share})

    assert_fires(run(0.25), {9: {f"{alert} critical": 1}})
    assert_fires(run(0.21), {9: {f"{alert} warning": 1}})
    assert_fires(run(0.19), {9: {}})


def test_checkpoints_that_take_too_much():
    phases = {"data.wait": 0.03, "checkpoint": 0.12, "forward": 0.85}
    assert_fires(training(phases=phases, minutes=20), {19: {"CheckpointSlow warning": 1}, 21: {}})
    assert_fires(training(phases={**phases, "checkpoint": 0.04, "forward": 0.93}, minutes=20), {19: {}})


# -- stalls -----------------------------------------------------------------------------------------------


def stalls(run, *, after=10.0, for_minutes=20.0, every_s=10):
    """The run goes on sending, and its counters stay where they are."""
    for key, values in run.series.items():
        begin, plus, rest = values.partition("+")
        if not plus:
            run.series[key] = str(Line().stays(after + for_minutes, float(begin.split("x")[0])))
            continue
        line = Line(float(begin)).rises(float(rest.split("x")[0]) / 10, after)
        run.series[key] = str(line.stays(for_minutes))
    return run


def test_a_training_that_hangs():
    """It fires two minutes after the last step, for as long as the process goes on sending, and no longer."""
    run = stalls(training(), for_minutes=20)
    alert = {"TrainingStalled critical": 1}
    assert_fires(run, {10: {}, 11: {}, 12.5: alert, 20: alert, 29: alert, 31: {}, 40: {}})


def test_long_steps_have_their_time():
    """Steps of 8 s are not stalled for 5 min; steps of 80 s are not for half an hour."""
    run = stalls(training(steps_per_s=1 / 8, phases={"forward": 1.0}), for_minutes=20)
    assert_fires(run, {12: {}, 14: {}, 17: {"TrainingStalled critical": 1}})
    run = stalls(training(steps_per_s=1 / 80, phases={"forward": 1.0}, minutes=60), after=60, for_minutes=40)
    assert_fires(run, {75: {}, 89: {}, 92: {"TrainingStalled critical": 1}})


def test_validation_is_progress():
    """No training step for ten minutes, while steps of validation go on."""
    run = stalls(training(minutes=10), for_minutes=10)
    at = {"gpumon_stage": "validation"}
    run.says("gpumon_step_count_total", Line(after=10).rises(5, 10), **at)
    assert_fires(run, {11: {}, 12.5: {}, 15: {}, 19: {}})


def test_a_training_that_ended_is_not_stalled():
    """With its last points as they were for a while: a checkpoint, and the exit."""
    for pause in (0, 0.5, 1.0, 1.5):
        run = stalls(training(), for_minutes=pause) if pause else training()
        assert_fires(run, {10 + minute / 4: {} for minute in range(32)})


def test_slow_exports_are_no_stall():
    """A point per minute, as OpenTelemetry's default has it."""
    run = training(minutes=30)
    sparse = {}
    for key, values in run.series.items():
        begin, plus, rest = values.partition("+")
        begin, step = float(begin.split("x")[0]), float(rest.split("x")[0]) if plus else 0.0
        sparse[key] = " ".join(f"{begin + step * 6 * number:g} _x5" for number in range(30))
    assert_fires([sparse], {minute: {} for minute in (5, 10, 20, 29, 31, 33, 40)})


# -- who says it ------------------------------------------------------------------------------------------


def test_senders_without_target_info_are_judged_too():
    """Nothing is known of the sender but its job and instance."""
    run = training(phases=WAITS)
    run.series = {key: line for key, line in run.series.items() if not key.startswith("target_info")}
    assert_fires(run, {9: {"DataLoadingBound critical": 1}})


def test_two_resources_under_one_name_do_not_break_the_rules():
    """An application without service.instance.id on two hosts: joins find one of them and no error."""
    run = training(phases=WAITS)
    other = Sender("train", "i1", host="node2", node="boot2", run="run2", rank="1")
    assert_fires([run, {key: line for key, line in other.series.items() if key.startswith("target_info")}],
                 {9: {"DataLoadingBound critical": 1}})  # fmt: skip


# -- ranks ------------------------------------------------------------------------------------------------


def ranks(*own, run="run1", **sender):
    """Ranks whose own share of the step is as given; each waits for the slowest in its communication."""
    return [
        training(
            instance=f"{run}-{rank}",
            rank=str(rank),
            run=run,
            phases={"data.wait": 0.02, "forward": share - 0.02, "communication": 1 - share},
            **sender,
        )
        for rank, share in enumerate(own)
    ]


def test_the_rank_that_the_others_wait_for():
    """At 98 % of its step, where the others' median is 86 %; with two runs each is held against its own."""
    slow, even = ranks(0.98, 0.86, 0.86, 0.87), ranks(0.9, 0.91, 0.9, run="run2")
    assert_fires([*slow, *even], {9: {"RankStraggler warning": 1}, 11: {}})
    assert_fires(ranks(0.99, 0.81, 0.81), {9: {"RankStraggler warning": 1}})
    assert_fires(ranks(0.99, 0.82, 0.81, 0.81, 0.81), {9: {"RankStraggler warning": 1}})
    assert_fires(ranks(0.9), {9: {}})


def test_a_rank_far_behind_is_critical():
    """The others spend a fifth of their steps and more in communication, which is a finding of its own."""
    fired = {"RankStraggler critical": 1, "CommunicationBound critical": 2}
    assert_fires(ranks(0.98, 0.7, 0.7), {9: fired})
