"""The host collector: CPU, memory, network and the limits of the process."""

import os
import time

import psutil
import pytest

from faketree import Machine
from gpumon import metrics as m
from gpumon.collectors.host import HostCollector
from gpumon.errors import NoDataError
from readings import Readings, over


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.write("proc/stat", "cpu  0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\nintr 1\n")
    return machine


def collect(source):
    return Readings(source.collect())


def test_utilization_by_mode_and_the_busiest_core(machine):
    """One of two cores is busy: half of all, all of the busiest."""
    source = HostCollector(root=machine.root)
    before = collect(source)
    machine.write("proc/stat", "cpu  60 0 20 90 10 5 5 10\ncpu0 60 0 20 0 0 5 5 10\ncpu1 0 0 0 90 10 0 0 0\nintr 1\n")
    after = collect(source)

    shares = {mode: over(before, after, m.CPU_UTILIZATION, mode) for mode in ("user", "interrupt", "idle", "steal")}
    assert shares == {"user": 0.3, "interrupt": 0.05, "idle": 0.45, "steal": 0.05}
    assert after.value(m.CPU_BUSIEST) == 1.0


def test_idle_time_that_goes_back_makes_no_negative_share(machine):
    """The kernel's iowait is known to shrink."""
    source = HostCollector(root=machine.root)
    machine.write("proc/stat", "cpu  10 0 0 100 50 0 0 0\ncpu0 10 0 0 100 50 0 0 0\n")
    before = collect(source)
    machine.write("proc/stat", "cpu  20 0 0 100 40 0 0 0\ncpu0 20 0 0 100 40 0 0 0\n")
    after = collect(source)

    assert over(before, after, m.CPU_UTILIZATION, "iowait") == 0
    assert over(before, after, m.CPU_UTILIZATION, "user") == 1.0


def test_memory_states_add_up(machine):
    """kB of /proc/meminfo in bytes; used is what is left."""
    machine.write(
        "proc/meminfo",
        "MemTotal: 1000 kB\nMemFree: 200 kB\nMemAvailable: 600 kB\n"
        "Buffers: 50 kB\nCached: 300 kB\nSReclaimable: 50 kB\n",
    )

    found = collect(HostCollector(root=machine.root))

    states = {reading.attributes[m.SYSTEM_MEMORY_STATE]: reading.value for reading in found.of(m.MEMORY_USAGE)}
    assert states == {"free": 200 << 10, "buffers": 50 << 10, "cached": 350 << 10, "used": 400 << 10}
    assert found.value(m.MEMORY_AVAILABLE) == 600 << 10


def test_network_without_loopback_and_bridges(machine):
    """Bytes of real interfaces."""
    machine.write(
        "proc/net/dev",
        "Inter-|\n face |\n"
        "    lo: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n"
        "  eth0: 700 1 0 0 0 0 0 0 80 1 0 0 0 0 0 0\n"
        "docker0: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n",
    )

    found = collect(HostCollector(root=machine.root))

    assert {reading.attributes[m.NETWORK_INTERFACE_NAME] for reading in found.of(m.NETWORK_IO)} == {"eth0"}
    assert found.value(m.NETWORK_IO, "receive") == 700
    assert found.value(m.NETWORK_IO, "transmit") == 80


def test_quota_throttling_and_memory_limit(machine):
    """What the cgroup allows and which file says so; counters go on when another group is the tightest."""
    machine.mount("/sys/fs/cgroup", "0:28", "cgroup2")
    machine.write("proc/self/cgroup", "0::/job\n")
    top, own = "sys/fs/cgroup", "sys/fs/cgroup/job"
    machine.write(f"{own}/cpu.max", "60000 100000\n")
    machine.write(f"{own}/cpu.stat", "nr_periods 100\nnr_throttled 40\nthrottled_usec 2000000\n")
    machine.write(f"{own}/memory.max", "1000000\n")
    machine.write(f"{own}/memory.events", "max 3\n")
    machine.write(f"{own}/memory.stat", "workingset_refault_file 8\n")
    source = HostCollector(root=machine.root)
    found = collect(source)

    assert (found.value(m.CPU_QUOTA), found.value(m.CPU_USABLE)) == (0.6, 0.6)
    assert found.one(m.CPU_QUOTA).attributes[m.LIMIT_SOURCE] == "/sys/fs/cgroup/job/cpu.max"
    assert found.value(m.CPU_PERIODS) == 100
    assert found.value(m.CPU_THROTTLED_PERIODS) == 40
    assert found.value(m.CPU_THROTTLED_TIME) == 2.0
    assert (found.value(m.MEMORY_LIMIT), found.value(m.MEMORY_LIMIT_HITS)) == (1_000_000, 3)
    assert found.value(m.MEMORY_REFAULTS) == 8

    machine.write(f"{top}/cpu.max", "20000 100000\n")
    machine.write(f"{top}/cpu.stat", "nr_periods 5\nnr_throttled 5\nthrottled_usec 1\n")
    assert collect(source).value(m.CPU_PERIODS) == 100
    machine.write(f"{top}/cpu.stat", "nr_periods 8\nnr_throttled 8\nthrottled_usec 1\n")
    assert collect(source).value(m.CPU_PERIODS) == 103


def test_without_limits_none_is_reported(machine):
    """Absent, not zero: a cgroup without quota and limit."""
    found = collect(HostCollector(root=machine.root))

    assert not [m for m in (m.CPU_QUOTA, m.CPU_THROTTLED_TIME, m.MEMORY_LIMIT, m.MEMORY_REFAULTS) if found.of(m)]
    assert found.value(m.CPU_USABLE) == len(os.sched_getaffinity(0))


def test_other_systems_say_why_they_say_nothing(tmp_path):
    """No /proc."""
    with pytest.raises(NoDataError, match="/proc/stat"):
        collect(HostCollector(root=tmp_path))


def test_this_machine_as_psutil_sees_it():
    """Shares add up to one, memory agrees."""
    source = HostCollector()
    before = collect(source)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    after = collect(source)

    modes = {reading.attributes[m.CPU_MODE] for reading in after.of(m.CPU_UTILIZATION)}
    assert sum(over(before, after, m.CPU_UTILIZATION, mode) for mode in modes) == pytest.approx(1.0)
    assert after.value(m.CPU_BUSIEST) > 0.5
    assert sum(reading.value for reading in after.of(m.MEMORY_USAGE)) == psutil.virtual_memory().total
    assert after.value(m.MEMORY_AVAILABLE) == pytest.approx(psutil.virtual_memory().available, rel=0.1)
