"""Alerts over GPUs, with promtool: whoever reports them, each once."""

import pytest

from peers import needs_promtool
from rule_series import Line, agent, assert_fires, gpu, promtool, said, training

pytestmark = needs_promtool

ways = pytest.mark.parametrize("is_scraped", [False, True], ids=["pushed", "scraped"])


@ways
def test_a_busy_healthy_gpu_fires_nothing(is_scraped):
    """At its power limit for a tenth of the time, 80 °C, memory at 91 %, a link that trains down while idle."""
    node = agent(is_scraped=is_scraped, minutes=20)
    gpu(node, celsius=80, memory=0.91, sw_power_cap=0.1)
    gpu(node, "GPU-2", "1", utilization=0.02, width=8, generation=1)
    assert_fires(node, {1: {}, 10: {}, 19.5: {}, 22: {}, 30: {}})


@ways
def test_a_gpu_that_all_report_is_one(is_scraped):
    """The agent and two trainings of the node see the same GPU; another node's of the same kind is another."""
    senders = [
        gpu(agent(is_scraped=is_scraped), celsius=87),
        gpu(training(instance="i1"), celsius=87),
        gpu(training(instance="i2", rank="1", host="container"), celsius=87),
        gpu(agent("agent2", host="node2", node="boot2", is_scraped=is_scraped), "GPU-2", celsius=87),
    ]
    assert_fires(senders, {5: {"GpuOverheating warning": 2}})
    alerts = {"alertname": "GpuOverheating", "monitor": "gpumon", "severity": "warning", "alertstate": "firing"}
    device = {"gpumon_gpu_index": "0", "hw_model": "H100"}
    promtool(
        senders,
        alert_rule_test=[
            {
                "alertname": "GpuOverheating",
                "eval_time": "5m",
                "exp_alerts": [
                    {
                        "exp_labels": {
                            **{key: alerts[key] for key in ("monitor", "severity")},
                            **device,
                            "gpumon_node_id": node,
                            "host_name": host,
                            "hw_id": uuid,
                        },
                        "exp_annotations": said("GpuOverheating", f"GPU 0 (H100) on {host} is at 87 °C.", "warning"),
                    }
                    for node, host, uuid in (("boot1", "node1", "GPU-1"), ("boot2", "node2", "GPU-2"))
                ],
            }
        ],
    )


# -- temperature ------------------------------------------------------------------------------------------


def test_heat_has_a_hysteresis():
    """84 °C is nothing before it was 85 °C, and still hot after; 83 °C is cool again."""
    celsius = Line().stays(2, 84).stays(2, 86).stays(2, 84).stays(2, 83).stays(2, 84)
    hot = {"GpuOverheating warning": 1}
    assert_fires(gpu(agent(), celsius=celsius), {1.75: {}, 3.5: hot, 5.75: hot, 6.5: {}, 8: {}, 9.75: {}})


def test_heat_for_a_moment_is_nothing():
    assert_fires(gpu(agent(), celsius=Line().stays(2, 70).stays(1 / 6, 88).stays(8, 70)), {2.25: {}, 2.5: {}, 3: {}})


def test_the_devices_own_limit_is_critical():
    assert_fires(gpu(agent(), celsius=91), {5: {"GpuOverheating critical": 1}})


@pytest.mark.parametrize("reason", ["sw_thermal_slowdown", "hw_power_brake"])
def test_clocks_held_down_by_heat_or_brake(reason):
    """4 % of five minutes are more than 5 s; 1 % is neither 5 s nor 5 %."""
    assert_fires(gpu(agent(), **{reason: 0.01}), {9: {}})
    assert_fires(gpu(agent(), **{reason: 0.04}), {9: {"GpuThermalThrottling warning": 1}})
    assert_fires(gpu(agent(), **{reason: 0.3}), {9: {"GpuThermalThrottling critical": 1}})


def test_a_gpu_that_nobody_uses_is_not_throttled():
    assert_fires(gpu(agent(), utilization=0.01, sw_thermal_slowdown=0.5), {9: {}})


def test_a_power_cap_is_news_where_clocks_fall():
    """At its limit all the time; its clock as ever, or 20 % below that of the hour before."""
    capped = gpu(agent(minutes=30), sw_power_cap=0.9)
    assert_fires(capped, {9: {}, 25: {"GpuPowerCapped info": 1}})
    fell = gpu(agent(minutes=60), hertz=Line().stays(30, 1.98e9).stays(30, 1.5e9))
    for key in fell.series:
        if "throttle_time" in key and "sw_power_cap" in key:
            fell.series[key] = str(Line().stays(30).rises(0.9, 30))
        if "throttle_active" in key and "sw_power_cap" in key:
            fell.series[key] = str(Line().stays(30).stays(30, 1))
    assert_fires(fell, {29: {}, 55: {"GpuPowerCapped warning": 1}})


# -- link and memory --------------------------------------------------------------------------------------


def test_a_link_that_is_narrow_or_slow_under_load():
    assert_fires(gpu(agent(), width=8), {5: {"PcieLinkDegraded warning width": 1}})
    assert_fires(gpu(agent(), generation=3), {5: {"PcieLinkDegraded warning generation": 1}})
    assert_fires(gpu(agent(), width=8, utilization=0.4), {5: {}})


def test_memory_that_is_almost_full():
    assert_fires(gpu(agent(), memory=0.93), {5: {"GpuMemoryPressure warning": 1}})
    assert_fires(gpu(agent(), memory=0.98), {5: {"GpuMemoryPressure critical": 1}})


def test_memory_that_grows():
    """0.2 GiB a minute for an hour; not a start, not a plateau, not a saw."""
    gib = 2.0**30
    grows = Line(20 * gib).rises(0.2 * gib / 60, 60)
    assert_fires(gpu(agent(minutes=60), bytes=grows), {20: {}, 35: {}, 50: {"GpuMemoryGrowth warning": 1}})
    start = Line().stays(30, gib).rises(10 * gib / 60, 5).stays(25)
    assert_fires(gpu(agent(minutes=60), bytes=start), {minute: {} for minute in range(30, 60, 3)})
    saw = Line(20 * gib)
    for _ in range(6):
        saw.rises(0.5 * gib / 60, 10).stays(1 / 6, 20 * gib)
    assert_fires(gpu(agent(minutes=60), bytes=saw), {minute: {} for minute in range(36, 60, 3)})


# -- errors -----------------------------------------------------------------------------------------------


@ways
def test_a_gpu_that_failed(is_scraped):
    """It is lost: its readings end, and its status says so."""
    node = gpu(
        agent(is_scraped=is_scraped),
        failed_state=Line().stays(5, 0).stays(5, 1),
        utilization=Line().stays(5, 0.9).ends(),
    )
    assert_fires(node, {4.75: {}, 5.5: {"GpuError critical failed": 1}, 9: {"GpuError critical failed": 1}})


def test_a_gpu_that_took_its_training_along():
    """Nobody else reports it: for an hour it is not taken for well."""
    run = gpu(training(minutes=6), failed_state=Line().stays(5, 0).stays(1, 1))
    failed = {"GpuError critical failed": 1}
    assert_fires(run, {4.5: {}, 5.5: failed, 30: failed, 60: failed, 80: {}})


def test_rows_that_wait_for_a_reset():
    assert_fires(gpu(agent(), pending=1), {5: {"GpuError critical remapping": 1}})
    assert_fires(gpu(agent(), failed=1), {5: {"GpuError critical remapping": 1}})


def test_uncorrected_errors_are_news_when_they_are_new():
    """An old count is nobody's news, at whatever value its series begins; a rise is, for an hour."""
    error = {"GpuError critical uncorrected": 1}
    assert_fires(gpu(agent(), uncorrected=7), {1: {}, 9: {}})
    rise = Line().stays(5, 7).stays(115, 8)
    assert_fires(gpu(agent(minutes=120), uncorrected=rise), {4.75: {}, 5.5: error, 60: error, 67: {}})


def test_an_uncorrected_error_that_killed_its_training():
    """The process that saw 0 is gone, the next one's series begins at 1: the same GPU, one more error."""
    first = gpu(training(instance="i1", minutes=5))
    second = gpu(training(instance="i2", minutes=30, after=6), uncorrected=Line(after=6).stays(30, 1))
    assert_fires([first, second], {5: {}, 7: {"GpuError critical uncorrected": 1}})


def test_a_driver_that_was_loaded_anew_counts_from_zero():
    assert_fires(gpu(agent(), uncorrected=Line().stays(5, 3).stays(5, 0)), {5.5: {}, 9: {}})


# -- whose GPU is idle ------------------------------------------------------------------------------------

HEALTHY = {"data.wait": 0.02, "forward": 0.5, "backward": 0.48}


def test_a_training_that_leaves_its_own_gpu_idle():
    assert_fires(gpu(training(), utilization=0.3), {9: {"OverheadBound critical": 1}})
    assert_fires(gpu(training(), utilization=0.6), {9: {}})
    assert_fires(gpu(training(), utilization=0.01), {9: {}})
    waits = training(phases={"data.wait": 0.6, "forward": 0.4})
    assert_fires(gpu(waits, utilization=0.3), {9: {"DataLoadingBound critical": 1}})


@ways
def test_a_training_whose_gpu_the_agent_reports(is_scraped):
    """The only run on its node, on the GPU that is used there; with another run it cannot be told whose GPU it is."""
    node = gpu(gpu(agent(is_scraped=is_scraped), utilization=0.3), "GPU-2", "1", utilization=0.0)
    runs = [training(instance=f"i{rank}", rank=str(rank)) for rank in range(2)]
    for run in runs:
        run.gauge("gpumon_allocator_memory_usage_bytes", 2**30, gpumon_device_index="0")
    assert_fires([node, *runs], {9: {"OverheadBound critical": 2}})
    other = training("other", "i9", run="run9")
    assert_fires([node, *runs, other], {9: {}})
    without_gpu = training()
    assert_fires([node, without_gpu], {9: {}})
