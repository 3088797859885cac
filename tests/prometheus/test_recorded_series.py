"""Recorded series, with promtool: their values."""

import pytest

from peers import needs_promtool
from rule_series import Line, Sender, agent, gpu, promtool, training

pytestmark = needs_promtool


def assert_recorded(senders, expected, *, minute=9.0):
    """*expected*: a query -> its value, or None where there is no series."""
    promtool(
        senders,
        promql_expr_test=[
            {
                "expr": f"round({query}, 0.0001)",
                "eval_time": f"{round(minute * 60)}s",
                "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
            }
            for query, value in expected.items()
        ],
    )


def test_await_and_utilization_of_a_disk():
    """400 reads per second of 2 ms each, one device; a write takes 20 ms; no I/O has no await."""
    node = agent()
    reads, writes = ({"system_device": "sda", "disk_io_direction": each} for each in ("read", "write"))
    node.counter("system_disk_operations_total", 400, **reads)
    node.counter("system_disk_operation_time_seconds_total", 0.8, **reads)
    node.counter("system_disk_operations_total", 5, **writes)
    node.counter("system_disk_operation_time_seconds_total", 0.1, **writes)
    node.counter("system_disk_io_time_seconds_total", 0.45, system_device="sda")
    idle = {"system_device": "sdb", "disk_io_direction": "read"}
    node.counter("system_disk_operations_total", 0, 77, **idle)
    node.counter("system_disk_operation_time_seconds_total", 0, 3, **idle)
    waits = "instance_device:system_disk_await_seconds:rate2m"
    assert_recorded(
        node,
        {
            f'sum({waits}{{system_device="sda", disk_io_direction="read"}})': 0.002,
            f'sum({waits}{{system_device="sda", disk_io_direction="write"}})': 0.02,
            f'{waits}{{system_device="sdb"}}': None,
            "sum(instance_device:system_disk_utilization:rate2m)": 0.45,
        },
    )


def test_shares_of_a_step():
    """A quarter waits for data, a tenth of the steps' time for first batches of epochs, which are left out."""
    run = training(phases={"data.wait": 0.25, "transfer": 0.15, "forward": 0.6}, first_wait=0.1, busy=0.8)
    steady = 1 - 0.1 * 1.1
    wait = (0.25 - 0.1) / steady
    assert_recorded(
        run,
        {
            "sum(instance:gpumon_step_time:rate5m)": 0.8,
            "sum(instance:gpumon_data_wait:ratio_rate5m)": round(wait, 4),
            'sum(instance_phase:gpumon_phase:ratio_rate5m{gpumon_phase="transfer"})': round((1 - wait) * 0.2, 4),
            'sum(instance_phase:gpumon_phase:ratio_rate5m{gpumon_phase="data.wait"}) or vector(-1)': -1,
            "sum(instance:gpumon_training:live)": 1,
        },
    )
    assert_recorded(run, {"instance:gpumon_training:live": None}, minute=11)


def test_quantiles_of_the_step_time():
    """Nine in ten steps up to 0.1 s, the tenth up to 1 s: p50 in the first bucket, p95 in the middle of the second."""
    run = training()
    for bound, rate in (("0.1", 9.0), ("1", 10.0), ("10", 10.0), ("100", 10.0), ("+Inf", 10.0)):
        run.counter("gpumon_step_duration_seconds_bucket", rate, le=bound, gpumon_stage="train")
    assert_recorded(
        run,
        {
            "sum(instance:gpumon_step_duration_seconds:p50_5m)": 0.0556,
            "sum(instance:gpumon_step_duration_seconds:p95_5m)": 0.55,
            "sum(instance:gpumon_step_duration_seconds:p99_5m)": 0.91,
        },
    )


@pytest.mark.parametrize("has_own_provider", [False, True], ids=["", "provider of the application"])
@pytest.mark.parametrize("is_scraped", [False, True], ids=["pushed", "scraped"])
def test_who_is_where(is_scraped, has_own_provider):
    """A machine has the agent's name of it, not that of a container on it; senders have their run and rank."""
    senders = [
        agent(is_scraped=is_scraped, host="node1"),
        training(instance="i1", host="c0ffee", rank="3", has_own_provider=has_own_provider),
        Sender("other", "x", host="node2", node="boot2"),
    ]
    assert_recorded(
        senders,
        {
            'sum(node:gpumon_host:info{gpumon_node_id="boot1", host_name="node1"})': 1,
            'node:gpumon_host:info{host_name="c0ffee"}': None,
            "count(node:gpumon_host:info)": 2,
            'sum(instance:gpumon_target:info{instance="i1", gpumon_run_id="run1", gpumon_rank="3"})': 1,
            "count(instance:gpumon_target:info)": 3,
        },
    )


def test_clocks_that_nothing_holds_down():
    """Of a GPU that is used and free; not while it is at its power limit, nor while it idles."""
    free = "device:gpumon_gpu_clock_unslowed:hertz"
    assert_recorded(gpu(agent()), {f"sum({free}) / 1e6": 1980})
    assert_recorded(gpu(agent(), sw_power_cap=0.5), {free: None})
    assert_recorded(gpu(agent(), utilization=Line().stays(10, 0.01)), {free: None})
