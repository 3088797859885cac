"""Reading by a pattern: every byte, whatever the size of a file, and whatever happens to it meanwhile."""

import os
import threading
import time

import pytest

from gpumon.bench.access import BLOCK, find_access
from gpumon.bench.files import Sample
from gpumon.bench.measure import _rates, measure
from gpumon.bench.plan import Piece

ODD_SIZES = (1, 511, 512, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 4095)


def samples(folder):
    return [Sample(str(file), file.stat().st_size) for file in sorted(folder.iterdir())]


def whole(files):
    return [Piece(file, 0, file.size) for file in files]


@pytest.mark.parametrize("parallel", [1, 8])
def test_every_byte_is_read(folder, fill, parallel):
    """Files of less than a sector, unaligned tails, several blocks: the sum is the sum of their sizes."""
    files = samples(fill(folder, {str(size): size for size in ODD_SIZES}))
    access = find_access(files, 512)

    figures = measure(whole(files), access, parallel, seconds=20, most=sum(ODD_SIZES))

    assert access.mode == "direct"
    assert figures.size == sum(ODD_SIZES)
    assert not figures.problems
    assert figures.reads == sum(-(-size // BLOCK) for size in ODD_SIZES)
    assert figures.pages_size == sum(-(-size // 4096) * 4096 for size in ODD_SIZES)


def test_it_ends_in_time_and_says_how_even_it_was(folder, fill):
    """Half a second of rounds over the same file: their lowest, the mean, their highest; latencies of one reader."""
    files = samples(fill(folder, {"file": 8 * BLOCK}))
    began = time.monotonic()

    figures = measure(whole(files), find_access(files, 512), 1, seconds=0.5)

    assert time.monotonic() - began < 5
    assert figures.lowest_bytes_per_s <= figures.bytes_per_s <= figures.highest_bytes_per_s
    assert 0 < figures.latency_s[0] <= figures.latency_s[1] <= figures.seconds
    assert figures.bytes_per_s == pytest.approx(figures.size / figures.seconds)


def test_what_the_end_left_of_a_round_counts_too():
    """(began, ended, bytes) in rounds of two bytes: the slow last read is of the last stretch, which is the lowest."""
    reads = [(0.0, 0.2, 1.0), (0.2, 0.4, 1.0), (0.4, 0.6, 1.0), (0.6, 0.8, 1.0), (0.8, 1.8, 1.0)]

    assert _rates(reads, 0.0, 2) == pytest.approx([2 / 0.4, 3 / 1.4])
    assert _rates(reads[:1], 0.0, 2) == []


def test_no_more_than_the_bytes_asked_for(folder, fill):
    """A limit ends it however much time is left, in the middle of a round too."""
    files = samples(fill(folder, {str(number): BLOCK for number in range(8)}))

    figures = measure(whole(files), find_access(files, 512), 4, seconds=20, most=11 * BLOCK)

    assert figures.size == 11 * BLOCK


def test_files_that_vanish_shrink_or_grow_meanwhile(folder, fill):
    """What is left is measured, what is gone is counted, nothing raises and nothing hangs."""
    fill(folder, {f"{number:03}": 4 * BLOCK for number in range(12)})
    files = samples(folder)
    access = find_access(files, 512)

    def disturb():
        for file in files[:4]:
            os.unlink(file.path)
        for file in files[4:8]:
            os.truncate(file.path, 1000)
        for file in files[8:]:
            with open(file.path, "ab") as out:
                out.write(bytes(5000))

    thread = threading.Timer(0.2, disturb)
    thread.start()
    figures = measure(whole(files), access, 4, seconds=1.5, most=1 << 40)
    thread.join()

    assert figures.problems["vanished"] > 0
    assert figures.problems["became shorter"] > 0
    assert set(figures.problems) == {"vanished", "became shorter"}
    assert figures.reads > 0


def test_nothing_left_to_read_ends_at_once(folder, fill):
    """All files are gone: counted, without going round for all of the time."""
    files = samples(fill(folder, {"a": 5000, "b": 5000}))
    access = find_access(files, 512)
    for file in files:
        os.unlink(file.path)
    began = time.monotonic()

    figures = measure(whole(files), access, 2, seconds=20)

    assert time.monotonic() - began < 5
    assert (figures.size, figures.reads, figures.bytes_per_s) == (0, 0, 0.0)
    assert figures.problems["vanished"] >= 2


@pytest.mark.disk
def test_latency_and_parallelism_of_a_slow_disk(slow_disk, fill):
    """20 ms a read: so long takes one, and eight at a time give several times as much, never over eight times."""
    files = samples(fill(slow_disk.path / "set", {str(number): 65536 for number in range(40)}))
    access = find_access(files, 512)
    slow_disk.set_delay(0.02)

    one = measure(whole(files), access, 1, seconds=1)
    eight = measure(whole(files), access, 8, seconds=1)

    # The delay is a minimum: a busy machine adds to it.
    most = 65536 / 0.02
    assert 0.02 <= one.latency_s[0] < 0.04
    assert one.bytes_per_s <= most
    assert 4 * one.bytes_per_s <= eight.bytes_per_s <= 8 * most
    assert eight.latency_s is None


@pytest.mark.disk
def test_a_disk_with_errors_says_so(slow_disk, fill):
    """Reads that fail are counted by reason."""
    files = samples(fill(slow_disk.path / "set", {str(number): 65536 for number in range(8)}))
    access = find_access(files, 512)
    slow_disk.set_delay(-1)
    try:
        figures = measure(whole(files), access, 4, seconds=1)
    finally:
        slow_disk.set_delay(0)

    assert set(figures.problems) == {"Input/output error"}
    assert figures.reads == 0


@pytest.mark.disk
def test_a_disk_that_does_not_answer_in_time_is_left_behind(slow_disk, fill, monkeypatch):
    """The reads under way are given up after a while; what is known until then is told."""
    monkeypatch.setattr("gpumon.bench.measure._PATIENCE_S", 0.5)
    files = samples(fill(slow_disk.path / "set", {"file": 65536}))
    access = find_access(files, 512)
    slow_disk.set_delay(4)
    began = time.monotonic()

    figures = measure(whole(files), access, 2, seconds=0.5)

    assert time.monotonic() - began < 3
    assert figures.is_cut
    assert figures.reads == 0
    slow_disk.set_delay(0)
