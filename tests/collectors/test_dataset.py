"""The dataset collector: where data is read from, named by the user or seen in use."""

import mmap
import os
import subprocess
import sys

import pytest

from gpumon import metrics as m
from gpumon.collectors.dataset import DatasetCollector
from gpumon.config import Config
from gpumon.system.datasets import Datasets
from gpumon.system.processes import WORKERS
from readings import Readings


@pytest.fixture
def datasets():
    return Datasets()


def looks(source, number):
    for _look in range(number):
        found = Readings(source.collect())
    return {reading.attributes[m.DATA_PATH]: reading.attributes for reading in found.of(m.DATASET_INFO)}


def test_named_paths_are_places_and_nobody_guesses(datasets, tmp_path):
    """`data_paths` is reported as it was named; files in use add nothing then."""
    (tmp_path / "other.bin").write_bytes(bytes(5000))
    (tmp_path / "set").mkdir()
    source = DatasetCollector(Config(data_paths=(str(tmp_path / "set"), "/dev/shm/cache")), datasets=datasets)
    with (tmp_path / "other.bin").open("rb"):
        places = looks(source, 4)

    assert set(places) == {str(tmp_path / "set"), "/dev/shm/cache"}
    assert places["/dev/shm/cache"][m.STORAGE_KIND] == "memory"
    assert m.SYSTEM_DEVICE not in places["/dev/shm/cache"]


@pytest.mark.disk
def test_a_place_tells_its_device(datasets, quick_disk):
    """Kind, device, mount point and file system of a real disk."""
    places = looks(DatasetCollector(Config(data_paths=(str(quick_disk.path),)), datasets=datasets), 1)

    assert dict(places[str(quick_disk.path)]) == {
        m.DATA_PATH: str(quick_disk.path),
        m.STORAGE_KIND: "block",
        m.SYSTEM_DEVICE: quick_disk.device,
        m.SYSTEM_FILESYSTEM_MOUNTPOINT: str(quick_disk.path),
        m.SYSTEM_FILESYSTEM_TYPE: "ext4",
    }


@pytest.mark.disk
def test_a_file_that_the_trainer_holds_open_is_data(datasets, quick_disk):
    """An HDF5 or Arrow file: open at two looks. One that is only open at one of them is not."""
    (quick_disk.path / "set.h5").write_bytes(bytes(5000))
    (quick_disk.path / "once.json").write_bytes(bytes(5000))
    source = DatasetCollector(datasets=datasets)
    with (quick_disk.path / "once.json").open("rb"):
        assert quick_disk.device not in str(looks(source, 1))
    with (quick_disk.path / "set.h5").open("rb"):
        places = looks(source, 2)

    assert places[str(quick_disk.path)][m.SYSTEM_DEVICE] == quick_disk.device


@pytest.mark.disk
def test_a_file_that_a_worker_reads_is_data(datasets, quick_disk):
    """One look is enough at a worker's files; what it writes is none."""
    (quick_disk.path / "in").mkdir()
    (quick_disk.path / "out").mkdir()
    (quick_disk.path / "in/set.tar").write_bytes(bytes(5000))
    code = "import sys; a = open(sys.argv[1], 'rb'); b = open(sys.argv[2], 'wb'); print(1, flush=True); input()"
    arguments = [str(quick_disk.path / "in/set.tar"), str(quick_disk.path / "out/log.bin")]
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        WORKERS[child.pid] = 0
        places = looks(DatasetCollector(datasets=datasets), 1)
    finally:
        WORKERS.pop(child.pid, None)
        child.kill()
        child.communicate()

    assert list(places) == [str(quick_disk.path / "in")]


@pytest.mark.disk
def test_a_large_mapped_file_is_data(datasets, quick_disk):
    """A memory map whose file was closed long ago; a small one, or one that is written to, is none."""
    for name, size in (("set.bin", 2 << 20), ("small.bin", 8192), ("written.bin", 2 << 20)):
        (quick_disk.path / name).write_bytes(bytes(size))
    maps = []
    for name in ("small.bin", "written.bin"):
        with (quick_disk.path / name).open("r+b") as file:
            maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if "w" in name else mmap.ACCESS_READ))
    source = DatasetCollector(datasets=datasets)
    places = looks(source, 4)
    assert not [place for place in places if place.startswith(str(quick_disk.path))]

    with (quick_disk.path / "set.bin").open("rb") as file:
        maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    source = DatasetCollector(datasets=datasets)
    places = looks(source, 4)
    for mapped in maps:
        mapped.close()

    assert places[str(quick_disk.path)][m.SYSTEM_DEVICE] == quick_disk.device


def test_an_ordinary_process_has_no_data_set(datasets):
    """Python, numpy and torch: their libraries and files are not taken for data."""
    code = (
        "import sys, numpy, torch\n"
        "from gpumon.collectors.dataset import DatasetCollector\n"
        "source = DatasetCollector()\n"
        "print([r.attributes for _ in range(8) for r in source.collect()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True
    )

    assert done.stdout.strip() == "[]"


def test_the_own_output_is_no_data(datasets, tmp_path):
    """Files of the run directory."""
    (tmp_path / "run").mkdir()
    file = tmp_path / "run/metrics.bin"
    file.write_bytes(bytes(5000))
    source = DatasetCollector(Config(run_dir=tmp_path / "run"), datasets=datasets)
    with file.open("rb"):
        places = looks(source, 3)

    assert str(tmp_path / "run") not in places
    assert os.getpid() not in WORKERS


def test_a_named_path_that_is_not_there_is_told_and_left_out(datasets, tmp_path, caplog):
    """Once; the disk of the root directory is not the data's, and files in use are looked at as if none was named."""
    (tmp_path / "real.bin").write_bytes(bytes(5000))
    source = DatasetCollector(Config(data_paths=(str(tmp_path / "imagnet"),)), datasets=datasets)
    datasets.add_path(tmp_path / "imagnet")
    with (tmp_path / "real.bin").open("rb"):
        places = looks(source, 4)

    assert str(tmp_path / "imagnet") not in places and not datasets.named
    assert any(tmp_path.is_relative_to(place) for place in places)
    assert [record.getMessage() for record in caplog.records] == [
        f"gpumon: there is no {tmp_path}/imagnet, named as the data's path: it is left out"
    ]
