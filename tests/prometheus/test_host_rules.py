"""Alerts over a machine's memory and over gpumon itself, with promtool."""

import pytest

from peers import needs_promtool
from rule_series import Line, agent, assert_fires, training

pytestmark = needs_promtool

ways = pytest.mark.parametrize("is_scraped", [False, True], ids=["pushed", "scraped"])
GIB = 2.0**30


def memory(sender, available=0.5, total_gib=64):
    """Of a machine: the states add up to all of it."""
    for state, share in (("used", 0.3), ("free", 0.2), ("cached", 0.4), ("buffers", 0.1)):
        sender.gauge("system_memory_usage_bytes", share * total_gib * GIB, system_memory_state=state)
    sender.gauge("system_memory_linux_available_bytes", available * total_gib * GIB)
    return sender


@ways
def test_a_machine_without_memory(is_scraped):
    """Whoever reports it, once per machine."""
    senders = [memory(agent(is_scraped=is_scraped), 0.04), memory(training(), 0.04)]
    senders.append(memory(agent("agent2", host="node2", node="boot2", is_scraped=is_scraped), 0.06))
    assert_fires(senders, {5: {"HostMemoryGrowth warning available": 1}, 20: {}})


def of_tree(run, trainer, workers):
    run.says("process_memory_usage_bytes", trainer, gpumon_process_role="trainer")
    run.says("process_memory_usage_bytes", workers, gpumon_process_role="loader_worker")
    return run


@ways
def test_a_training_that_grows(is_scraped):
    """Its workers do, by 7 GiB in half an hour; the machine's memory is the agent's to tell."""
    grows = Line(2 * GIB).rises(0.25 * GIB / 60, 60)
    run = of_tree(training(minutes=60), Line().stays(60, GIB), grows)
    alert = {"HostMemoryGrowth warning growth": 1}
    assert_fires([memory(agent(minutes=70, is_scraped=is_scraped)), run], {30: {}, 50: alert, 59: alert, 61: {}})


def test_a_training_that_fills_its_memory_once():
    start = Line(GIB).rises(GIB / 60, 8).stays(52)
    run = of_tree(memory(training(minutes=60)), start, Line().stays(60, GIB))
    assert_fires(run, {minute: {} for minute in range(10, 60, 5)})


# -- what cannot be read ----------------------------------------------------------------------------------

BLIND = {"CollectorBlind info": 1}


def up(sender, collector, values, reason=""):
    sender.ratio("gpumon_collector_up", values, gpumon_collector=collector, gpumon_reason=reason)
    return sender


@ways
def test_a_collector_that_was_never_up_is_no_news(is_scraped):
    """A machine without a GPU."""
    assert_fires(up(agent(minutes=30, is_scraped=is_scraped), "gpu", 0, "NVML: no GPU"), {1: {}, 10: {}, 29: {}})


@ways
def test_a_collector_that_ends(is_scraped):
    """Up, then down with a reason: two series, as the reason is a label. News for an hour."""
    node = agent(minutes=120, is_scraped=is_scraped)
    up(node, "smart", Line().stays(10, 1).ends() if is_scraped else Line().stays(10, 1))
    up(node, "smart", Line(after=10).stays(110, 0), "permission denied")
    assert_fires(node, {9: {}, 12: {}, 25: BLIND, 69: BLIND, 80: {}})


def test_what_a_verdict_needs():
    """Waits, and the disks cannot be read; copies, and the GPU cannot; a healthy run needs neither."""
    waits = up(training(phases={"data.wait": 0.5, "forward": 0.5}, minutes=20), "disk", 0, "no /proc/diskstats")
    waits.series = {key: line for key, line in waits.series.items() if 'gpumon_collector="disk"}' not in key}
    assert_fires(waits, {15: {**BLIND, "DataLoadingBound critical": 1}, 21: {}})
    copies = training(phases={"data.wait": 0.02, "transfer": 0.1, "forward": 0.88}, minutes=20)
    assert_fires(up(copies, "gpu", 0, "NVML: no GPU"), {15: BLIND})
    assert_fires(up(training(minutes=20), "gpu", 0, "NVML: no GPU"), {15: {}})
