"""Reads and writes that the kernel gave up, as its log tells them."""

import contextlib
import os
import time

import pytest

from gpumon import metrics as m
from gpumon.collectors.kernel import KernelCollector
from gpumon.errors import NoDataError

LINES = [
    b"3,1,1,-;I/O error, dev sdq, sector 123 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 0\n SUBSYSTEM=block\n",
    b"3,2,2,-;critical medium error, dev sdq, sector 128 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2\n",
    b"3,3,3,-;blk_update_request: I/O error, dev sdr, sector 7\n",
    b"3,4,4,-;critical target error, dev sdq, sector 8 op 0x3:(DISCARD) flags 0x800 phys_seg 1 prio class 0\n",
    b"3,5,5,-;critical target error, dev sdq, sector 8 op 0x9:(WRITE_ZEROES) flags 0x800 phys_seg 0 prio class 0\n",
    b"6,6,6,-;EXT4-fs (sdq1): mounted filesystem; I/O error counts: 0\n",
    b"3,7,7,-;Buffer I/O error on dev sdq1, logical block 4, async page read\n",
]


def errors(collector):
    return {
        (each.attributes[m.SYSTEM_DEVICE], each.attributes[m.ERROR_TYPE]): each.value for each in collector.collect()
    }


def test_errors_are_counted_by_device_and_kind(tmp_path):
    """A request that failed counts once; what a healthy disk may refuse, and lines that repeat it, do not."""
    log = tmp_path / "kmsg"
    log.write_bytes(b"3,0,0,-;I/O error, dev sdq, sector 1 op 0x0:(READ)\n")
    collector = KernelCollector(log=str(log))
    assert errors(collector) == {}, "what was logged before is not of this run"

    with log.open("ab") as out:
        out.writelines(LINES)

    assert errors(collector) == {("sdq", "io"): 1, ("sdq", "medium"): 1, ("sdr", "io"): 1}
    assert errors(collector) == {("sdq", "io"): 1, ("sdq", "medium"): 1, ("sdr", "io"): 1}, "counters stay"


def test_a_log_that_may_not_be_read(tmp_path):
    with pytest.raises(NoDataError, match="kernel log: no "):
        list(KernelCollector(log=str(tmp_path / "none")).collect())


@pytest.mark.disk
def test_a_disk_with_bad_sectors(slow_disk):
    """A real device whose reads fail: the kernel logs it, and so do we."""
    collector = KernelCollector()
    list(collector.collect())
    file = slow_disk.path / "data"
    file.write_bytes(os.urandom(1 << 20))
    os.sync()
    until = time.monotonic() + 30
    slow_disk.set_delay(-1.0)
    # More than once: the kernel limits how often it says so, for all disks together, other tests' too.
    while not (found := count_of(slow_disk, errors(collector))) and time.monotonic() < until:
        slow_disk.drop_caches()
        with contextlib.suppress(OSError):
            file.read_bytes()
        time.sleep(0.5)
    slow_disk.set_delay(0.0)
    collector.close()

    assert found >= 1


def count_of(disk, found):
    return sum(count for (device, _), count in found.items() if device == disk.device)
