"""Pressure stall information, of the machine and of the own cgroup."""

import pytest

from faketree import Machine
from gpumon import metrics as m
from gpumon.collectors.pressure import PressureCollector
from gpumon.errors import NoDataError
from readings import Readings

IO = """some avg10=12.50 avg60=1.00 avg300=0.00 total=2500000
full avg10=3.00 avg60=0.00 avg300=0.00 total=1000000
"""


def test_stall_times_and_shares_by_scope(tmp_path):
    """µs and percent in base units; the cgroup's own beside the system's."""
    machine = Machine(tmp_path)
    machine.mount("/sys/fs/cgroup", "0:28", "cgroup2")
    machine.write("proc/self/cgroup", "0::/job\n")
    machine.write("proc/pressure/io", IO)
    machine.write("sys/fs/cgroup/job/cgroup.events", "")
    machine.write("sys/fs/cgroup/job/io.pressure", IO.replace("12.50", "50.00"))

    found = Readings(PressureCollector(root=tmp_path).collect())

    assert found.value(m.PRESSURE_STALL_TIME, "io", "some", "system") == 2.5
    assert found.value(m.PRESSURE_STALL_TIME, "io", "full", "system") == 1.0
    assert found.value(m.PRESSURE_STALL_RATIO, "io", "some", "system") == 0.125
    assert found.value(m.PRESSURE_STALL_RATIO, "io", "some", "cgroup") == 0.5


def test_a_kernel_without_pressure_says_so(tmp_path):
    """Switched off, or compiled without."""
    with pytest.raises(NoDataError, match="psi=1"):
        Readings(PressureCollector(root=Machine(tmp_path).root).collect())
