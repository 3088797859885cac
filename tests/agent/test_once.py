"""`gpumon agent --once`: one round of readings of all devices, in time."""

import json
import os
import subprocess
import sys
import time

import pytest

import smart_documents
from agent_process import short_folder
from fake_smartctl import FakeSmartctl
from gpumon.agent.once import print_once
from gpumon.config import Config
from nvml import standin


@pytest.fixture
def folder():
    with short_folder() as found:
        yield found


def once(folder, **variables):
    """(readings, stderr) of one round."""
    done = subprocess.run(
        [sys.executable, "-m", "gpumon", "agent", "--once"],
        env={**os.environ, "GPUMON_STATE_DIR": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_one_round_of_everything(folder):
    """GPUs whatever CUDA_VISIBLE_DEVICES says, disks with await and utilization, SMART, and who is up."""
    smartctl = FakeSmartctl(folder)
    smartctl.answer("/dev/sda", smart_documents.hdd(), after_s=1.5)
    state = folder / "nvml.state"
    state.write_text("".join(f"{key}={value}\n" for key, value in {**standin.HEALTHY, "gpus": 3}.items()))
    readings, errors = once(
        folder,
        CUDA_VISIBLE_DEVICES="1",
        LD_LIBRARY_PATH=str(standin.built()),
        NVML_STANDIN=str(state),
        GPUMON_SMARTCTL=str(smartctl.command),
    )
    by_metric = {}
    for each in readings:
        assert set(each) == {"metric", "value", "unit", "attributes"}
        by_metric.setdefault(each["metric"], []).append(each)

    assert len({each["attributes"]["hw.id"] for each in by_metric["hw.gpu.memory.limit"]}) == 3
    assert by_metric["gpumon.disk.utilization"] and by_metric["system.cpu.utilization"]
    assert by_metric["hw.physical_disk.smart"]
    up = {each["attributes"]["gpumon.collector"]: each["value"] for each in by_metric["gpumon.collector.up"]}
    assert up.keys() >= {"gpu", "disk", "host", "pressure", "smart"} and not up.keys() & {"dataset", "process"}
    assert up["gpu"] == up["disk"] == up["smart"] == 1
    assert errors == ""


def test_one_round_waits_so_long_and_no_longer(folder, monkeypatch, capsys):
    """A disk that does not answer: the others are printed, and it is said on stderr who did not."""
    smartctl = FakeSmartctl(folder)
    smartctl.answer("/dev/sda", smart_documents.hdd())
    smartctl.hang("/dev/sdb")
    monkeypatch.setenv("GPUMON_SMARTCTL", str(smartctl.command))
    monkeypatch.setenv("GPUMON_STATE_DIR", str(folder))
    began = time.monotonic()
    print_once(Config(collectors=("smart", "disk")), limit_s=6.0)
    took = time.monotonic() - began
    out, err = capsys.readouterr()
    smartctl.kill_all()

    assert took < 12
    assert err == "gpumon: no answer within 6 s: smart\n"
    assert any(json.loads(line)["metric"] == "hw.physical_disk.smart" for line in out.splitlines())
    assert any(json.loads(line)["metric"] == "system.disk.io" for line in out.splitlines())
