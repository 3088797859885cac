"""Which files are read: a sample, by storage, without those whose reading says nothing of a disk."""

import contextlib
import os
import random
import shutil
import subprocess
import time

import pytest

from gpumon.bench import files as module
from gpumon.bench.files import search
from gpumon.errors import GpumonError
from gpumon.system.storage import Storage, StorageMap
from loop_mount import kernel_has, loop_mount


def look(path, storage_map=None):
    return search(str(path), storage_map or StorageMap(), random.Random(1))


@contextlib.contextmanager
def as_nobody():
    """Become a user who may read what everybody may."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def names(place):
    return {os.path.basename(file.path) for file in place.files}


def test_a_file_is_its_own_sample(folder, fill):
    """PATH may be a file: that one is read, with its size."""
    fill(folder, {"train.h5": 70_001, "other": 5000})

    found = look(folder / "train.h5")

    [place] = found.places
    assert [(file.path, file.size) for file in place.files] == [(str(folder / "train.h5"), 70_001)]
    assert found.is_whole


def test_files_of_all_folders_below_are_candidates(folder, fill):
    """A folder of class folders; links to files are followed, links to folders are not (they may lead round)."""
    fill(folder, {"a/1": 5000, "a/b/2": 5000, "c/3": 5000})
    (folder / "link").symlink_to(folder / "c/3")
    (folder / "round").symlink_to(folder)

    [place] = look(folder).places

    assert names(place) == {"1", "2", "3", "link"}


def test_empty_special_and_sparse_files_are_left_out(folder, fill):
    """Holes read as zeros at memory's speed; a pipe would wait for ever."""
    fill(folder, {"data": 50_000})
    (folder / "empty").touch()
    os.mkfifo(folder / "pipe")
    with open(folder / "sparse", "wb") as file:
        file.truncate(1 << 30)
    with open(folder / "mostly holes", "wb") as file:
        file.write(os.urandom(50_000))
        file.truncate(1 << 20)
    os.sync()

    [place] = look(folder).places

    assert names(place) == {"data"}
    assert place.left_out == {"empty": 1, "sparse": 2}


@pytest.mark.disk
def test_unreadable_files_are_counted(quick_disk, fill):
    """Of another user, mode 0600."""
    folder = fill(quick_disk.path / "set", {"data": 5000, "secret": 5000})
    (folder / "secret").chmod(0o600)
    with as_nobody():
        [place] = look(folder).places

    assert names(place) == {"data"}
    assert place.left_out == {"unreadable": 1}


@pytest.mark.disk
def test_space_that_was_never_written_is_left_out(quick_disk, fill):
    """fallocate: all blocks are there, and reading them reads no disk."""
    fill(quick_disk.path / "set", {"data": 300_000})
    with open(quick_disk.path / "set/preallocated", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 300_000)

    [place] = look(quick_disk.path / "set").places

    assert names(place) == {"data"}
    assert place.left_out == {"preallocated": 1}


@pytest.mark.disk
@pytest.mark.skipif(
    not (shutil.which("mkfs.btrfs") and kernel_has("btrfs")),
    reason="needs mkfs.btrfs (apt-get install btrfs-progs), btrfs",
)
def test_compressed_files_of_btrfs_are_left_out(fill):
    """btrfs counts the blocks that they would have without compression; tiny files lie in its metadata."""
    with loop_mount("mkfs.btrfs", "-q", options=["compress=zstd"], kind="btrfs") as (folder, device):
        fill(folder, {"noise": 300_000, "tiny": 100})
        (folder / "zeros").write_bytes(b"gpumon " * 50_000)
        os.sync()

        [place] = look(folder).places

    assert place.storage.device == device
    assert names(place) == {"noise"}
    assert place.left_out == {"compressed": 1, "inline": 1}


@pytest.mark.disk
def test_what_is_not_yet_written_is_written_first(quick_disk):
    """Files fresh from a download are on the disk before their reading is measured."""
    (quick_disk.path / "fresh").write_bytes(os.urandom(300_000))

    [place] = look(quick_disk.path).places

    assert "fresh" in names(place)
    written = int((quick_disk.path / "fresh").stat().st_blocks) * 512
    assert written >= 300_000


@pytest.mark.disk
def test_each_device_is_a_place_of_its_own(quick_disk, slow_mount, folder, fill):
    """A data set over a disk, a FUSE mount and the own disk; links lead there too."""
    fill(folder, {"here": 9000})
    fill(quick_disk.path / "set", {"disk": 9000})
    fill(slow_mount.path / "set", {"fuse": 9000})
    (folder / "to disk").symlink_to(quick_disk.path / "set/disk")
    (folder / "to fuse").symlink_to(slow_mount.path / "set/fuse")

    places = look(folder).places

    by_name = {next(iter(names(place))): place.storage for place in places}
    assert by_name["to disk"].device == quick_disk.device
    assert (by_name["to fuse"].kind, by_name["to fuse"].device) == ("network", None)
    assert by_name["here"] == StorageMap().of_path(folder / "here")


def test_a_large_folder_is_sampled(folder, fill, monkeypatch):
    """More files than are looked into: as many as that, from all over, and it is said that there are more."""
    monkeypatch.setattr(module, "MAX_FILES", 40)
    fill(folder, {f"{number % 10}/{number:03}": 5000 for number in range(200)})

    found = look(folder)

    [place] = found.places
    assert len(place.files) == 40
    assert not found.is_whole
    assert len({os.path.dirname(file.path) for file in place.files}) > 5


@pytest.mark.disk
def test_a_search_on_a_slow_disk_ends_in_time(slow_disk, fill):
    """Each file costs reads of metadata: some of them in a few seconds rather than all of them."""
    fill(slow_disk.path / "set", {f"{number % 50}/{number:04}": 4096 for number in range(1500)})
    subprocess.run(["umount", str(slow_disk.path)], check=True)
    subprocess.run(["mount", "-o", "noatime", f"/dev/{slow_disk.device}", str(slow_disk.path)], check=True)
    slow_disk.set_delay(0.1)
    began = time.monotonic()

    found = look(slow_disk.path / "set")

    assert time.monotonic() - began < 12
    assert found.places[0].files
    slow_disk.set_delay(0)


@pytest.mark.disk
def test_a_storage_that_does_not_answer_holds_nobody_up(slow_mount, fill, monkeypatch):
    """A dead server: given up with a line."""
    monkeypatch.setattr(module, "_PATIENCE_S", 1.5)
    monkeypatch.setattr(module, "_WALK_S", 0.5)
    monkeypatch.setattr(module, "_LOOK_S", 0.5)
    hung = slow_mount.path / "set"
    real = os.stat

    def stat(path, *rest, **options):
        if str(path).startswith(str(hung)):
            time.sleep(4)
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "stat", stat)
    began = time.monotonic()
    with pytest.raises(GpumonError, match="does not answer"):
        look(hung)

    assert time.monotonic() - began < 3.5


@pytest.mark.parametrize("make", [lambda path: None, os.mkfifo], ids=["nothing", "a pipe"])
def test_a_path_that_is_no_file_is_one_line(folder, make):
    """Said at once, without waiting for anything."""
    make(folder / "path")
    with pytest.raises(GpumonError) as told:
        look(folder / "path")

    assert str(folder / "path") in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.disk
def test_a_folder_that_may_not_be_read_is_one_line(quick_disk):
    """The path itself: that is an error; one below: it is counted."""
    (quick_disk.path / "closed").mkdir(mode=0o700)
    with as_nobody():
        with pytest.raises(GpumonError, match=r"cannot read .*closed: Permission denied"):
            look(quick_disk.path / "closed")
        assert look(quick_disk.path).unreadable_folders == 2  # with lost+found


def test_a_server_that_knows_no_blocks_has_no_sparse_files(folder, fill):
    """Many FUSE file systems say 0 blocks of every file."""

    class Fuse(StorageMap):
        def of_path(self, path):
            return Storage(str(path), "network", mount_point=str(folder), file_system="fuse.gcsfuse")

    fill(folder, {"data": 9000})
    with open(folder / "no blocks", "wb") as file:
        file.truncate(9000)
    with open(folder / "holes", "wb") as file:
        file.write(b"x")
        file.truncate(1 << 20)
    os.sync()

    [place] = look(folder, Fuse()).places

    assert names(place) == {"data", "no blocks"}
    assert place.left_out == {"sparse": 1}
