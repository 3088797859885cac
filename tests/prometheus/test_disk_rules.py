"""Alerts over physical disks and the kernel's errors, with promtool."""

import pytest

from peers import needs_promtool
from rule_series import Line, agent, assert_fires, disk, promtool, training

pytestmark = needs_promtool

ways = pytest.mark.parametrize("is_scraped", [False, True], ids=["pushed", "scraped"])
DAYS = {"every_s": 60, "groups": ("gpumon.targets", "gpumon.disk.health")}
SMART, KERNEL = {"DiskFailing critical smart": 1}, {"DiskFailing critical kernel": 1}


@ways
def test_a_disk_that_is_well(is_scraped):
    node = disk(agent(is_scraped=is_scraped), used=0.79, link=3, critical_warning=0)
    assert_fires(node, {1: {}, 9: {}, 12: {}})


@ways
@pytest.mark.parametrize("state", ["failed", "predicted_failure"])
def test_a_disk_that_fails(is_scraped, state):
    """Once, with all that is wrong with it besides; it is known by its block device, model and serial number."""
    node = disk(agent(is_scraped=is_scraped), state=state, used=0.9, reallocated=200)
    assert_fires([node, disk(training(), state=state, reallocated=200)], {1: SMART, 9: SMART})
    promtool(
        node,
        promql_expr_test=[
            {
                "expr": 'count by (host_name, system_device, hw_model, hw_id) (ALERTS{alertname="DiskFailing"})',
                "eval_time": "5m",
                "exp_samples": [
                    {
                        "labels": '{host_name="node1", system_device="sda", hw_model="ST4000", hw_id="S1"}',
                        "value": 1,
                    }
                ],
            }
        ],
    )


def test_disks_with_one_serial_number_on_two_machines_are_two():
    """Virtual disks have it so: QM00001."""
    nodes = [
        disk(agent(), "QM00001", state="failed"),
        disk(agent("agent2", host="node2", node="boot2"), "QM00001"),
        disk(agent("agent3", host="node3", node="boot3"), "QM00001", state="failed"),
    ]
    assert_fires(nodes, {9: {"DiskFailing critical smart": 2}})


def test_a_disk_that_recovers():
    node = disk(agent(), predicted_failure=Line().stays(5, 1).stays(5, 0), ok=Line().stays(5, 0).stays(5, 1))
    assert_fires(node, {4: SMART, 5.5: {}, 9: {}})


@pytest.mark.parametrize(
    ("says", "fires"),
    [
        ({"used": 0.8}, {"DiskWearing warning wear": 1}),
        ({"used": 1.0}, {"DiskWearing critical wear": 1}),
        ({"used": 1.3}, {"DiskWearing critical wear": 1}),
        ({"pending": 2}, {"DiskWearing warning errors": 1}),
        ({"failed_before": "Spin_Up_Time"}, {"DiskWearing warning before": 1}),
        ({"critical_warning": 2}, {"DiskWearing warning temperature": 1}),
        ({"critical_warning": 5}, {}),
        ({"link": 7, "link_grown": 2}, {"DiskCableErrors warning": 1}),
    ],
)
def test_a_disk_that_is_not_well(says, fires):
    assert_fires(disk(agent(), **says), {5: fires})


# -- what the kernel saw ----------------------------------------------------------------------------------


def uses(sender, device="sda", what="gpumon_disk_holds_dataset"):
    sender.ratio("gpumon_disk_info", 1, system_device=device, **{what: "true"})
    return sender


def errors(sender, values, device="sda", kind="io"):
    sender.says("gpumon_disk_errors_total", values, system_device=device, error_type=kind)
    return sender


def test_a_counter_that_is_there_from_the_start():
    """0 since the training began, then 2 errors; for a day, though the training ends of it."""
    run = errors(uses(training(minutes=10)), Line().stays(5, 0).stays(5, 2))
    assert_fires(run, {4.5: {}, 6: KERNEL, 9: KERNEL, 30: KERNEL, 1400: KERNEL, 1500: {}}, **DAYS)


@ways
def test_a_counter_that_comes_with_its_first_error(is_scraped):
    """An agent's: nothing, then a series that begins at 1. A day later it is no news."""
    node = errors(agent(is_scraped=is_scraped, minutes=1600), Line(after=5).stays(1595, 1))
    run = uses(training(minutes=1600))
    assert_fires([node, run], {4.5: {}, 6: KERNEL, 600: KERNEL, 1500: {}, 1590: {}}, **DAYS)


def test_an_old_error_is_no_news_after_a_gap():
    """Nothing arrives for half an hour; then the counter is there again as it was."""
    values = Line(after=5).stays(1495, 1).is_gone(30).stays(70, 1)
    senders = [errors(agent(minutes=1600), values), uses(training(minutes=1600))]
    assert_fires(senders, {6: KERNEL, 1490: {}, 1531: {}, 1600: {}}, **DAYS)


def test_an_agent_that_counts_anew():
    """Its counter falls back to 0: no error; and has its first one again: one."""
    node = errors(agent(is_scraped=True, minutes=1600), Line().stays(10, 5).stays(1490, 0).stays(100, 1))
    run = uses(training(minutes=1600))
    assert_fires([node, run], {1490: {}, 1503: KERNEL}, **DAYS)


def test_errors_of_a_disk_without_a_runs_data():
    """Another disk of the node, and the same name on another node."""
    node = errors(agent(), Line(after=5).stays(5, 1), device="sdb")
    assert_fires([node, uses(training())], {9: {}})
    node = errors(agent(), Line(after=5).stays(5, 1))
    assert_fires([node, uses(training(host="node2", node="boot2"))], {9: {}})


def test_checkpoints_count_too():
    node = errors(agent(), Line(after=5).stays(5, 1))
    assert_fires([node, uses(training(), what="gpumon_disk_holds_checkpoints")], {9: KERNEL})
