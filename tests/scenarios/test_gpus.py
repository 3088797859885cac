"""A training beside GPUs that fare badly: the real nvidia-ml-py on a stand-in for the driver, through `gpumon run`."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nvml.standin import GIB, HEALTHY, environment

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]
TRAIN = Path(__file__).with_name("train.py")
SW_THERMAL_NS = "field.269"


def train(tmp_path, state, seconds=9.0):
    """The report of a training that never waits for data, while *state* (seconds since the start) is the GPUs'."""
    file, out = tmp_path / "nvml.state", tmp_path / "run"
    ended = threading.Event()

    def drive():
        began = time.monotonic()
        while not ended.wait(0.2):
            given = {**HEALTHY, **state(time.monotonic() - began)}
            partial = file.with_suffix(".new")
            partial.write_text("".join(f"{key}={value}\n" for key, value in given.items()))
            partial.replace(file)

    file.write_text("gpus=1\n")
    driver = threading.Thread(target=drive)
    driver.start()
    gpumon = str(Path(sys.executable).with_name("gpumon"))
    steps = ["--kind", "made", "--workers", "1", "--length", str(int(seconds / 0.02) * 4), "--pause", "0.02"]
    try:
        subprocess.run(
            [gpumon, "run", "--no-report", "--out", str(out), "--", sys.executable, str(TRAIN), *steps],
            env=environment(file), check=True, capture_output=True, timeout=100,
        )  # fmt: skip
    finally:
        ended.set()
        driver.join()
    done = subprocess.run([gpumon, "report", str(out), "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def findings(report):
    return {item["rule"]: item for item in report["findings"]}


def test_heat_from_the_fourth_second_on(tmp_path):
    """92 °C and thermal slowdown: the verdict, with temperature, clocks and the seconds that they cost."""

    def state(at):
        hot = max(0.0, at - 4)
        heat = {"celsius": 92, "sm_mhz": 1320, "reasons": 0x20, SW_THERMAL_NS: int(hot * 1e9)} if hot else {}
        return {"gpu": 97, SW_THERMAL_NS: 0, **heat}

    report = train(tmp_path, state)
    finding = findings(report)["GpuThermalThrottling"]

    assert report["verdict"] == "throttled"
    assert finding["seconds_lost"] == pytest.approx((report["run"]["duration_s"] - 4) / 3, abs=1.2)
    for words in ("92 °C", "1320 MHz instead of 1980 MHz"):
        assert words in report["headline"]


def test_a_busy_gpu_of_80_degrees_is_no_finding(tmp_path):
    """And a narrow link of an idle one neither; its GPU is not used."""
    report = train(tmp_path, lambda at: {"gpus": 2, "gpu": 97, "celsius": 80, "1.idle": 1, "1.width": 8})

    assert report["findings"] == []
    assert report["verdict"] == "compute_bound"
    assert [item["index"] for item in report["devices"] if item["type"] == "gpu"] == [0, 1]


def test_a_narrow_link_under_load_a_full_memory_and_a_fatal_xid(tmp_path):
    """Each of them is found, on the GPU that has it."""
    report = train(
        tmp_path,
        lambda at: {
            "gpus": 2, "gpu": 97, "0.width": 8, "1.used": 79 * GIB, **({"xid.1": "1:79"} if at > 5 else {}),
        },
    )  # fmt: skip
    found = findings(report)
    ids = {item["index"]: item["id"] for item in report["devices"] if item["type"] == "gpu"}

    assert found["PcieLinkDegraded"]["device"] == ids[0]
    assert found["GpuMemoryPressure"]["device"] == ids[1]
    assert found["GpuError"]["device"] == ids[1]
    assert "XID 79" in found["GpuError"]["summary"]
