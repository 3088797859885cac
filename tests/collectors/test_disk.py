"""The disk collector says what the kernel counted, and what iostat makes of it."""

import json
import mmap
import os
import shutil
import subprocess
import threading
import time

import pytest

import slowdisk
from faketree import Machine
from gpumon import metrics as m
from gpumon.collectors.disk import DiskCollector
from gpumon.system.datasets import Datasets
from gpumon.system.storage import StorageMap
from readings import Readings, over

pytestmark = pytest.mark.alone


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.disk("sda", "8:0", {"sda1": "8:1"}, queue_rotational="1", device_model="ST8000", device_serial="ZA1")
    machine.mount("/", "8:1", "ext4", "/dev/sda1")
    return machine


def collector(machine, *paths):
    datasets = Datasets(StorageMap(machine.root), exists=lambda _: True)
    for path in paths:
        datasets.add_path(path)
    return DiskCollector(root=machine.root, datasets=datasets)


def collect(source):
    return Readings(source.collect())


def devices(readings):
    return {reading.attributes[m.SYSTEM_DEVICE] for reading in readings.of(m.DISK_OPERATIONS)}


#                 reads merged sectors ms  writes merged sectors ms  in flight, busy ms, queue ms
BEFORE = (1000, 10, 8000, 5000, 200, 3, 1600, 900, 0, 6000, 5900)
AFTER = (1100, 12, 16000, 13700, 200, 3, 1600, 900, 4, 7000, 14600)


def test_counters_are_in_base_units(machine):
    """Sectors of 512 bytes, milliseconds to seconds."""
    machine.diskstats(sda=BEFORE)

    found = collect(collector(machine))

    assert found.value(m.DISK_OPERATIONS, "read") == 1000
    assert found.value(m.DISK_IO, "read") == 8000 * 512
    assert found.value(m.DISK_OPERATION_TIME, "write") == 0.9
    assert found.value(m.DISK_MERGED, "read") == 10
    assert found.value(m.DISK_IO_TIME) == 6.0
    assert found.value(m.DISK_IN_FLIGHT) == 0


def test_await_and_request_size_are_those_of_the_window(machine):
    """A hundred reads took 8.7 s and moved 4 MB since the last look; nothing was written: no await."""
    source = collector(machine)
    machine.diskstats(sda=BEFORE)
    before = collect(source)
    machine.diskstats(sda=AFTER)
    after = collect(source)

    assert over(before, after, m.DISK_AWAIT, "read") == pytest.approx(0.087)
    assert over(before, after, m.DISK_REQUEST_SIZE, "read") == 40960
    assert over(before, after, m.DISK_AWAIT, "write") is None
    assert over(before, after, m.DISK_REQUEST_SIZE, "write") is None
    assert after.value(m.DISK_IN_FLIGHT) == 4


def test_utilization_and_queue_are_per_second_of_the_clock(machine):
    """Their denominator is the monotonic clock, and utilization does not outrun it."""
    source = collector(machine)
    machine.diskstats(sda=BEFORE)
    before, began = collect(source), time.monotonic()
    end = began + 0.05
    while time.monotonic() < end:
        pass
    machine.diskstats(sda=AFTER)  # claims 1 s of activity in these 50 ms
    after = collect(source)

    assert over(before, after, m.DISK_UTILIZATION) == pytest.approx(1.0)
    seconds = after.one(m.DISK_QUEUE_LENGTH).per - before.one(m.DISK_QUEUE_LENGTH).per
    assert over(before, after, m.DISK_QUEUE_LENGTH) == pytest.approx(8.7 / seconds)


def test_a_counter_of_32_bits_wraps(machine):
    """49 days of busy time: milliseconds go on from zero, the sum goes on growing."""
    source = collector(machine)
    machine.diskstats(sda=(1000, 0, 0, 2**32 - 1000, 0, 0, 0, 0, 0, 2**32 - 500, 2**32 - 1))
    before = collect(source)
    machine.diskstats(sda=(1010, 0, 0, 500, 0, 0, 0, 0, 0, 250, 99))
    after = collect(source)

    assert over(before, after, m.DISK_AWAIT, "read") == pytest.approx(0.150)
    assert after.value(m.DISK_IO_TIME) - before.value(m.DISK_IO_TIME) == pytest.approx(0.750)
    assert after.one(m.DISK_QUEUE_LENGTH).value - before.one(m.DISK_QUEUE_LENGTH).value == pytest.approx(0.1)


def test_counters_never_go_back(machine):
    """The queue's account may shrink a little; another disk under the same name starts at zero."""
    source = collector(machine)
    machine.diskstats(sda=BEFORE)
    before = collect(source)
    machine.diskstats(sda=(*BEFORE[:10], 5800))
    shrunk = collect(source)
    machine.diskstats(sda=(5, 0, 10, 20, 1, 0, 8, 3, 0, 22, 23))
    replaced = collect(source)

    assert shrunk.value(m.DISK_QUEUE_LENGTH) == before.value(m.DISK_QUEUE_LENGTH)
    assert replaced.value(m.DISK_OPERATIONS, "read") == 1005
    assert replaced.value(m.DISK_OPERATION_TIME, "read") == pytest.approx(5.020)


def test_whole_disks_only_unless_data_lies_on_others(machine):
    """Partitions, empty readers, loops, RAM disks and dm are left out; a data set brings in every layer."""
    machine.disk("nvme0n1", "259:0", {"nvme0n1p1": "259:1"})
    machine.disk("dm-0", "253:0", below=["nvme0n1p1"])
    machine.disk("loop0", "7:0", backing="/images/set.img")
    machine.disk("loop1", "7:1", backing="/snap/core.snap")
    machine.disk("zram0", "253:9")
    machine.disk("ram0", "1:0")
    machine.disk("sr0", "11:0")
    machine.disk("sdb", "8:16", size=0)
    machine.mount("/crypt", "253:0", "ext4", "/dev/mapper/crypt")
    machine.mount("/loop", "7:0", "ext4", "/dev/loop0")
    names = ("sda", "sda1", "sdb", "nvme0n1", "nvme0n1p1", "dm-0", "loop0", "loop1", "zram0", "ram0", "sr0")
    machine.diskstats(**dict.fromkeys(names, BEFORE))

    assert devices(collect(collector(machine))) == {"sda", "nvme0n1"}
    assert devices(collect(collector(machine, "/crypt/x", "/loop"))) == {"sda", "nvme0n1", "dm-0", "loop0"}


def test_a_data_set_that_is_found_later_counts_at_once(machine):
    """Its device shows in the collection after it became known."""
    machine.disk("loop0", "7:0", backing="/images/set.img")
    machine.mount("/loop", "7:0", "ext4", "/dev/loop0")
    machine.diskstats(sda=BEFORE, loop0=BEFORE)
    datasets = Datasets(StorageMap(machine.root), exists=lambda _: True)
    source = DiskCollector(root=machine.root, datasets=datasets)
    assert devices(collect(source)) == {"sda"}

    datasets.add_path("/loop/set")

    assert devices(collect(source)) == {"sda", "loop0"}


def test_info_says_what_a_disk_is(machine):
    """Model, serial number, type, what is below, and where the data is mounted."""
    machine.disk("dm-0", "253:0", below=["sda1"])
    machine.mount("/data", "253:0", "xfs", "/dev/mapper/data")
    machine.diskstats(**{"sda": BEFORE, "dm-0": BEFORE})

    found = collect(collector(machine, "/data/x"))

    assert dict(found.one(m.DISK_INFO, "sda").attributes) == {
        m.SYSTEM_DEVICE: "sda",
        m.HW_MODEL: "ST8000",
        m.HW_SERIAL_NUMBER: "ZA1",
        m.DISK_TYPE: "HDD",
        m.DISK_HOLDS_DATASET: True,
    }
    assert dict(found.one(m.DISK_INFO, "dm-0").attributes) == {
        m.SYSTEM_DEVICE: "dm-0",
        m.DISK_TYPE: "HDD",
        m.DISK_HOLDS_DATASET: True,
        m.DISK_PARENTS: "sda",
        m.SYSTEM_FILESYSTEM_MOUNTPOINT: "/data",
        m.SYSTEM_FILESYSTEM_TYPE: "xfs",
    }


@pytest.mark.parametrize(
    "name, files, expected",
    [
        ("nvme0n1", {"queue_rotational": "0"}, "NVMe"),
        ("sdb", {"queue_rotational": "0", "device_model": "Samsung SSD 870"}, "SSD"),
        ("sdb", {"queue_rotational": "1", "device_model": "QEMU HARDDISK"}, "virtual"),
        ("vda", {"queue_rotational": "1"}, "virtual"),
        ("nvme0n1", {"device_model": "Amazon Elastic Block Store"}, "virtual"),
    ],
)
def test_types_of_disks(machine, name, files, expected):
    """Rotation is believed of real disks only: virtual ones say what they like."""
    machine.disk(name, "259:7", **files)
    machine.diskstats(**{name: BEFORE})

    assert collect(collector(machine)).one(m.DISK_INFO, name).attributes[m.DISK_TYPE] == expected


def test_limits_of_the_cgroup_come_with_their_file(machine):
    """A read quota that await does not show."""
    machine.mount("/sys/fs/cgroup", "0:28", "cgroup2")
    machine.write("proc/self/cgroup", "0::/job\n")
    machine.write("sys/fs/cgroup/job/io.max", "8:0 rbps=1000 wbps=max riops=20 wiops=max\n")
    machine.diskstats(sda=BEFORE)

    found = collect(collector(machine))

    limit = found.one(m.DISK_LIMIT_OPERATIONS)
    assert (limit.value, dict(limit.attributes)) == (
        20,
        {
            m.SYSTEM_DEVICE: "sda",
            m.DISK_IO_DIRECTION: "read",
            m.LIMIT_SOURCE: "/sys/fs/cgroup/job/io.max",
        },
    )
    assert found.value(m.DISK_LIMIT_IO, "sda", "read") == 1000


def test_without_diskstats_psutil_tells_what_it_can(tmp_path):
    """Other systems: no queue and nothing in flight, and no reading that would say zero."""
    found = collect(DiskCollector(root=tmp_path, datasets=Datasets()))

    assert found.of(m.DISK_OPERATIONS)
    assert found.of(m.DISK_AWAIT)
    assert not found.of(m.DISK_QUEUE_LENGTH)
    assert not found.of(m.DISK_IN_FLIGHT)
    assert not any(device.startswith(("loop", "ram", "zram")) for device in devices(found))


class Readers:
    """Threads that read blocks of a file past the page cache, one after the other."""

    def __init__(self, file, threads, size):
        self._file, self._size, self._stop = file, size, threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(number,)) for number in range(threads)]

    def _read(self, number):
        descriptor, buffer = os.open(self._file, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, self._size)
        blocks, block = os.fstat(descriptor).st_size // self._size, number
        while not self._stop.is_set():
            os.preadv(descriptor, [buffer], block % blocks * self._size)
            block += len(self._threads)
        os.close(descriptor)

    def __enter__(self):
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_error):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def on(disk):
    datasets = Datasets()
    datasets.add_path(disk.path)
    return DiskCollector(datasets=datasets)


@pytest.mark.disk
def test_await_of_a_slow_disk_is_its_delay(slow_disk):
    """Each read takes 87 ms; the collector says so within a fifth, and that the disk is never idle."""
    file = slow_disk.path / "file"
    file.write_bytes(os.urandom(8 << 20))
    slow_disk.drop_caches()
    slow_disk.set_delay(0.087)
    source = on(slow_disk)
    with Readers(file, 2, 65536):
        time.sleep(0.3)
        before = collect(source)
        time.sleep(1.5)
        after = collect(source)

    device = slow_disk.device
    assert over(before, after, m.DISK_AWAIT, device, "read") == pytest.approx(0.087, rel=0.2)
    assert over(before, after, m.DISK_REQUEST_SIZE, device, "read") == 65536
    assert over(before, after, m.DISK_QUEUE_LENGTH, device) == pytest.approx(2, rel=0.1)
    assert 0.95 <= over(before, after, m.DISK_UTILIZATION, device) <= 1.0
    info = after.one(m.DISK_INFO, device).attributes
    assert (info[m.DISK_HOLDS_DATASET], info[m.DISK_TYPE]) == (True, "virtual")


@pytest.mark.disk
@pytest.mark.skipif(not shutil.which("iostat"), reason="needs iostat: apt-get install sysstat")
@pytest.mark.parametrize("threads, delay", [(1, 0.01), (4, 0.02)])
def test_the_numbers_are_iostats(slow_disk, threads, delay):
    """r/s, rkB/s, r_await, rareq-sz, aqu-sz and %util of the same seconds, within 5 %."""
    file = slow_disk.path / "file"
    file.write_bytes(os.urandom(16 << 20))
    slow_disk.drop_caches()
    slow_disk.set_delay(delay)
    source, device = on(slow_disk), slow_disk.device
    with Readers(file, threads, 131072):
        time.sleep(0.2)
        iostat = subprocess.Popen(
            ["iostat", "-d", "-x", "-y", "-o", "JSON", device, "4", "1"], stdout=subprocess.PIPE, text=True
        )
        before = collect(source)
        text, _ = iostat.communicate()
        after = collect(source)
    [told] = json.loads(text)["sysstat"]["hosts"][0]["statistics"][0]["disk"]

    seconds = after.one(m.DISK_QUEUE_LENGTH, device).per - before.one(m.DISK_QUEUE_LENGTH, device).per

    def rate(metric):
        return (after.value(metric, device, "read") - before.value(metric, device, "read")) / seconds

    assert rate(m.DISK_OPERATIONS) == pytest.approx(told["r/s"], rel=0.05)
    assert rate(m.DISK_IO) / 1024 == pytest.approx(told["rkB/s"], rel=0.05)
    assert over(before, after, m.DISK_AWAIT, device, "read") * 1e3 == pytest.approx(told["r_await"], rel=0.05)
    assert over(before, after, m.DISK_REQUEST_SIZE, device, "read") / 1024 == pytest.approx(told["rareq-sz"], rel=0.05)
    assert over(before, after, m.DISK_QUEUE_LENGTH, device) == pytest.approx(told["aqu-sz"], rel=0.05)
    assert over(before, after, m.DISK_UTILIZATION, device) * 100 == pytest.approx(min(100, told["util"]), rel=0.05)


@pytest.mark.disk
def test_a_real_quota_is_reported(quick_disk):
    """The limit of this process's own group, and the file that sets it."""
    if missing := slowdisk.cgroup_unavailable("blkio", "io"):
        pytest.skip(missing)
    with slowdisk.read_quota(quick_disk.device, bytes_per_s=5_000_000, pids=[os.getpid()]) as group:
        limit = collect(on(quick_disk)).one(m.DISK_LIMIT_IO, quick_disk.device)

    assert (limit.value, limit.attributes[m.LIMIT_SOURCE]) == (5_000_000, str(group.limit_file))


def test_a_collection_is_cheap(machine):
    """A machine with thirty disks: some hundred microseconds of CPU, once a second."""
    names = [f"sd{letter}" for letter in "bcdefghijklmnopqrstuvwxyz"]
    for number, name in enumerate(names, 1):
        machine.disk(name, f"65:{number * 16}")
    machine.diskstats(**dict.fromkeys(["sda", *names], BEFORE))
    source = collector(machine)
    collect(source)
    began = time.thread_time()
    for _repeat in range(20):
        collect(source)

    assert (time.thread_time() - began) / 20 < 0.004


def test_the_disk_with_the_checkpoints_is_named(machine):
    """Also one that would not be shown else, and only that one."""
    machine.disk("loop3", "7:3")
    machine.mount("/saved", "7:3", "ext4", "/dev/loop3")
    machine.diskstats(sda=BEFORE, loop3=BEFORE)
    datasets, checkpoints = (Datasets(StorageMap(machine.root), exists=lambda _: True) for _ in range(2))
    datasets.add_path("/data")
    source = DiskCollector(root=machine.root, datasets=datasets, checkpoints=checkpoints)
    assert devices(collect(source)) == {"sda"}

    checkpoints.add_path("/saved/run1", named=False)
    found = collect(source)

    assert devices(found) == {"sda", "loop3"}
    info = {name: found.one(m.DISK_INFO, name).attributes for name in ("sda", "loop3")}
    assert (info["sda"][m.DISK_HOLDS_DATASET], info["sda"].get(m.DISK_HOLDS_CHECKPOINTS)) == (True, None)
    assert (info["loop3"][m.DISK_HOLDS_DATASET], info["loop3"][m.DISK_HOLDS_CHECKPOINTS]) == (False, True)
    assert info["loop3"][m.SYSTEM_FILESYSTEM_MOUNTPOINT] == "/saved"
