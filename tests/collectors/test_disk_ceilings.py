"""What `gpumon bench` measured goes along with a run's readings of the same disk."""

import os

import pytest

import slowdisk
from faketree import Machine
from gpumon import metrics as m
from gpumon.bench import bench
from gpumon.collectors.disk import DiskCollector
from gpumon.system.ceilings import Ceiling, Ceilings
from gpumon.system.datasets import Datasets
from gpumon.system.storage import StorageMap
from readings import Readings

COUNTERS = (1000, 10, 8000, 5000, 200, 3, 1600, 900, 0, 6000, 5900)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUMON_STATE_DIR", str(tmp_path / "state"))
    machine = Machine(tmp_path / "machine")
    machine.write("proc/sys/kernel/random/boot_id", "boot\n")
    machine.disk("sda", "8:0", device_wwid="naa.1")
    machine.disk("sdb", "8:16", device_wwid="naa.2")
    machine.mount("/", "8:0", "ext4", "/dev/sda")
    machine.diskstats(sda=COUNTERS, sdb=COUNTERS)
    return machine


def collect(machine):
    return Readings(
        DiskCollector(root=machine.root, datasets=Datasets(StorageMap(machine.root), exists=lambda _: True)).collect()
    )


def test_the_ceilings_of_a_disk_are_readings_of_it(machine):
    """One series per pattern and number of readers; of the disk that was measured, of no other."""
    given = [Ceiling("sequential", 8, 9e8, 900.0), Ceiling("random", 8, 48e6, 480.0)]
    Ceilings(machine.root).keep("sda", given, measured="2026-11-24T14:00:00.000Z", path="/data")

    found = collect(machine)

    assert [(reading.value, dict(reading.attributes)) for reading in found.of(m.DISK_CEILING_IO)] == [
        (9e8, {m.SYSTEM_DEVICE: "sda", m.BENCH_PATTERN: "sequential", m.BENCH_PARALLEL: 8}),
        (48e6, {m.SYSTEM_DEVICE: "sda", m.BENCH_PATTERN: "random", m.BENCH_PARALLEL: 8}),
    ]
    assert [reading.value for reading in found.of(m.DISK_CEILING_OPERATIONS)] == [900.0, 480.0]


def test_without_a_bench_there_is_no_ceiling(machine):
    """Absent, not 0."""
    assert not collect(machine).of(m.DISK_CEILING_IO)


@pytest.mark.disk
def test_what_was_benched_shows_in_the_next_run_on_that_disk(tmp_path, monkeypatch):
    """A real disk: its figures, read by the collector of a later process; the next disk of that name has none."""
    monkeypatch.setenv("GPUMON_STATE_DIR", str(tmp_path / "state"))
    with slowdisk.slow_disk(0.005, size_mb=64) as disk:
        for number in range(16):
            (disk.path / str(number)).write_bytes(os.urandom(200_000))
        [storage] = bench(disk.path, parallel=4, seconds=0.2).storages
        name, found = disk.device, on(disk)

    given = {(item.name, item.parallel): item.figures.bytes_per_s for item in storage.patterns}
    kept = {
        (reading.attributes[m.BENCH_PATTERN], reading.attributes[m.BENCH_PARALLEL]): reading.value
        for reading in found.of(m.DISK_CEILING_IO)
    }
    assert kept == given
    with slowdisk.slow_disk(size_mb=64) as disk:
        assert disk.device != name or not on(disk).of(m.DISK_CEILING_IO)


def on(disk):
    datasets = Datasets()
    datasets.add_path(disk.path)
    return Readings(DiskCollector(datasets=datasets).collect())
