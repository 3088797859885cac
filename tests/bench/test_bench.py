"""`gpumon bench` as a whole: what storage gives, what the figures mean there, what is kept, and what is left alone."""

import json
import os
import shutil
import subprocess
import sys
import threading
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

import slowdisk
from fincore import cached_bytes, put_in, put_out, unchanged
from gpumon.bench import bench, default_readers
from gpumon.errors import GpumonError
from gpumon.system.ceilings import Ceilings
from loop_mount import kernel_has, loop_device, loop_mount, mounted

MIB = 1 << 20
SCHEMA = json.loads((resources.files("gpumon") / "bench/bench.schema.json").read_text())


def measure(path, **given):
    """The result, and its JSON held against the schema."""
    result = bench(path, **{"seconds": 0.15, **given})
    content = result.as_dict()
    jsonschema.validate(content, SCHEMA, format_checker=jsonschema.FormatChecker())
    json.dumps(content, allow_nan=False)
    return content


def only(content):
    [storage] = content["storages"]
    return storage


def rates(storage):
    return {(item["pattern"], item["parallel"]): item["bytes_per_s"] for item in storage["patterns"]}


def test_all_patterns_of_the_own_disk(folder, fill):
    """In order by one and by eight, whole files in random order by one and by so many readers, and one block cached."""
    fill(folder, {f"{number:02}": 200_000 + number for number in range(40)})

    content = measure(folder, parallel=3)

    storage = only(content)
    assert set(rates(storage)) == {("sequential", 1), ("sequential", 8), ("random", 1), ("random", 3)}
    assert all(rate > 0 for rate in rates(storage).values())
    assert content["cached_bytes_per_s"] > 5e8
    for item in storage["patterns"]:
        assert item["unit"] == "whole files"
        assert (item["latency_s"] is not None) == (item["parallel"] == 1)
        assert item["bytes"] / item["seconds"] == pytest.approx(item["bytes_per_s"])
    assert storage["files"] == {"sampled": 40, "bytes": 40 * 200_000 + 780, "left_out": {}}
    assert not storage["failed"]
    assert content["all_files_seen"]


def test_a_single_file_and_a_single_reader(folder, fill):
    """A memory map read by the training thread."""
    fill(folder, {"train.bin": 20 * MIB})

    storage = only(measure(folder / "train.bin", parallel=1))

    assert set(rates(storage)) == {("sequential", 1), ("sequential", 8), ("random", 1)}
    assert {item["unit"] for item in storage["patterns"]} == {"blocks of 1 MiB"}


def test_the_readers_by_default_suit_the_machine():
    """Two per usable CPU, but never one alone, nor more than eight."""
    assert 2 <= default_readers() <= 8
    assert default_readers() <= max(2, 2 * len(os.sched_getaffinity(0)))


def test_ram_is_nothing_to_measure():
    """tmpfs takes direct reads and gives gigabytes a second: it says nothing, with files or without."""
    shared = Path("/dev/shm/gpumon-bench-test")
    shared.mkdir()
    try:
        for _ in range(2):
            storage = only(measure(shared))
            assert (storage["kind"], storage["patterns"], storage["access"]) == ("memory", [], None)
            assert "RAM" in storage["sentence"]
            assert storage["stored"] is None
            (shared / "file").write_bytes(os.urandom(MIB))
        assert only(measure(shared / "file"))["kind"] == "memory"
    finally:
        shutil.rmtree(shared)


@pytest.mark.disk
def test_a_disk_image_in_ram_is_ram(tmp_path, fill):
    """A loop device whose file lies in tmpfs."""
    with mounted("-t", "tmpfs", "none", _made(tmp_path / "ram")) as ram:
        image = ram / "image"
        with image.open("wb") as file:
            file.truncate(32 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        with loop_device(image) as device, mounted(device, _made(tmp_path / "on it")) as disk:
            storage = only(measure(fill(disk / "set", {"file": MIB}), ceilings=None))

    assert storage["device"] == Path(device).name
    assert storage["patterns"] == []
    assert "RAM" in storage["sentence"]


def _made(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: None, "holds no file that could be measured"),
        (lambda folder: (folder / "a").touch(), "1 empty"),
        (lambda folder: os.truncate(_touched(folder / "a"), 1 << 30), "1 sparse or compressed"),
    ],
    ids=["nothing", "empty", "sparse"],
)
def test_nothing_to_read_is_an_error_with_its_reason(folder, make, reason):
    """One line that says what there was."""
    make(folder)
    with pytest.raises(GpumonError, match=reason):
        bench(folder)


def _touched(file):
    file.touch()
    return file


def test_urls_are_no_paths():
    """A bucket is measured through a mount of it, or not at all."""
    with pytest.raises(GpumonError, match="no path of this machine"):
        bench("s3://bucket/train")


@pytest.mark.disk
def test_no_page_of_the_data_set_comes_or_goes(quick_disk, fill):
    """Some files are in the page cache, some in part, most are not: as before, to the page."""
    folder = fill(quick_disk.path / "set", {f"{number:03}": 300_000 + 997 * number for number in range(60)})
    fill(folder, {"shard": 40 * MIB, "tiny": 10, "tail": 4097})
    put_out(folder)
    for number in range(0, 30, 3):
        put_in(folder / f"{number:03}", 1 << 30)
    put_in(folder / "shard", 5 * MIB)
    before = cached_bytes(folder)
    assert sum(size > 0 for size in before.values()) >= 11
    assert sum(size == 0 for size in before.values()) >= 50

    measure(folder, seconds=1)

    assert unchanged(before, cached_bytes(folder))


@pytest.mark.disk
def test_what_a_slow_disk_gives(slow_disk, fill):
    """10 ms a read: a hundred blocks a second one at a time, eight times that with eight; the sentence says so."""
    folder = fill(slow_disk.path / "set", {f"{number:02}": 256_000 for number in range(64)})
    put_out(folder)
    before = cached_bytes(folder)
    slow_disk.set_delay(0.01)

    for _attempt in range(5):  # the program that serves the disk may have to wait for a CPU
        storage = only(measure(folder, parallel=8, seconds=0.6))
        found = rates(storage)
        alone = [found[pattern, 1] / (256_000 / 0.011) for pattern in ("sequential", "random")]
        together = [found[pattern, 8] / (8 * found[pattern, 1]) for pattern in ("sequential", "random")]
        if min(alone) > 0.85 and min(together) > 0.7:
            break

    assert 0.85 <= min(alone) <= max(alone) <= 1.1
    assert 0.7 <= min(together) <= max(together) <= 1.2
    for item in storage["patterns"]:
        assert item["device_operations"] == pytest.approx(item["reads"], rel=0.1)
        assert item["cached_fraction"] < 0.05
    assert (storage["device"], storage["access"], storage["file_system"]) == (slow_disk.device, "direct", "ext4")
    assert slow_disk.device in storage["sentence"]
    assert "MB/s read in order" in storage["sentence"]
    assert unchanged(before, cached_bytes(folder))


@pytest.mark.disk
def test_a_result_is_kept_for_the_device(slow_disk, fill, state):
    """In the state folder, for this very device: every figure of it."""
    folder = fill(slow_disk.path / "set", {f"{number:02}": 256_000 for number in range(64)})
    slow_disk.set_delay(0.01)

    storage = only(measure(folder, parallel=4))

    assert Path(storage["stored"]).is_relative_to(state)
    kept = {(item.pattern, item.parallel): item.bytes_per_s for item in Ceilings().of(slow_disk.device)}
    assert kept == rates(storage)


@pytest.mark.disk
def test_what_a_cache_above_the_disk_gave_is_said_and_not_kept(tmp_path, fill):
    """A loop device that reads its file through the page cache: gigabytes a second that no disk gives."""
    with slowdisk.quick_disk(64) as disk:
        folder = fill(disk.path / "set", {f"{number:02}": 500_000 for number in range(16)})
        storage = only(measure(folder))

    assert "came from a cache of this system" in " ".join(storage["notes"])
    assert "cache" in storage["sentence"]
    assert all(item["cached_fraction"] > 0.9 for item in storage["patterns"])
    assert storage["stored"] is None


@pytest.mark.disk
def test_what_others_left_over_is_said_and_not_kept(slow_disk, fill, tmp_path):
    """Another reader on the same disk meanwhile: its share, and no ceiling that it spoilt."""
    folder = fill(slow_disk.path / "set", {f"{number:02}": 256_000 for number in range(64)})
    fill(slow_disk.path / "other", {"file": 64 * MIB})
    slow_disk.drop_caches()
    slow_disk.set_delay(0.01)
    reader = subprocess.Popen(
        [sys.executable, "-c", _READER, str(slow_disk.path / "other/file")], stdout=subprocess.PIPE
    )
    try:
        reader.stdout.readline()
        storage = only(measure(folder, parallel=1, seconds=0.4))
    finally:
        reader.kill()
        reader.wait()

    [alone] = [item for item in storage["patterns"] if (item["pattern"], item["parallel"]) == ("random", 1)]
    assert alone["others_bytes_per_s"] > 2 * alone["bytes_per_s"]
    assert "were others'" in " ".join(storage["notes"])
    kept = {(item.pattern, item.parallel) for item in Ceilings().of(slow_disk.device)}
    assert not kept & {("sequential", 1), ("random", 1)}


_READER = """
import mmap, os, sys
from concurrent.futures import ThreadPoolExecutor
print("reading", flush=True)
descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
def read(number):
    buffer = mmap.mmap(-1, 1 << 20)
    while True:
        for block in range(number, 64, 4):
            os.preadv(descriptor, [buffer], block << 20)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(read, range(4)))
"""


@pytest.mark.disk
def test_under_a_quota_the_figures_are_the_quotas(quick_disk, fill):
    """A limit of this process's group: named with its file, and not kept as the disk's."""
    if missing := slowdisk.cgroup_unavailable("blkio", "io"):
        pytest.skip(missing)
    folder = fill(quick_disk.path / "set", {f"{number:02}": 500_000 for number in range(16)})
    with slowdisk.read_quota(quick_disk.device, bytes_per_s=20_000_000, pids=[os.getpid()]) as group:
        storage = only(measure(folder, seconds=0.3))

    [limit] = storage["limits"]
    assert (limit["value"], limit["source"]) == (20_000_000, str(group.limit_file))
    assert "limit of 20 MB/s" in " ".join(storage["notes"])
    assert "the limit's figures are not the disk's" in storage["notes"][-1]
    assert storage["stored"] is None


@pytest.mark.disk
def test_through_an_overlay(quick_disk, tmp_path, fill):
    """A container's layers: measured directly through them; the device below where it can be seen."""
    lower = fill(quick_disk.path / "lower", {f"{number:02}": 500_000 for number in range(16)})
    for name in ("upper", "work"):
        (quick_disk.path / name).mkdir()
    options = f"lowerdir={lower},upperdir={quick_disk.path / 'upper'},workdir={quick_disk.path / 'work'}"
    with mounted("-t", "overlay", "overlay", "-o", options, _made(tmp_path / "merged")) as merged:
        put_out(merged)
        before = cached_bytes(merged)
        storage = only(measure(merged))
        assert unchanged(before, cached_bytes(merged))

    assert (storage["file_system"], storage["access"]) == ("overlay", "direct")
    assert storage["device"] == quick_disk.device


@pytest.mark.disk
def test_through_a_program_that_serves_files(slow_mount, fill):
    """FUSE: the figures, and that they are of the way to its server too; no device, nothing kept."""
    folder = fill(slow_mount.path / "set", {f"{number:02}": 100_000 for number in range(16)})
    slow_mount.set_delay(0.01)

    storage = only(measure(folder, parallel=4))

    assert (storage["kind"], storage["device"], storage["stored"]) == ("network", None, None)
    assert rates(storage)["random", 4] > 2 * rates(storage)["random", 1]
    assert "server" in " ".join(storage["notes"])


@pytest.mark.disk
@pytest.mark.skipif(
    not (shutil.which("mksquashfs") and kernel_has("squashfs")),
    reason="needs mksquashfs (apt-get install squashfs-tools) and a kernel with squashfs",
)
def test_where_direct_reads_are_refused(tmp_path, fill):
    """squashfs: what the figures then mean, each block read once, and what was cached stays so."""
    fill(tmp_path / "set", {f"{number:02}": 500_000 for number in range(40)})
    make = ["sh", "-c", 'mksquashfs "$0" "$1" -no-progress', str(tmp_path / "set")]
    with loop_mount(*make, size_mb=0, kind="squashfs") as (folder, _device):
        put_in(folder / "00", 1 << 30)
        before = cached_bytes(folder)
        storage = only(measure(folder, parallel=2))
        after = cached_bytes(folder)

    assert storage["access"] == "buffered"
    assert len(storage["patterns"]) == 4
    assert sum(item["bytes"] for item in storage["patterns"]) <= 39 * 500_000
    assert all(item["lowest_bytes_per_s"] is None for item in storage["patterns"])
    assert "Direct reads are refused here" in storage["notes"][0]
    assert all(after[name] >= 0.9 * size for name, size in before.items())
    assert storage["stored"] is None


@pytest.mark.disk
def test_a_failing_disk_is_a_failure(slow_disk, fill):
    """Reads that end in errors: said by their reason."""
    folder = fill(slow_disk.path / "set", {f"{number}": 65_536 for number in range(8)})
    break_down = threading.Timer(0.5, slow_disk.set_delay, [-1])
    break_down.start()
    try:
        storage = only(measure(folder, parallel=2, seconds=0.6))
    finally:
        break_down.join()
        slow_disk.set_delay(0)

    assert storage["failed"]
    assert "Input/output error" in " ".join([storage["sentence"], *storage["notes"]])


@pytest.mark.disk
def test_each_mount_has_its_own_result(slow_disk, folder, fill):
    """A folder with another disk mounted in it."""
    fill(folder, {"here": 100_000})
    fill(slow_disk.path / "set", {"there": 100_000})
    inside = _made(folder / "inside")
    with mounted("--bind", slow_disk.path / "set", inside):
        content = measure(folder, seconds=0.2)

    assert {storage["device"] for storage in content["storages"]} >= {slow_disk.device}
    assert len(content["storages"]) == 2
