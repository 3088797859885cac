"""The slow storage that other tests rely on is as slow as it says, in the kernel's own accounts."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import slowdisk

pytestmark = pytest.mark.disk


def counters(device):
    return [int(number) for number in Path(f"/sys/block/{device}/stat").read_text().split()]


def fill(folder, files, size=100_000):
    for number in range(files):
        (folder / str(number)).write_bytes(os.urandom(size))
    return [folder / str(number) for number in range(files)]


def test_a_slow_disk_serves_reads_in_parallel_with_its_delay(slow_disk):
    """Await in the kernel's counters is the delay; sixteen readers are sixteen times as fast as one."""
    files = fill(slow_disk.path, 32)
    slow_disk.drop_caches()
    slow_disk.set_delay(0.05)
    before, started = counters(slow_disk.device), time.monotonic()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(Path.read_bytes, files))

    took, after = time.monotonic() - started, counters(slow_disk.device)
    await_ms = (after[3] - before[3]) / (after[0] - before[0])
    assert 48 <= await_ms <= 75
    assert 0.1 <= took < 1.0


def test_a_read_quota_holds_its_group_back_and_nobody_else(quick_disk):
    """Twenty operations a second for the command inside; the same read outside is quick."""
    if missing := slowdisk.cgroup_unavailable("blkio", "io"):
        pytest.skip(missing)
    files = fill(quick_disk.path, 30, 8192)

    def seconds(wrap):
        quick_disk.drop_caches()
        started = time.monotonic()
        subprocess.run(wrap(["cat", *map(str, files)]), stdout=subprocess.DEVNULL, check=True)
        return time.monotonic() - started

    with slowdisk.read_quota(quick_disk.device, operations_per_s=20) as group:
        assert seconds(group.command) > 1.0
        assert seconds(list) < 0.5


def test_a_slow_mount_has_latency_and_no_block_device(slow_mount):
    """Every file takes the delay once it is read, and its file system has an anonymous device number."""
    files = fill(slow_mount.path, 5)
    slow_mount.drop_caches()
    slow_mount.set_delay(0.05)
    started = time.monotonic()
    for file in files:
        file.read_bytes()

    assert time.monotonic() - started >= 0.25
    assert os.major(os.stat(slow_mount.path).st_dev) == 0


def test_a_killed_test_process_leaves_no_device_behind(tmp_path):
    """The server undoes mount and loop device when the process that asked for them is gone."""
    script = (
        "import slowdisk, time\n"
        "with slowdisk.slow_disk(size_mb=64) as disk:\n"
        "    print(disk.device, disk.path, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    )
    device, path = process.stdout.readline().split()
    backing = Path(f"/sys/block/{device}/loop/backing_file")
    file = backing.read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()

    def gone():
        return path not in Path("/proc/mounts").read_text()

    end = time.monotonic() + 10
    while not gone() and time.monotonic() < end:
        time.sleep(0.05)
    assert gone()

    def is_bound():
        try:
            return backing.read_text() == file  # another test may have the device by now
        except OSError:
            return False

    while is_bound() and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_bound()
