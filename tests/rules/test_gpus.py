"""What is said of GPUs, and what is not: each rule over one GPU, and the verdict that it may be."""

from dataclasses import replace

import pytest

from gpumon.rules.evidence import Evidence, Gpu, Machine, Steps
from gpumon.rules.gpus import gpu_findings
from gpumon.rules.verdict import judge

GIB = 1 << 30
HEALTHY = Gpu(
    "GPU-a", index=0, model="H100", busy=0.97, busy_s=60.0, temperature_c=80.0, hottest_c=81.0, slowdown_c=89.0,
    clock_hz=1.98e9, best_clock_hz=1.98e9, power_w=640.0, power_limit_w=700.0, link_width=(16, 16),
    link_generation=(5, 5), memory_peak=0.7, memory_limit_bytes=80 * GIB,
)  # fmt: skip
HOT = replace(
    HEALTHY, temperature_c=92.0, hottest_c=93.0, hot_s=50.0, clock_hz=1.32e9,
    throttled_s={"sw_thermal_slowdown": 45.0, "hw_slowdown": 45.0},
)  # fmt: skip


def evidence(*gpus, busy=0.97, wait=0.02, steps=600):
    phases = {"data.wait": 60 * wait, "forward": 20.0, "backward": 60 * (1 - wait) - 22.0, "optimizer": 2.0}
    return Evidence(run_s=61.0, steps=Steps(steps, 60.0, phases), machine=Machine(cpus=8.0), gpus=gpus, gpu_busy=busy)


def found(gpu):
    return {finding.rule: finding for finding in gpu_findings(evidence(gpu))}


def test_a_healthy_gpu_is_no_finding():
    """97 % busy at 80 °C, at its clocks, on its whole link."""
    judgement = judge(evidence(HEALTHY))

    assert judgement.findings == []
    assert judgement.verdict == "compute_bound"


def test_heat_is_the_verdict_with_temperature_clocks_and_seconds():
    """45 of 60 s at two thirds of the clock: 15 s lost."""
    judgement = judge(evidence(HEALTHY, replace(HOT, id="GPU-b", index=1)))
    finding = next(item for item in judgement.findings if item.rule == "GpuThermalThrottling")

    assert judgement.verdict == "throttled"
    assert (finding.device, finding.severity, finding.seconds_lost) == ("GPU-b", "critical", pytest.approx(15.0))
    for words in ("GPU 1 (H100)", "75 %", "92 °C", "1320 MHz instead of 1980 MHz", "15 s"):
        assert words in judgement.headline
    assert {fact.metric for fact in finding.evidence} == {
        "gpumon.gpu.throttle.time",
        "hw.temperature",
        "gpumon.gpu.clock.frequency",
    }


@pytest.mark.parametrize(
    ("seconds", "severity"), [(2.0, None), (4.0, "warning"), (11.0, "warning"), (12.0, "critical")]
)
def test_how_long_heat_may_last(seconds, severity):
    """A moment is nothing, 5 % or 5 s a warning, 20 % critical; the verdict only then."""
    gpu = replace(HOT, throttled_s={"hw_thermal_slowdown": seconds})

    assert (found(gpu)["GpuThermalThrottling"].severity if severity else None) == severity
    assert ("GpuThermalThrottling" in found(gpu)) == (severity is not None)
    assert (judge(evidence(gpu)).verdict == "throttled") == (severity == "critical")


def test_waits_for_data_that_cost_more_stay_the_verdict():
    """Both are found; the one that explains the most lost seconds is the verdict."""
    judgement = judge(evidence(HOT, busy=0.3, wait=0.6))

    assert judgement.verdict == "data_loading_bound"
    assert {"DataLoadingBound", "GpuThermalThrottling"} <= {item.rule for item in judgement.findings}


def test_heat_without_known_clocks_says_no_seconds():
    """Not known is not 0."""
    finding = found(replace(HOT, clock_hz=None))["GpuThermalThrottling"]

    assert finding.seconds_lost is None
    assert "MHz" not in finding.summary


@pytest.mark.parametrize(("clock_hz", "severity"), [(1.9e9, "info"), (1.5e9, "warning")])
def test_a_power_cap_is_normal_until_clocks_fall(clock_hz, severity):
    """Every busy GPU is at its power limit."""
    gpu = replace(HEALTHY, throttled_s={"sw_power_cap": 50.0}, clock_hz=clock_hz)

    assert {rule: item.severity for rule, item in found(gpu).items()} == {"GpuPowerCapped": severity}


def test_the_power_brake_is_no_heat():
    """It is throttling all the same."""
    finding = found(replace(HEALTHY, throttled_s={"hw_power_brake_slowdown": 30.0}))["GpuThermalThrottling"]

    assert "power brake" in finding.summary
    assert "heat" not in finding.summary


@pytest.mark.parametrize(
    ("change", "severity"),
    [
        ({"hottest_c": 86.0, "hot_s": 5.0}, None),
        ({"hottest_c": 86.0, "hot_s": 12.0}, "warning"),
        ({"hottest_c": 90.0, "hot_s": 3.0}, "critical"),
        ({"hottest_c": None}, None),
    ],
)
def test_hot_gpus(change, severity):
    """For a while; past the device's own limit at once."""
    finding = found(replace(HEALTHY, **change)).get("GpuOverheating")

    assert (finding.severity if finding else None) == severity


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"link_width": (8, 16)}, "8 of 16 lanes"),
        ({"link_generation": (3, 5)}, "generation 3 of 5"),
        ({"link_width": None, "link_generation": None}, None),
    ],
)
def test_links(change, words):
    """As seen under load; a link that was never loaded is not judged."""
    finding = found(replace(HEALTHY, **change)).get("PcieLinkDegraded")

    assert (words in finding.summary) if words else finding is None


@pytest.mark.parametrize(("peak", "severity"), [(0.91, None), (0.93, "warning"), (0.98, "critical")])
def test_full_memory(peak, severity):
    finding = found(replace(HEALTHY, memory_peak=peak)).get("GpuMemoryPressure")

    assert (finding.severity if finding else None) == severity


def test_growing_memory_says_when_it_is_full():
    """24 GiB are left, 8 GiB were taken in 400 steps."""
    finding = found(replace(HEALTHY, memory_grew=(8.0 * GIB, 400.0)))["GpuMemoryGrowth"]

    assert "8.0 GiB over 400 steps" in finding.summary
    assert "1200 more steps" in finding.summary


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"xids": (79, 13)}, "XID 79"),
        ({"uncorrected_errors": 2.0}, "2 uncorrected"),
        ({"remap": ("pending",)}, "row remapping pending"),
        ({"is_failed": True}, "lost"),
        ({"xids": (13,)}, None),
    ],
)
def test_errors_are_critical_whatever_the_steps_say(change, words):
    """Also in a run too short to be judged; an XID that a program causes itself is none."""
    judgement = judge(evidence(replace(HEALTHY, **change), steps=3))

    assert judgement.verdict == "insufficient_data"
    assert [(item.rule, item.severity) for item in judgement.findings] == [("GpuError", "critical")] * bool(words)
    assert not words or words in judgement.findings[0].summary


def test_a_gpu_that_waits_for_data_stands_in_the_evidence():
    """Hardly busy, loaders at it, memory steady: nvidia-smi's joint sign."""
    judgement = judge(evidence(replace(HEALTHY, busy=0.19), busy=0.19, wait=0.7))
    facts = {(fact.metric, fact.value) for fact in judgement.findings[0].evidence}

    assert ("hw.gpu.utilization", 0.19) in facts
    assert ("hw.gpu.memory.usage", "steady") in facts
