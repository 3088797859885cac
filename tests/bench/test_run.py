"""A disk that was benched, and then trained from: the report holds the run against it."""

import json
import os
import subprocess
import sys

import pytest

from gpumon.analysis.render_text import render

pytestmark = [pytest.mark.disk, pytest.mark.timeout(120)]

TRAINING = """
import os, sys, time
import gpumon

folder = sys.argv[1]
names = sorted(os.listdir(folder))

def batches():
    for number in range(60):
        with open(os.path.join(folder, names[number]), "rb") as file:
            file.read()
        yield number

for batch in gpumon.steps(batches()):
    time.sleep(0.02)
"""


def gpumon(*arguments, **changes):
    return subprocess.run(
        [sys.executable, "-m", "gpumon", *map(str, arguments)],
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )


def test_the_report_says_how_much_the_disk_gave_of_what_it_can(slow_disk, fill, tmp_path):
    """Recorded by a process that knows nothing of the bench but its state folder."""
    folder = fill(slow_disk.path / "set", {f"{number:03}": 100_000 for number in range(64)})
    slow_disk.drop_caches()
    slow_disk.set_delay(0.08)
    benched = json.loads(gpumon("bench", folder, "--parallel", 1, "--json").stdout)
    script, run = tmp_path / "train.py", tmp_path / "run"
    script.write_text(TRAINING)

    gpumon("run", "--no-report", "--out", run, "--", sys.executable, script, folder, GPUMON_DATA_PATHS=str(folder))

    report = json.loads(gpumon("report", run, "--json").stdout)
    [disk] = [device for device in report["devices"] if device["id"] == slow_disk.device]
    [alone] = [
        item["bytes_per_s"]
        for item in benched["storages"][0]["patterns"]
        if (item["pattern"], item["parallel"]) == ("random", 1)
    ]
    assert disk["read_ceiling_bytes_per_s"] == pytest.approx(alone)
    assert disk["read_bytes_per_s"]["mean"] < 1.2 * alone
    assert "(gpumon bench)" in " ".join(render(report).replace("\u00a0", " ").split())
