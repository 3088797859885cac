"""Real trainings on real storage, recorded by the command that users type, judged by the report that they read."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import slowdisk

pytestmark = [pytest.mark.scenario, pytest.mark.disk, pytest.mark.timeout(180)]
TRAIN = Path(__file__).with_name("train.py")
SAMPLE_BYTES = 120_000


def write_files(folder, count):
    for number in range(count):
        (folder / f"{number:04d}.bin").write_bytes(os.urandom(SAMPLE_BYTES))


def train(out, *options, wrap=list):
    """(the report, what the loop's own clock saw) of one training under `gpumon run`."""
    gpumon = str(Path(sys.executable).with_name("gpumon"))
    command = [gpumon, "run", "--no-report", "--out", str(out), "--", sys.executable, str(TRAIN), *map(str, options)]
    done = subprocess.run(wrap(command), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    said = subprocess.run([gpumon, "report", str(out), "--json"], capture_output=True, text=True, check=True)
    report, own = json.loads(said.stdout), json.loads(done.stdout.splitlines()[-1])
    assert report["steps"]["count"] == own["steps"]
    assert report["steps"]["samples"] == own["samples"]
    assert report["steps"]["data_wait_fraction"] == pytest.approx(own["data_wait_fraction"], abs=0.05)
    return report, own


def finding(report):
    return next(item for item in report["findings"] if item["rule"] == "DataLoadingBound")


def disk(report, device):
    return next(item for item in report["devices"] if item["type"] == "disk" and item["id"] == device)


def alarms(report):
    return [item for item in report["findings"] if item["severity"] != "info"]


@pytest.mark.parametrize("workers", [2, 0])
def test_a_disk_of_87_ms_per_read_is_the_cause_by_name(slow_disk, tmp_path, workers):
    """The loop device that holds the files is slow; its await is the delay, within 20 %."""
    write_files(slow_disk.path, 240 if workers else 120)
    slow_disk.drop_caches()
    slow_disk.set_delay(0.087)

    report, _ = train(tmp_path / "run", "--data", slow_disk.path, "--workers", workers)

    cause = finding(report)
    assert (report["verdict"], cause["cause"], cause["device"]) == ("data_loading_bound", "disk_slow", slow_disk.device)
    assert disk(report, slow_disk.device)["await_s"]["mean"] == pytest.approx(0.087, rel=0.2)
    assert disk(report, slow_disk.device)["holds_dataset"]
    assert slow_disk.device in report["headline"]


def test_the_same_disk_read_through_a_memory_map(slow_disk, tmp_path):
    """Page faults have no file descriptor; the device is named all the same."""
    with open(slow_disk.path / "samples.npy", "wb") as file:
        for _sample in range(640):
            file.write(os.urandom(1 << 19))
    slow_disk.drop_caches()
    slow_disk.set_delay(0.087)

    report, _ = train(tmp_path / "run", "--data", slow_disk.path, "--kind", "mapped")

    cause = finding(report)
    assert (report["verdict"], cause["cause"], cause["device"]) == ("data_loading_bound", "disk_slow", slow_disk.device)
    assert disk(report, slow_disk.device)["await_s"]["mean"] == pytest.approx(0.087, rel=0.2)


def test_a_quick_disk_and_a_heavy_model_are_bound_by_compute(slow_disk, tmp_path):
    """The same disk without its delay: nothing to blame it for."""
    write_files(slow_disk.path, 300)
    slow_disk.drop_caches()

    report, _ = train(tmp_path / "run", "--data", slow_disk.path, "--width", 4096, "--workers", 1, "--epochs", 3)

    assert report["verdict"] == "compute_bound"
    assert alarms(report) == []


def test_a_read_quota_is_named_although_the_device_looks_idle(quick_disk, tmp_path):
    """A cgroup holds the reads back above the device: iostat shows nothing."""
    if missing := slowdisk.cgroup_unavailable("blkio", "io"):
        pytest.skip(missing)
    write_files(quick_disk.path, 240)
    quick_disk.drop_caches()
    with slowdisk.read_quota(quick_disk.device, operations_per_s=20) as group:
        report, _ = train(tmp_path / "run", "--data", quick_disk.path, wrap=group.command)

    cause = finding(report)
    assert (report["verdict"], cause["cause"], cause["device"]) == (
        "data_loading_bound",
        "disk_quota",
        quick_disk.device,
    )
    assert disk(report, quick_disk.device)["utilization"]["mean"] < 0.3


def test_a_worker_that_burns_cpu_is_loader_cpu(tmp_path):
    """Decoding takes the time, and the worker has a core of its own for it."""
    report, _ = train(tmp_path / "run", "--kind", "made", "--burn", 0.012, "--workers", 1, "--length", 1000)

    assert (report["verdict"], finding(report)["cause"]) == ("data_loading_bound", "loader_cpu")


def test_a_cpu_quota_is_cpu_limit(tmp_path):
    """The same work, held back by a quota of the cgroup."""
    if missing := slowdisk.cgroup_unavailable("cpu", "cpu"):
        pytest.skip(missing)
    with slowdisk.cpu_quota(0.5) as group:
        report, _ = train(tmp_path / "run", "--kind", "made", "--burn", 0.006, "--length", 800, wrap=group.command)

    assert (report["verdict"], finding(report)["cause"]) == ("data_loading_bound", "cpu_limit")


@pytest.mark.parametrize("hammered", [False, True], ids=["alone", "beside a hammered disk"])
def test_one_worker_that_sleeps_is_too_few_workers(tmp_path, quick_disk, hammered):
    """Whatever another process does to a disk that holds no data of this run."""
    with hammer(quick_disk) if hammered else contextlib.nullcontext():
        report, _ = train(tmp_path / "run", "--kind", "made", "--sleep", 0.015, "--workers", 1, "--length", 800)

    assert (report["verdict"], finding(report)["cause"]) == ("data_loading_bound", "too_few_workers")
    assert finding(report)["device"] is None


@contextlib.contextmanager
def hammer(other):
    """Another process that reads one disk without pause, past the page cache."""
    (other.path / "big").write_bytes(os.urandom(64 << 20))
    loop = (
        "import mmap, os, random, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n"
        "buffer = mmap.mmap(-1, 1 << 20)\n"
        "while True: os.preadv(fd, [buffer], random.randrange(63) << 20)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", loop, str(other.path / "big")])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_a_mount_with_latency_and_no_device_is_network_filesystem(slow_mount, tmp_path):
    """A FUSE file system answers late; there is no disk to name, the file system is named."""
    write_files(slow_mount.path, 480)
    slow_mount.drop_caches()
    slow_mount.set_delay(0.04)

    report, _ = train(tmp_path / "run", "--data", slow_mount.path)

    assert (report["verdict"], finding(report)["cause"]) == ("data_loading_bound", "network_filesystem")
    assert "fuse" in report["headline"]


def test_eight_workers_hide_a_slow_disk_completely(slow_disk, tmp_path):
    """The disk takes 15 ms a read and the training never notices: no alarm."""
    write_files(slow_disk.path, 1200)
    slow_disk.drop_caches()
    slow_disk.set_delay(0.015)

    report, own = train(tmp_path / "run", "--data", slow_disk.path, "--workers", 8, "--pause", 0.04, "--epochs", 1)

    assert own["data_wait_fraction"] < 0.2, "the scenario itself failed: the workers did not keep up"
    assert report["verdict"] in ("balanced", "compute_bound")
    assert alarms(report) == []


def test_a_slow_disk_whose_files_are_in_the_page_cache(slow_disk, tmp_path):
    """Nothing is read from the disk, however slow it is: no alarm."""
    write_files(slow_disk.path, 300)
    for file in slow_disk.path.glob("*.bin"):
        file.read_bytes()
    slow_disk.set_delay(0.087)

    report, _ = train(tmp_path / "run", "--data", slow_disk.path, "--width", 4096, "--epochs", 3)

    assert report["verdict"] in ("balanced", "compute_bound")
    assert alarms(report) == []
