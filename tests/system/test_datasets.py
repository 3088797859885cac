"""Which files and folders a data set reads, and how its disk does at rest."""

import mmap
import os
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch.utils.data as data

from faketree import Machine
from gpumon.system.data_paths import is_data
from gpumon.system.datasets import Datasets, paths_of
from gpumon.system.probe import probe
from gpumon.system.storage import Storage, StorageMap


class Folder(data.Dataset):
    """Like torchvision's ImageFolder: a root and (file, class) pairs."""

    def __init__(self, root, files):
        self.root = str(root)
        self.samples = [(str(file), number) for number, file in enumerate(files)]
        self.mean, self.mode, self.transform = [0.4, 0.5], "train", len

    def __len__(self):
        return len(self.samples)


@pytest.fixture
def files(tmp_path):
    found = []
    for number in range(20):
        file = tmp_path / "set" / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(os.urandom(9000))
        found.append(file)
    return found


def test_a_folder_stands_for_its_files(files):
    """The root is found, and its files not once more."""
    assert paths_of(Folder(files[0].parent, files)) == [str(files[0].parent)]


def test_files_alone_are_found(files):
    """Lists of paths, also as bytes, `Path` or an array of strings; a sample of a long list is enough."""

    class Files:
        __slots__ = ("index",)

        def __init__(self, index):
            self.index = index

    for kind in (list, tuple, lambda paths: {"train": list(paths)}, np.array):
        assert str(files[0]) in paths_of(Files(kind([str(file) for file in files])))
    assert str(files[3]) in paths_of(Files([os.fsencode(file) for file in files[:5]]))
    assert str(files[3]) in paths_of(Files(namedtuple("Pair", "left right")(files[3], 1)))


def test_a_folder_named_in_the_class_is_found(files):
    """`root = ...` in the body of a class; an instance's own goes before it."""

    class Images:
        root = str(files[0].parent)

    assert paths_of(Images()) == [str(files[0].parent)]

    other = Images()
    other.root = str(files[0])
    assert paths_of(other) == [str(files[0])]


def test_wrapped_data_sets_are_looked_into(files, tmp_path):
    """Subset, ConcatDataset and what users nest."""
    other = tmp_path / "other"
    other.mkdir()
    wrapped = data.ConcatDataset([data.Subset(Folder(files[0].parent, files), [1, 2]), Folder(other, [])])

    assert set(paths_of({"train": [wrapped]})) == {str(files[0].parent), str(other)}


def test_memory_maps_name_their_file(tmp_path):
    """numpy keeps the file's name, also behind a view of the array."""
    np.save(tmp_path / "x.npy", np.arange(1000))

    class Mapped:
        def __init__(self):
            self.array = np.load(tmp_path / "x.npy", mmap_mode="r")[10:].reshape(-1, 2)

    assert paths_of(Mapped()) == [str(tmp_path / "x.npy")]


def test_words_are_no_paths(tmp_path, monkeypatch):
    """`split="train"` is no folder, not even where there is one; code of the system is no data."""
    (tmp_path / "train").mkdir()
    monkeypatch.chdir(tmp_path)

    class Words:
        def __init__(self):
            self.split, self.text, self.shell = "train", "a\nb", "/bin/sh"
            self.package, self.here = np.__file__, str(tmp_path)

    assert paths_of(Words()) == []


def test_a_data_set_that_resists_is_left_alone(files):
    """Properties and methods of the data set are never called; cycles and huge lists end."""

    class Resists:
        def __init__(self):
            self.me, self.many = self, list(range(1_000_000))
            self.root = str(files[0].parent)

        def __getattr__(self, name):
            raise RuntimeError(name)

        def __len__(self):
            raise RuntimeError

        @property
        def expensive(self):
            raise RuntimeError

    began = time.monotonic()

    assert paths_of(Resists()) == [str(files[0].parent)]
    assert time.monotonic() - began < 0.5


def test_paths_on_network_mounts_are_taken_unasked(tmp_path):
    """Whether a file exists is not asked of a server, which may be dead."""
    machine = Machine(tmp_path)
    machine.mount("/", "8:1", "ext4")
    machine.mount("/nfs", "0:60", "nfs4", "server:/x")

    class Remote:
        root = None

        def __init__(self):
            self.root, self.bucket = "/nfs/imagenet", "s3://bucket/imagenet"

    assert paths_of(Remote(), storage_map=StorageMap(machine.root)) == [
        "/nfs/imagenet",
        "s3://bucket/imagenet",
    ]


@pytest.mark.parametrize(
    "path",
    [
        "/usr/lib/x86_64-linux-gnu/libc.so.6",
        "/opt/venv/lib/python3.11/site-packages/torch/data.bin",
        "/home/me/train.py",
        "/proc/1/maps",
        "/home/me/gpumon-runs/x/metrics.0.7.jsonl",
        "/data/set.h5 (deleted)",
    ],
)
def test_code_and_system_files_are_no_data(path):
    """Libraries, Python files, packages, the kernel's files, our own output, files that are gone."""
    assert not is_data(path)
    assert is_data("/data/set.h5")


def test_storages_are_one_per_device(tmp_path):
    """Two paths on one disk, one on a share: two storages, three places."""
    machine = Machine(tmp_path)
    machine.disk("sda", "8:0")
    machine.mount("/", "8:0", "ext4")
    machine.mount("/nfs", "0:60", "nfs4")
    datasets = Datasets(StorageMap(machine.root), exists=lambda path: path != "/misspelt")

    for path in ("/a", "/misspelt", "/b", "/nfs/c", "/a"):
        datasets.add_path(path)
    datasets.add_storage(StorageMap(machine.root).of_path("/"))

    assert datasets.paths() == ["/a", "/b", "/nfs/c"]
    assert [storage.device for storage in datasets.storages()] == ["sda", None]
    assert datasets.devices() == {"sda"}


def test_files_in_use_become_one_place(tmp_path):
    """Files of one disk are the folder that holds them all, whatever their number."""
    datasets = Datasets(StorageMap(Machine(tmp_path).root))
    disk = Storage("/mnt", "block", "sdb", ("sdb",), "/mnt", "ext4", ("sdb",))

    for number in range(50):
        datasets.add_file(f"/mnt/set/train/{number % 7}/{number}.jpg", disk)
    datasets.add_file("/mnt/set/val/1.jpg", disk)

    assert datasets.paths() == ["/mnt/set"]


@pytest.mark.disk
def test_the_latency_at_rest_is_the_disks(slow_disk):
    """Three direct reads on an idle disk of 87 ms; asked once per disk, past the page cache."""
    for number in range(5):
        (slow_disk.path / str(number)).write_bytes(os.urandom(100_000))
    slow_disk.drop_caches()
    [(slow_disk.path / str(number)).read_bytes() for number in range(5)]  # in the page cache now
    slow_disk.set_delay(0.087)
    datasets = Datasets()

    found = datasets.discover(Folder(slow_disk.path, []))

    assert found == [str(slow_disk.path)]
    seconds, queue = datasets.unloaded[slow_disk.device]
    assert 0.087 <= seconds <= 0.105
    assert queue < 0.5
    slow_disk.set_delay(0.5)
    began = time.monotonic()
    datasets.discover(Folder(slow_disk.path, []))
    assert time.monotonic() - began < 0.4


@pytest.mark.disk
def test_the_queue_of_others_is_told_with_it(slow_disk):
    """Four readers at the same time: the latency was not measured at rest, and the number says so."""
    files = [slow_disk.path / str(number) for number in range(5)]
    for file in files:
        file.write_bytes(os.urandom(1_000_000))
    storage = StorageMap().of_path(slow_disk.path)
    slow_disk.drop_caches()
    slow_disk.set_delay(0.05)
    stop = threading.Event()

    def read(file):
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
        buffer = mmap.mmap(-1, 4096)
        while not stop.is_set():
            os.preadv(descriptor, [buffer], 0)
        os.close(descriptor)

    threads = [threading.Thread(target=read, args=(file,)) for file in files[:4]]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + 10
        while _in_flight(slow_disk.device) < 4 and time.monotonic() < end:
            time.sleep(0.002)
        _seconds, queue = probe(storage, [str(files[4])])
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    assert 2.5 <= queue <= 5.0


def test_only_disks_are_probed(tmp_path):
    """Memory and network storage have no latency of a disk; a disk without files has none to read."""
    (tmp_path / "file").write_bytes(bytes(5000))
    files = [str(tmp_path / "file")]

    assert probe(Storage("/x", "network"), files) is None
    assert probe(Storage("/x", "memory"), files) is None
    assert probe(Storage("/x", "block", "sda"), [str(tmp_path / "gone")]) is None


def _in_flight(device):
    return int(Path(f"/sys/class/block/{device}/stat").read_text().split()[8])
