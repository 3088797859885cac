"""Given a recorded run, what the report says of its GPUs."""

import json
from dataclasses import replace

import pytest

from gpumon.analysis.report import build_report
from recorded import START_S, Disk, Gpu, Recorder, Training, record, resource, write_run

COMPUTE = {"data.wait": 0.01, "forward": 0.3, "backward": 0.6, "optimizer": 0.09}
HEALTHY = Gpu()
HOT = replace(HEALTHY, celsius=92.0, clock_hz=1.32e9, throttled={"sw_thermal_slowdown": 1.0})
GIB = 2**30


def report_of(directory, windows, **training):
    """Of a run with the GPUs of each window in turn."""
    recorder = Recorder(directory)
    for gpus in windows:
        recorder.window(Training(phases=COMPUTE, disks=[], gpus=gpus, **training))
    write_run(directory, ended_s=recorder.at_s)
    return build_report(directory)


def findings(report):
    return {(item.rule, item.device, item.severity) for item in report.findings}


def test_a_healthy_gpu(tmp_path):
    """97 % busy at 80 °C: compute bound, nothing to report, and its readings among the devices."""
    report = report_of(tmp_path, [[HEALTHY]] * 20)
    gpu = next(item for item in report.devices if item["type"] == "gpu")

    assert (report.verdict, report.findings) == ("compute_bound", [])
    assert gpu["index"] == 0
    assert gpu["model"] == "NVIDIA H100"
    assert gpu["utilization"]["mean"] == pytest.approx(0.97)
    assert gpu["temperature_celsius"] == pytest.approx({"mean": 80.0, "peak": 80.0})
    assert "gpu 0" in str(report)
    assert "80 °C" in str(report)


def test_heat(tmp_path):
    """92 °C and a slow clock from the sixth second on: throttled, with temperature, clocks, seconds lost."""
    report = report_of(tmp_path, [[HEALTHY]] * 6 + [[HOT]] * 18)
    finding = next(item for item in report.findings if item.rule == "GpuThermalThrottling")

    assert report.verdict == "throttled"
    # The first window's counters begin: 17 or 18 s at two thirds of the clock.
    assert finding.seconds_lost == pytest.approx(18 / 3, abs=0.5)
    for words in ("GPU 0 (NVIDIA H100)", "92 °C", "1320 MHz instead of 1980 MHz"):
        assert words in report.headline
    assert ("GpuOverheating", "GPU-0", "critical") in findings(report)
    assert "GpuThermalThrottling" in str(report)


def test_heat_from_the_start(tmp_path):
    """Its own clock was never seen: the seconds lost are not known, rather than 0."""
    report = report_of(tmp_path, [[HOT]] * 20)
    finding = next(item for item in report.findings if item.rule == "GpuThermalThrottling")

    assert (report.verdict, finding.seconds_lost) == ("throttled", None)
    assert "MHz" not in report.headline


def test_heat_of_an_idle_gpu_beside_is_no_verdict(tmp_path):
    """A GPU that this training does not use may do as it likes, but for its temperature."""
    beside = replace(HOT, name="GPU-1", index=1, busy=0.0)
    report = report_of(tmp_path, [[HEALTHY, beside]] * 20)

    assert report.verdict == "compute_bound"
    assert {rule for rule, _, _ in findings(report)} == {"GpuOverheating"}


@pytest.mark.parametrize(("busy", "found"), [(0.9, True), (0.1, False)])
def test_a_narrow_link(tmp_path, busy, found):
    """Links train down while idle; under load it is a fault."""
    report = report_of(tmp_path, [[replace(HEALTHY, width=8, generation=1 if busy < 0.5 else 5, busy=busy)]] * 20)

    assert (("PcieLinkDegraded", "GPU-0", "warning") in findings(report)) == found


@pytest.mark.parametrize(
    ("memory", "found"),
    [
        (lambda second: 20 * GIB + second * GIB / 4, True),  # rises without a pause
        (lambda second: min(20 + 4 * second, 40) * GIB, False),  # warm-up
        (lambda second: (20 if second < 30 else 40) * GIB, False),  # one step up, for validation say
        (lambda second: (20 + second % 2 * 10) * GIB, False),  # to and fro
        (lambda second: 20 * GIB + second * GIB / 100, False),  # too little
    ],
    ids=["leak", "warm-up", "one step", "to and fro", "little"],
)
def test_memory_that_grows(tmp_path, memory, found):
    report = report_of(tmp_path, [[replace(HEALTHY, memory_bytes=memory(second))] for second in range(60)])

    assert (("GpuMemoryGrowth", "GPU-0", "warning") in findings(report)) == found


def test_a_gpu_that_is_lost(tmp_path):
    """Its readings end, its status is failed."""
    lost = {"name": "GPU-1", "index": 1}
    report = report_of(
        tmp_path, [[HEALTHY, replace(HEALTHY, **lost)]] * 10 + [[HEALTHY, replace(HEALTHY, **lost, state="failed")]] * 5
    )

    assert findings(report) == {("GpuError", "GPU-1", "critical")}
    assert report.verdict == "compute_bound"


def test_an_xid(tmp_path):
    """Events carry it; one of the fatal ones is an error, one that a program makes itself is not."""
    directory = record(tmp_path, Training(phases=COMPUTE, disks=[], gpus=[HEALTHY]), seconds=10)
    events = [
        {
            "timeUnixNano": str(round((START_S + 5) * 1e9)),
            "eventName": "gpumon.gpu.xid",
            "body": {"stringValue": "fallen off the bus"},
            "attributes": [
                {"key": "hw.id", "value": {"stringValue": "GPU-0"}},
                {"key": "gpumon.gpu.xid", "value": {"intValue": str(xid)}},
            ],
        }
        for xid in (13, 79)
    ]
    line = {"resourceLogs": [{"resource": resource(), "scopeLogs": [{"scope": {}, "logRecords": events}]}]}
    (directory / "logs.0.4711.jsonl").write_text(json.dumps(line) + "\n")
    report = build_report(directory)

    assert findings(report) == {("GpuError", "GPU-0", "critical")}
    assert "XID 79 (GPU has fallen off the bus)." in report.findings[0].summary


def test_a_gpu_that_waits_for_a_disk(tmp_path):
    """The classic case: the cause is the disk, and the GPU's idleness is in the evidence."""
    report = build_report(
        record(tmp_path, Training(disks=[Disk(unloaded_s=0.078)], gpus=[replace(HEALTHY, busy=0.19)]))
    )
    finding = report.findings[0]

    assert (report.verdict, finding.cause) == ("data_loading_bound", "disk_slow")
    assert {fact.metric for fact in finding.evidence} >= {
        "hw.gpu.utilization",
        "gpumon.disk.await",
        "hw.gpu.memory.usage",
    }


def test_overhead(tmp_path):
    """The GPU is hardly busy, and nothing is waited for: Python, logging, tiny kernels."""
    report = report_of(tmp_path, [[replace(HEALTHY, busy=0.3)]] * 20)

    assert report.verdict == "overhead_bound"
    assert "30 %" in report.headline
