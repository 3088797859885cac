"""Records of fetches in shared memory, and how they become accounts."""

import multiprocessing
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from gpumon.system.datasets import DATASETS
from gpumon.system.processes import WORKERS
from gpumon.system.storage import StorageMap
from gpumon.tracing import fetch_ring
from gpumon.tracing.accounts import FetchAccounts
from gpumon.tracing.blocked import WaitPoints
from gpumon.tracing.fetch_folder import FetchFolder
from gpumon.tracing.fetch_ring import CAPACITY, RingReader, RingWriter, ThreadClock
from gpumon.tracing.fetch_sampler import FetchSampler
from gpumon.tracing.inline_fetches import InlineFetches

fork = multiprocessing.get_context("fork")


class Tracer:
    waiting = True
    inline_fetches = (0, 0)


def burn(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(200))


def reader(folder):
    (path,) = Path(folder).iterdir()
    return RingReader(path)


def in_child(function, *arguments):
    """Run *function* in a forked process, to its end."""
    child = fork.Process(target=function, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == 0


# -- the ring -------------------------------------------------------------------------------------------


def test_record(tmp_path):
    """A fetch that computes and sleeps has its wall and CPU time, and the key of its batch."""
    writer = RingWriter(str(tmp_path), worker_id=3, serial=7)
    before = time.perf_counter_ns()
    writer.next_generation()
    around = time.thread_time_ns()
    writer.begin(5)
    burn(0.02)
    time.sleep(0.02)
    writer.end()
    around = time.thread_time_ns() - around
    ring = reader(tmp_path)
    (fetch,) = ring.read()

    assert (fetch.idx, fetch.generation) == (5, 1)
    assert (ring.identity.pid, ring.identity.worker_id, ring.identity.serial) == (os.getpid(), 3, 7)
    assert ring.identity.thread == threading.get_native_id()
    assert before < fetch.begin_ns < fetch.end_ns < time.perf_counter_ns()
    assert 0.02e9 <= fetch.cpu_ns <= around
    assert fetch.end_ns - fetch.begin_ns >= fetch.cpu_ns + 0.02e9
    assert ring.read() == []


def test_fetch_in_progress(tmp_path):
    """The header says who is inside a fetch, and since when."""
    writer = RingWriter(str(tmp_path), 0, 0)
    ring = reader(tmp_path)
    assert ring.fetch_begin_ns() == 0
    writer.begin(0)
    assert 0 < ring.fetch_begin_ns() <= time.perf_counter_ns()
    writer.end()
    assert ring.fetch_begin_ns() == 0
    writer.begin(1)
    writer.drop()
    assert ring.fetch_begin_ns() == 0
    assert len(ring.read()) == 1


def test_overwritten_records_are_counted(tmp_path):
    """A reader that comes late reads the last records and says how many are missing."""
    writer = RingWriter(str(tmp_path), 0, 0)
    ring = reader(tmp_path)
    for idx in range(CAPACITY + 10):
        writer.begin(idx)
        writer.end()
    fetches = ring.read()

    assert [fetch.idx for fetch in fetches] == list(range(10, CAPACITY + 10))
    assert ring.lost == 10


def test_reading_while_writing(tmp_path):
    """Whatever a reader sees beside a fast writer is a whole record, in order, read or counted as lost."""

    def write():
        writer = RingWriter(str(tmp_path), 0, 0)
        for idx in range(30_000):
            writer.begin(idx)
            writer.end()

    child = fork.Process(target=write)
    child.start()
    while not list(tmp_path.glob("*" + fetch_ring.SUFFIX)):
        assert child.is_alive()
    ring = reader(tmp_path)
    seen = []
    while not ring.has_ended():
        seen += [fetch.idx for fetch in ring.read()]
        time.sleep(0.001)
    seen += [fetch.idx for fetch in ring.read()]
    child.join()

    assert seen == sorted(set(seen))
    assert len(seen) + ring.lost == 30_000
    assert len(seen) > CAPACITY


def test_end_of_a_worker(tmp_path):
    """A worker that closed its ring, or is gone, will write no more."""
    writer = RingWriter(str(tmp_path), 0, 0)
    ring = reader(tmp_path)
    assert not ring.has_ended()
    writer.close()
    assert ring.has_ended()
    ring.close(remove=True)
    assert list(tmp_path.iterdir()) == []

    in_child(lambda: RingWriter(str(tmp_path), 0, 0).begin(0))
    assert reader(tmp_path).has_ended()


@pytest.mark.disk
def test_full_memory(tmp_path):
    """A full /dev/shm is an error when the worker starts, and not its death at some record."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path)], check=True)
    try:
        with pytest.raises(OSError, match="No space"):
            RingWriter(str(tmp_path), 0, 0)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_no_file_that_is_not_a_ring(tmp_path):
    """A foreign file is refused."""
    (tmp_path / "x.fetches").write_bytes(bytes(fetch_ring.SIZE))
    with pytest.raises(ValueError, match="not a ring"):
        reader(tmp_path)


def test_run_queue(tmp_path):
    """Time that a thread wanted a CPU and had none has its own figure: with CPU time, the whole wall time."""

    def share(queue):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        clock = ThreadClock()
        begin, cpu, runnable = time.perf_counter_ns(), time.thread_time_ns(), clock.runnable_ns()
        burn(0.3)
        queue.put(
            (
                time.perf_counter_ns() - begin,
                time.thread_time_ns() - cpu,
                clock.runnable_ns() - runnable,
            )
        )

    queue = fork.SimpleQueue()
    children = [fork.Process(target=share, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    for _child in children:
        wall, cpu, runnable = queue.get()
        assert cpu + runnable == pytest.approx(wall, rel=0.05)
        assert runnable > 0.05e9
    for child in children:
        child.join()


# -- the folder -----------------------------------------------------------------------------------------


def test_stale_folders(tmp_path):
    """Folders of ended processes are removed; those of living ones and foreign ones stay."""
    living = FetchFolder((tmp_path,))
    in_child(lambda: FetchFolder((tmp_path,)))  # a forked process ends without clean-up
    (stale,) = set(tmp_path.iterdir()) - {living.path}
    foreign = tmp_path / "other"
    foreign.mkdir()
    young = FetchFolder((tmp_path,))
    assert stale.exists()  # it may belong to a process that is about to lock it

    for folder in tmp_path.iterdir():
        os.utime(folder, (0, 0))
    newest = FetchFolder((tmp_path,))
    assert set(tmp_path.iterdir()) == {living.path, young.path, newest.path, foreign}
    for folder in (living, young, newest):
        folder.remove()
    assert set(tmp_path.iterdir()) == {foreign}


def test_forked_copy_removes_nothing(tmp_path):
    """A child's copy of the folder leaves it alone."""
    folder = FetchFolder((tmp_path,))
    in_child(folder.remove)
    assert folder.path.exists()
    folder.remove()


def test_second_choice_of_a_folder(tmp_path):
    """Where the first place is not possible the next is taken."""
    folder = FetchFolder((tmp_path / "missing", tmp_path))
    assert folder.path.parent == tmp_path
    folder.remove()


# -- fetches in the training thread ---------------------------------------------------------------------


def test_each_long_fetch_has_an_account():
    """The first take that finds long fetches has all the following ones accounted."""
    inline = InlineFetches()
    count = 0
    for _round in range(2):
        for _fetch in range(3):
            count += 1
            if inline.armed:
                inline.begin()
                time.sleep(0.002)
                inline.end()
        fetches, _count, _wall_ns = inline.take(count, count * 2_000_000)

    assert len(fetches) == 3
    assert inline.take(count, count * 2_000_000) == ([], 0, 0)


def test_few_of_short_fetches_have_an_account():
    """Of short fetches one between two takes has an account; the sums are of all of them."""
    inline = InlineFetches()
    for round_ in range(1, 6):
        for _fetch in range(2000):
            if inline.armed:
                inline.begin()
                inline.end()
        fetches, count, wall_ns = inline.take(2000 * round_, 2000 * 1000 * round_)

        assert len(fetches) == 1
        assert (count, wall_ns) == (2000, 2_000_000)


def test_end_of_an_epoch_is_no_fetch():
    """The call that only finds the end is neither counted nor timed."""
    inline = InlineFetches()
    inline.begin()
    inline.end(got=False)
    assert inline.take(0, 0) == ([], 0, 0)
    assert inline.begin_ns == 0


def test_second_training_thread():
    """Another thread is not mixed in, and takes over when the first has ended."""
    inline = InlineFetches()

    def fetch():
        inline.begin()
        time.sleep(0.001)
        inline.end()

    first = threading.Thread(target=lambda: (fetch(), other.start(), other.join()))
    other = threading.Thread(target=fetch)
    first.start()
    first.join()
    assert len(inline.take(1, 1_000_000)[0]) == 1
    while os.path.exists(f"/proc/self/task/{first.native_id}"):
        time.sleep(0.001)
    fetch()
    assert len(inline.take(2, 2_000_000)[0]) == 1
    assert inline.thread == threading.get_native_id()


# -- accounts -------------------------------------------------------------------------------------------


@pytest.fixture
def accounts():
    DATASETS.clear()
    accounts = FetchAccounts(Tracer(), StorageMap())
    accounts.start()
    yield accounts
    accounts.stop()
    assert WORKERS == {}


def test_waits_and_records_are_linked(accounts):
    """Ready age and hand-over come from the time between a record's end and the taking of its batch."""

    def work(folder):
        writer = RingWriter(folder, 0, serial=4)
        for idx in range(3):
            writer.begin(idx)
            writer.end()
        writer.close()

    in_child(work, accounts.folder)
    (path,) = Path(accounts.folder).glob("*.fetches")
    ready = [fetch.end_ns for fetch in RingReader(path).read()]
    ms = 1_000_000
    accounts.poll(
        [
            (4, 0, 0, ready[0] - 5 * ms, ready[0] + 7 * ms),  # the first of an epoch: no hand-over
            (4, 0, 1, ready[1] - 5 * ms, ready[1] + 2 * ms),  # waited for, then 2 ms of hand-over
            (4, 0, 2, ready[2] + 30 * ms, ready[2] + 31 * ms),  # lay ready for 30 ms
            (4, 1, 2, 0, 1),  # no such record
        ]
    )

    totals = accounts.totals
    assert sum(totals.ready_age.counts) == 3
    assert totals.ready_age.min_s == 0
    assert totals.ready_age.max_s == pytest.approx(0.03)
    assert totals.handover_s == pytest.approx(0.003)
    assert totals.count == {0: 3}
    assert list(Path(accounts.folder).glob("*.fetches")) == []  # the worker has ended, its file is read


def test_blocked_time_goes_to_what_was_seen(accounts):
    """A worker's blocked time is split as its own looks say, not as another worker's."""
    go = fork.Event()

    def work(folder, worker_id, how):
        writer = RingWriter(folder, worker_id, 0)
        for idx in range(10):
            writer.begin(idx)
            how()
            writer.end()
        writer.close()
        go.wait()

    read, _write = os.pipe()
    import select

    workers = [
        fork.Process(target=work, args=(accounts.folder, 0, lambda: time.sleep(0.15))),
        fork.Process(target=work, args=(accounts.folder, 1, lambda: select.select([read], [], [], 0.15))),
    ]
    for worker in workers:
        worker.start()
    end = time.monotonic() + 20
    while sum(accounts.totals.count.values()) < 20:
        assert time.monotonic() < end
        accounts.poll()
        time.sleep(0.05)
    go.set()
    for worker in workers:
        worker.join()

    time_s = accounts.totals.time_s
    assert time_s["blocked.sleep", "", 0, "", ""] == pytest.approx(1.5, rel=0.05)
    assert time_s["blocked.other", "", 1, "pipe", ""] == pytest.approx(1.5, rel=0.05)


def test_what_nobody_saw_is_said_to_be_unknown(accounts):
    """Blocked time that was not looked at is not put on a guess."""
    accounts._sampler.stop()

    def work(folder):
        writer = RingWriter(folder, 0, 0)
        writer.begin(0)
        time.sleep(0.05)
        writer.end()
        writer.close()

    in_child(work, accounts.folder)
    accounts.poll()
    assert accounts.totals.time_s["blocked.other", "", 0, "unknown", ""] == pytest.approx(0.05, rel=0.2)


def test_no_folder_at_all(monkeypatch):
    """Without any place for records there are accounts of the training thread still, and a reason."""
    from gpumon.tracing import accounts as module

    def full(*_arguments):
        raise OSError("no space")

    monkeypatch.setattr(module, "FetchFolder", full)
    accounts = FetchAccounts(Tracer(), StorageMap())
    accounts.start()
    assert accounts.folder is None
    assert "no space" in accounts.missing
    accounts.inline.begin()
    time.sleep(0.002)
    accounts.inline.end()
    accounts.tracer.inline_fetches = (1, 2_000_000)
    accounts.poll(everything=True)
    assert accounts.totals.count == {-1: 1}
    accounts.stop()


def test_helpers_are_looked_at_within_limits():
    """However many threads a worker has, one tick looks at a limited number."""
    code = """
        import threading
        for _ in range(60):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        print("ready", flush=True)
        threading.Event().wait()
    """
    import sys
    import textwrap

    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"ready\n"
        points = WaitPoints(StorageMap())
        kept = []
        sampler = FetchSampler(
            points, lambda: [(child.pid, child.pid, 1)], lambda: True, lambda *seen: kept.append(seen)
        )
        end = time.monotonic() + 10
        while not kept:
            assert time.monotonic() < end
            sampler.tick(0.1)
        assert points.reads <= 16
        assert kept[0][2].call == "futex"
        points.close()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
