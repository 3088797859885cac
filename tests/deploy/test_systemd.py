"""The systemd unit, by systemd's own checks."""

import os
import shutil
import subprocess

import pytest

from deploy.deployments import CAPABILITIES, UNIT, unit

EXPOSURE = 30
"""Of systemd-analyze security, times ten. What is left of it: five capabilities, real devices, /proc, the network."""


@pytest.fixture
def analyze(tmp_path):
    """Runs systemd-analyze where the agent is installed as the unit says."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs apt-get install systemd")
    if os.geteuid() != 0:
        pytest.skip("needs root: a mount namespace with another /opt")
    script = """set -eu
        mount --make-rprivate /
        mount -t tmpfs tmpfs /opt
        mkdir -p /opt/gpumon/bin && ln -s /bin/true /opt/gpumon/bin/gpumon
        exec systemd-analyze "$@"
    """

    def call(*arguments):
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    return call


def test_systemd_takes_the_unit(analyze):
    """No unknown setting, no value that does not fit, no program that is not there."""
    done = analyze("verify", UNIT)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_is_shut_as_far_as_its_work_allows(analyze):
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", UNIT)

    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_it_has_exactly_the_capabilities_that_it_needs():
    """The bounding set is the ambient one: what smartctl is started with, and no more."""
    for setting in ("AmbientCapabilities", "CapabilityBoundingSet"):
        (given,) = unit()[setting]
        assert {name.removeprefix("CAP_").lower() for name in given.split()} == CAPABILITIES


def test_disks_are_there_for_reading_alone():
    allowed = dict(rule.split() for rule in unit()["DeviceAllow"])

    assert unit()["DevicePolicy"] == ["closed"]
    assert {mode for device, mode in allowed.items() if "nvidia" not in device} == {"r"}
    assert "PrivateDevices" not in unit()
