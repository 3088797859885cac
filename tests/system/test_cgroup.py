"""Limits of control groups, of version 1, 2 and both, own and parents'."""

import os
import subprocess
import sys

import pytest

import slowdisk
from faketree import Machine
from gpumon.system.cgroup import Cgroup


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.disk("sda", "8:0", {"sda1": "8:1"})
    machine.mount("/", "8:1", "ext4", "/dev/sda1")
    return machine


def v2(machine, path="/a/b", **levels):
    """Version 2; `levels` are files by group: top, a, b."""
    machine.mount("/sys/fs/cgroup", "0:28", "cgroup2", "cgroup2")
    machine.write("proc/self/cgroup", f"0::{path}\n")
    folders = {"top": "", "a": "/a", "b": "/a/b"}
    for level, folder in folders.items():
        machine.write(f"sys/fs/cgroup{folder}/cgroup.procs", "")
        for name, text in levels.get(level, {}).items():
            machine.write(f"sys/fs/cgroup{folder}/{name}", text)
    return Cgroup(machine.root)


def v1(machine, controllers, path="/a/b", of="/"):
    lines = []
    for number, controller in enumerate(controllers):
        machine.mount(f"/sys/fs/cgroup/{controller}", f"0:{30 + number}", "cgroup", options=f"rw,{controller}", of=of)
        lines.append(f"{number + 1}:{controller}:{path}")
    machine.write("proc/self/cgroup", "\n".join(lines) + "\n")


def test_the_tightest_cpu_quota_counts_also_a_parents(machine):
    """Own group 4 CPUs, its parent 1.5: the parent's holds, with its counters and its file."""
    group = v2(
        machine,
        b={"cpu.max": "400000 100000\n", "cpu.stat": "nr_periods 9\nnr_throttled 0\nthrottled_usec 0\n"},
        a={
            "cpu.max": "150000 100000\n",
            "cpu.stat": "nr_periods 40\nnr_throttled 10\nthrottled_usec 2500000\n",
        },
        top={},
    )

    quota, throttling = group.cpu_quota(), group.throttling()

    assert (quota.value, quota.source) == (1.5, "/sys/fs/cgroup/a/cpu.max")
    assert (throttling.periods, throttling.throttled_periods, throttling.throttled_s) == (40, 10, 2.5)


def test_no_quota_is_none(machine):
    """`max` is no limit, and usable CPUs are those of the affinity."""
    group = v2(machine, b={"cpu.max": "max 100000\n", "memory.max": "max\n", "io.max": ""})

    assert group.cpu_quota() is None
    assert group.throttling() is None
    assert group.memory_limit() is None
    assert group.disk_limits() == []
    assert group.usable_cpus() == len(os.sched_getaffinity(0))


def test_usable_cpus_are_affinity_and_quota(machine):
    """A quota of half a CPU beats any affinity."""
    assert v2(machine, b={"cpu.max": "50000 100000\n"}).usable_cpus() == 0.5


def test_version_1_quota_and_memory(machine):
    """Microseconds per period; failcnt counts hits; a huge number is no limit."""
    v1(machine, ["cpu", "memory"])
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    machine.write("sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us", "60000\n")
    machine.write("sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us", "100000\n")
    machine.write("sys/fs/cgroup/cpu/a/b/cpu.stat", "nr_periods 8\nnr_throttled 4\nthrottled_time 3000000000\n")
    machine.write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n")
    machine.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000000\n")
    machine.write("sys/fs/cgroup/memory/a/memory.failcnt", "17\n")
    machine.write(
        "sys/fs/cgroup/memory/a/b/memory.stat",
        "cache 1\nworkingset_refault_file 5\ntotal_workingset_refault_file 9\n",
    )
    group = Cgroup(machine.root)

    assert group.cpu_quota().value == 0.6
    assert group.cpu_quota().source == "/sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us"
    assert group.throttling().throttled_s == 3.0
    assert (group.memory_limit().value, group.memory_limit_hits()) == (1_000_000, 17)
    assert group.memory_refaults() == 9


def test_memory_limit_hits_and_refaults_of_version_2(machine):
    """memory.high holds back as memory.max does; the lower of the two is the limit."""
    group = v2(
        machine,
        b={
            "memory.max": "2000\n",
            "memory.high": "1500\n",
            "memory.events": "low 0\nhigh 3\nmax 4\noom 0\n",
            "memory.stat": "file 1\nworkingset_refault_file 11\n",
        },
    )

    assert (group.memory_limit().value, group.memory_limit().source) == (
        1500,
        "/sys/fs/cgroup/a/b/memory.high",
    )
    assert group.memory_limit_hits() == 7
    assert group.memory_refaults() == 11


def test_disk_limits_by_device_name(machine):
    """io.max by major:minor; the tightest of own and parent's per direction and unit."""
    group = v2(
        machine,
        b={"io.max": "8:0 rbps=5000000 wbps=max riops=200 wiops=max\n"},
        a={"io.max": "8:0 rbps=9000000 wbps=max riops=100 wiops=max\n"},
    )

    found = {
        (item.device, item.direction, item.unit): (item.limit.value, item.limit.source) for item in group.disk_limits()
    }

    assert found == {
        ("sda", "read", "bytes"): (5_000_000, "/sys/fs/cgroup/a/b/io.max"),
        ("sda", "read", "operations"): (100, "/sys/fs/cgroup/a/io.max"),
    }


def test_disk_limits_of_version_1(machine):
    """One file per direction and unit."""
    v1(machine, ["blkio"])
    machine.write("sys/fs/cgroup/blkio/a/b/blkio.throttle.read_iops_device", "8:0 20\n")
    machine.write("sys/fs/cgroup/blkio/a/b/blkio.throttle.write_bps_device", "8:0 1000\n")

    found = {(item.device, item.direction, item.unit, item.limit.value) for item in Cgroup(machine.root).disk_limits()}

    assert found == {("sda", "read", "operations", 20.0), ("sda", "write", "bytes", 1000.0)}


def test_inside_a_container_the_mount_is_the_own_group(machine):
    """/proc says the host's path, the mount begins at the container's group: limits are at the mount."""
    v1(machine, ["cpu"], path="/docker/abc", of="/docker/abc")
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n")
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")

    assert Cgroup(machine.root).cpu_quota().value == 2.0


def test_both_versions_at_once(machine):
    """Controllers of version 1, pressure of version 2; the topmost group has none of its own."""
    v1(machine, ["memory"])
    machine.mount("/sys/fs/cgroup/unified", "0:38", "cgroup2")
    cgroups = (machine.root / "proc/self/cgroup").read_text()
    machine.write("proc/self/cgroup", cgroups + "0::/a\n")
    machine.write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "1000\n")
    machine.write("sys/fs/cgroup/unified/a/cgroup.events", "")

    assert Cgroup(machine.root).memory_limit().value == 1000
    assert Cgroup(machine.root).pressure_folder() == machine.root / "sys/fs/cgroup/unified/a"
    machine.write("proc/self/cgroup", cgroups + "0::/\n")
    assert Cgroup(machine.root).pressure_folder() is None


def test_without_cgroups_nothing_is_limited(tmp_path):
    """A system that has none."""
    group = Cgroup(Machine(tmp_path).root)

    assert (group.cpu_quota(), group.memory_limit(), group.memory_refaults(), group.pressure_folder()) == (None,) * 4
    assert group.disk_limits() == []


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.disk
def test_real_limits_are_read(quick_disk, child):
    """A disk, a CPU and a memory limit that the kernel enforces on a real process."""
    for names in (("blkio", "io"), ("cpu", "cpu"), ("memory", "memory")):
        if missing := slowdisk.cgroup_unavailable(*names):
            pytest.skip(missing)
    with (
        slowdisk.read_quota(quick_disk.device, operations_per_s=40, pids=[child]) as disk,
        slowdisk.cpu_quota(0.5, pids=[child]) as cpu,
        slowdisk.memory_limit(300 << 20, pids=[child]) as memory,
    ):
        group = Cgroup(pid=child)

        assert group.cpu_quota().value == 0.5
        assert group.cpu_quota().source == str(cpu.limit_file)
        assert group.usable_cpus() == 0.5
        assert group.throttling() is not None
        assert group.memory_limit().value == 300 << 20
        assert group.memory_limit().source == str(memory.limit_file)
        [limit] = group.disk_limits()
        assert (limit.device, limit.direction, limit.unit) == (quick_disk.device, "read", "operations")
        assert (limit.limit.value, limit.limit.source) == (40, str(disk.limit_file))
