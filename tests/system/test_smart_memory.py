"""The memory of error counters: growth by serial number, across restarts."""

import os
import subprocess
import sys

import pytest

from gpumon.system.smart_memory import Growth, SmartMemory
from gpumon.system.state import read_state, write_state

DAY_S = 86400.0
WEEK_S = 7 * DAY_S
NOW = 1_790_000_000.0


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state/smart.json"


def seen(memory, disk, at_s, within_s=WEEK_S, **counters):
    return memory.update(disk, counters, within_s=within_s, now=NOW + at_s)


def test_the_first_value_is_the_baseline(file):
    """Nothing is known to have grown."""
    assert seen(SmartMemory(file), "A", 0, reallocated=304) == {"reallocated": Growth(304, NOW, 304, 0)}


def test_growth_is_since_the_time_that_counts(file):
    """What grew before is no news; the first value and its time are kept."""
    memory = SmartMemory(file)
    for day, count in enumerate((0, 5, 5, 5, 7, 7, 7, 7, 7, 9, 9)):
        found = seen(memory, "A", day * DAY_S, reallocated=count)

    assert found == {"reallocated": Growth(0, NOW, 9, 4)}
    assert seen(memory, "A", 30 * DAY_S, reallocated=9)["reallocated"].recent == 0


def test_disks_and_counters_do_not_mix(file):
    memory = SmartMemory(file)
    seen(memory, "A", 0, reallocated=1, pending=0)
    seen(memory, "B", 0, reallocated=100)
    found = seen(memory, "A", 60, reallocated=1, pending=3)

    assert {name: growth.recent for name, growth in found.items()} == {"reallocated": 0, "pending": 3}


def test_what_falls_has_not_grown(file):
    """Pending sectors are written anew, and may come again."""
    memory = SmartMemory(file)
    seen(memory, "A", 0, pending=8)

    assert seen(memory, "A", 60, pending=0)["pending"].recent == 0
    assert seen(memory, "A", 120, pending=8)["pending"].recent == 0
    assert seen(memory, "A", 180, pending=10)["pending"].recent == 2


def test_it_outlives_the_process(file):
    """By serial number, whatever place the disk has now."""
    memory = SmartMemory(file)
    seen(memory, "A", 0, reallocated=304)
    memory.save(NOW)
    again = SmartMemory(file)

    assert memory.problem == ""
    assert seen(again, "A", DAY_S, reallocated=316) == {"reallocated": Growth(304, NOW, 316, 12)}


def test_a_process_that_is_killed_leaves_a_whole_file(file):
    """What it had written."""
    program = f"""
import os, signal
from pathlib import Path
from gpumon.system.smart_memory import SmartMemory
memory = SmartMemory(Path({str(file)!r}))
memory.update("A", {{"pending": 1}}, within_s=1.0)
memory.save()
memory.update("A", {{"pending": 2}}, within_s=1.0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert [value for _, value in read_state(file)["A"]["counters"]["pending"]] == [1]


def test_it_is_written_when_something_changed(file):
    """Else once an hour, for the time at which a disk was seen."""
    memory = SmartMemory(file)
    seen(memory, "A", 0, pending=0)
    memory.save(NOW)
    written = os.stat(file).st_ino
    for minute in range(1, 60):
        seen(memory, "A", minute * 60, pending=0)
        memory.save(NOW + minute * 60)
    assert os.stat(file).st_ino == written

    seen(memory, "A", 3600, pending=0)
    memory.save(NOW + 3600)
    assert read_state(file)["A"]["seen"] == NOW + 3600
    seen(memory, "A", 3601, pending=1)
    memory.save(NOW + 3601)
    assert len(read_state(file)["A"]["counters"]["pending"]) == 2


def test_the_disks_of_another_process_are_kept(file):
    """The agent's, beside a training's."""
    ours, theirs = SmartMemory(file), SmartMemory(file)
    seen(ours, "A", 0, pending=0)
    seen(theirs, "B", 0, pending=0)
    ours.save(NOW)
    theirs.save(NOW)

    assert set(read_state(file)) == {"A", "B"}


def test_a_folder_that_cannot_be_written_costs_the_memory_only(tmp_path):
    """It works on in this process, says why, and tries again."""
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    memory = SmartMemory(blocked / "smart.json")
    seen(memory, "A", 0, pending=0)
    memory.save(NOW)

    assert str(blocked) in memory.problem
    assert seen(memory, "A", 60, pending=4)["pending"].recent == 4
    blocked.unlink()
    memory.save(NOW + 60)
    assert memory.problem == ""
    assert "A" in read_state(blocked / "smart.json")


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "x",
        {"seen": 1},
        {"seen": "x", "counters": {}},
        {"seen": 1, "counters": []},
        {"seen": 1, "counters": {"pending": 3}},
        {"seen": 1, "counters": {"pending": [[1]]}},
        {"seen": 1, "counters": {"pending": [[1, "x"]]}},
        {"seen": 1, "counters": {"pending": [[1, None]]}},
        {"seen": 1, "counters": {"pending": [[float("nan"), float("nan")]]}},
        {"seen": 1, "counters": {"pending": [[1, float("inf")]]}},
    ],
)
def test_a_damaged_entry_is_forgotten_and_the_others_stand(file, entry):
    write_state(file, {"A": entry, "B": {"seen": NOW, "counters": {"pending": [[NOW, 1]]}}})
    memory = SmartMemory(file)

    assert seen(memory, "A", 0, pending=5)["pending"] == Growth(5, NOW, 5, 0)
    assert seen(memory, "B", 0, pending=5)["pending"] == Growth(1, NOW, 5, 4)
    memory.save(NOW)
    assert set(read_state(file)) == {"A", "B"}


def test_a_clock_that_jumps_is_survived(file):
    """Back and forth; growth is never negative."""
    memory = SmartMemory(file)
    for at_s, count in ((0, 1), (-30 * DAY_S, 2), (300 * DAY_S, 3), (10, 4)):
        assert seen(memory, "A", at_s, pending=count)["pending"].recent >= 0


def test_it_stays_small(file):
    """A counter that grows with every poll for months, and more disks than a machine ever had."""
    memory = SmartMemory(file)
    for poll in range(3000):
        growth = seen(memory, "A", poll * 300.0, within_s=DAY_S, link=poll)["link"]
    for disk in range(1500):
        seen(memory, f"D{disk}", 1e6 + disk, pending=0, reallocated=0)
    memory.save(NOW)

    assert (growth.first, growth.last) == (0, 2999)
    assert growth.recent >= 63
    kept = read_state(file)
    assert len(kept) <= 1024
    assert "D1499" in kept
    assert "A" not in kept
    assert file.stat().st_size < 200_000
