"""The process collector: real processes, summed by role."""

import contextlib
import os
import subprocess
import sys
import time

import pytest

from gpumon import metrics as m
from gpumon.collectors.process import ProcessCollector
from gpumon.errors import NoDataError
from readings import Readings

SERVER = """
import subprocess, sys, time

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

children = {}
for line in sys.stdin:
    verb, *words = line.split()
    if verb == "burn":
        burn(float(words[0]))
    if verb == "start":
        children[words[0]] = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        print(children[words[0]].pid, flush=True)
        continue
    if verb == "tell":
        child = children[words[0]]
        child.stdin.write(" ".join(words[1:]) + "\\n"); child.stdin.flush()
        child.stdout.readline()
    if verb == "end":
        children[words[0]].stdin.close(); children[words[0]].wait()
    if verb == "read":
        open("/dev/zero", "rb", 0).read(int(words[0]))
    print("done", flush=True)
"""


class Tree:
    """A process that burns CPU, reads, and has children, as it is told."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def say(self, text):
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self):
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture
def tree():
    tree = Tree()
    yield tree
    tree.close()


def cpu(found, role):
    return sum(reading.value for reading in found.of(m.PROCESS_CPU_TIME) if role in reading.attributes.values())


def test_trainer_and_workers_are_told_apart(tree):
    """Both are summed over their processes; a worker's children are the worker's."""
    worker = int(tree.say("start w"))
    tree.say("start helper")
    tree.say("burn 0.2")
    tree.say("tell w burn 0.5")
    source = ProcessCollector(root_pid=tree.pid, workers={worker: 0})

    found = Readings(source.collect())

    assert found.value(m.PROCESS_COUNT, "trainer") == 2
    assert found.value(m.PROCESS_COUNT, "loader_worker") == 1
    assert 0.5 <= cpu(found, "loader_worker") <= 0.8
    assert 0.2 <= cpu(found, "trainer") <= 0.6
    assert found.value(m.PROCESS_THREAD_COUNT, "loader_worker") == 1
    assert 1 << 20 < found.value(m.PROCESS_MEMORY_USAGE, "loader_worker") < 1 << 30
    assert found.value(m.PROCESS_PAGING_FAULTS, "loader_worker", "minor") > 0
    assert found.value(m.PROCESS_RUNQUEUE_TIME, "trainer") >= 0


def test_what_a_worker_did_before_its_end_is_kept(tree):
    """Also what it did after the last look: the kernel adds it to its parent's account."""
    worker = int(tree.say("start w"))
    source = ProcessCollector(root_pid=tree.pid, workers={worker: 0})
    before = Readings(source.collect())
    trainer = cpu(before, "trainer")
    tree.say("tell w burn 0.4")
    tree.say(f"tell w read {30 << 20}")
    tree.say("end w")

    for _look in range(4):
        after = Readings(source.collect())

    assert after.value(m.PROCESS_COUNT, "loader_worker") is None
    assert 0.38 <= cpu(after, "loader_worker") - cpu(before, "loader_worker") <= 0.6
    assert cpu(after, "trainer") - trainer < 0.1
    assert after.value(m.PROCESS_READ, "loader_worker") >= 30 << 20
    assert after.value(m.PROCESS_READ, "trainer") < 30 << 20


def test_nothing_is_counted_twice(tree):
    """CPU and reads that were seen while the child lived are not seen again when its parent inherits them."""
    tree.say("start helper")
    tree.say("tell helper burn 0.4")
    tree.say(f"tell helper read {30 << 20}")
    source = ProcessCollector(root_pid=tree.pid, workers={})
    before = Readings(source.collect())
    tree.say("end helper")

    for _look in range(4):
        after = Readings(source.collect())

    assert 0 <= cpu(after, "trainer") - cpu(before, "trainer") < 0.15
    read = after.value(m.PROCESS_READ, "trainer") - before.value(m.PROCESS_READ, "trainer")
    assert 0 <= read < 1 << 20


def test_short_lived_children_are_counted(tree):
    """One that starts, works and ends between two looks."""
    source = ProcessCollector(root_pid=tree.pid, workers={})
    before = Readings(source.collect())
    tree.say("start helper")
    tree.say("tell helper burn 0.3")
    tree.say("end helper")

    after = Readings(source.collect())

    assert 0.3 <= cpu(after, "trainer") - cpu(before, "trainer") <= 0.6


def test_counters_grow_whatever_ends(tree):
    """Workers of epoch after epoch come and go."""
    workers = {}
    source = ProcessCollector(root_pid=tree.pid, workers=workers)
    last = {}
    for epoch in range(5):
        workers.clear()
        workers[int(tree.say(f"start w{epoch}"))] = 0
        tree.say(f"tell w{epoch} burn 0.05")
        for reading in source.collect():
            if reading.metric.kind == "counter":
                key = (reading.metric.name, tuple(reading.attributes.items()))
                assert reading.value >= last.get(key, 0), key
                last[key] = reading.value
        tree.say(f"end w{epoch}")
    found = Readings(source.collect())

    assert cpu(found, "loader_worker") >= 0.25


def test_other_systems_say_why_they_say_nothing(tmp_path):
    """No /proc."""
    with pytest.raises(NoDataError, match="/proc"):
        list(ProcessCollector(proc=str(tmp_path)).collect())


def test_a_collection_is_cheap(tree):
    """Five processes: less than a millisecond of CPU, here with a margin for a busy machine."""
    workers = {int(tree.say(f"start w{number}")): number for number in range(4)}
    source = ProcessCollector(root_pid=tree.pid, workers=workers)
    list(source.collect())
    began = time.thread_time()
    for _repeat in range(50):
        list(source.collect())

    assert (time.thread_time() - began) / 50 < 0.003
    assert os.getpid() not in workers
