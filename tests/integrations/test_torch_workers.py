"""Accounts of fetches from real DataLoaders: whose time they were, and that nothing of the loader changed."""

import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import worker as torch_worker

from gpumon.integrations import torch_workers
from gpumon.system.datasets import DATASETS
from gpumon.system.processes import WORKERS
from gpumon.system.storage import StorageMap
from gpumon.tracing.accounts import FetchAccounts
from loader_datasets import Deadly, Faulty, Files, Random, Stream, Timed, spanned

pytestmark = pytest.mark.alone

ORIGINAL = torch_worker._worker_loop


class Trainer:
    """A training thread: what a tracer tells the accounts, without patches."""

    def __init__(self):
        self.waiting = False
        self.account = None
        self.inline_fetches = (0, 0)
        self.on_iterator = []
        self.taken = deque()
        self.serial = -1
        self.generation = 0

    def batches(self, loader, generation=0):
        """Iterate as a loop does; what it took is in `taken`."""
        if not generation:
            self.serial += 1
        for hook in self.on_iterator:
            hook(loader, self.serial)
        iterator = iter(loader)
        idx = 0
        while True:
            self.waiting = True
            inline = self.account if loader.num_workers == 0 else None
            account = inline if inline is not None and inline.armed else None
            if account is not None:
                account.begin()
            begin = time.perf_counter_ns()
            got = False
            try:
                batch = next(iterator)
                got = True
            except StopIteration:
                return
            finally:
                end = time.perf_counter_ns()
                if account is not None:
                    account.end(got=got)
                if loader.num_workers == 0 and got:
                    count, wall_ns = self.inline_fetches
                    self.inline_fetches = (count + 1, wall_ns + end - begin)
                self.waiting = False
            self.taken.append((self.serial, generation, idx, begin, end))
            idx += 1
            yield batch


class Recorder:
    """Instrumented, and polled by a thread as in a run."""

    def __init__(self):
        self.trainer = Trainer()
        self.accounts = FetchAccounts(self.trainer, StorageMap())
        self._stop = threading.Event()
        self._polling = threading.Lock()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self.polls = 0

    def __enter__(self):
        self.accounts.start()
        torch_workers.instrument(self.accounts)
        self.folder = self.accounts.folder
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        torch_workers.uninstrument()
        self.poll(everything=True)
        self.accounts.stop()

    def _poll(self):
        while not self._stop.wait(0.1):
            self.poll()
            self.polls += 1

    def poll(self, everything=False):
        """Hand on what was taken; one at a time, so that nothing is still on its way when a test looks."""
        with self._polling:
            taken = [self.trainer.taken.popleft() for _ in range(len(self.trainer.taken))]
            self.accounts.poll(taken, everything=everything)

    @property
    def totals(self):
        return self.accounts.totals

    def by_account(self):
        sums = {}
        for (account, _device, _worker, _call, _file_system), seconds in self.totals.time_s.items():
            sums[account] = sums.get(account, 0.0) + seconds
        whole = sum(sums.values())
        return {account: seconds / whole for account, seconds in sums.items()}


@pytest.fixture
def recorder():
    DATASETS.clear()
    with Recorder() as recorder:
        yield recorder
    assert torch_worker._worker_loop is ORIGINAL
    assert WORKERS == {}
    assert not os.path.exists(recorder.folder)
    DATASETS.clear()


def finish(recorder):
    """End the recording, so that totals are final."""
    gc.collect()  # an iterator's workers end when it goes
    recorder.poll(everything=True)


def stopwatch_s(batches):
    """Time of fetches by the clock of data set and `spanned`."""
    return sum(end - begin for begin, end in batches) / 1e9


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_accounts_add_up(recorder, context):
    """With every start method each fetch has a record, and the accounts add up to the wall time."""
    loader = DataLoader(Timed(96, sleep_s=0.01), 4, num_workers=2, collate_fn=spanned, multiprocessing_context=context)
    batches = list(recorder.trainer.batches(loader))
    finish(recorder)

    assert recorder.totals.count == {0: 12, 1: 12}
    assert sum(recorder.totals.time_s.values()) == pytest.approx(stopwatch_s(batches), rel=0.02)
    assert recorder.totals.lost == 0
    assert sum(recorder.totals.ready_age.counts) == 24
    assert recorder.by_account()["blocked.sleep"] > 0.7


def test_burning_data_set_is_cpu(recorder):
    """Fetches that compute are on the accounts cpu and runnable."""
    loader = DataLoader(Timed(60, burn_s=0.01), batch_size=4, num_workers=2, collate_fn=spanned)
    batches = list(recorder.trainer.batches(loader))
    finish(recorder)

    shares = recorder.by_account()
    assert shares["cpu"] + shares.get("runnable", 0.0) > 0.95
    assert recorder.totals.time_s["cpu", "", 0, "", ""] == pytest.approx(0.3, rel=0.1)
    assert sum(recorder.totals.time_s.values()) == pytest.approx(stopwatch_s(batches), rel=0.02)


@pytest.mark.disk
@pytest.mark.parametrize("workers", [0, 3])
def test_slow_disk(recorder, slow_disk, workers):
    """Fetches from a slow disk are blocked on that disk, with the bytes read; the disk holds a data set."""
    for number in range(120):
        (slow_disk.path / f"{number:04}.bin").write_bytes(os.urandom(1 << 16))
    slow_disk.drop_caches()
    slow_disk.set_delay(0.02)
    loader = DataLoader(Files(slow_disk.path), batch_size=4, num_workers=workers, collate_fn=spanned)
    batches = list(recorder.trainer.batches(loader))
    finish(recorder)

    assert recorder.by_account()["blocked.disk"] > 0.85
    on_disk = [key for key in recorder.totals.time_s if key[0] == "blocked.disk"]
    assert {device for _account, device, *_rest in on_disk} == {slow_disk.device}
    assert recorder.totals.read_bytes.keys() == {slow_disk.device}
    assert recorder.totals.read_bytes[slow_disk.device] == pytest.approx(120 << 16, rel=0.2)
    assert sum(recorder.totals.time_s.values()) == pytest.approx(stopwatch_s(batches), rel=0.02)
    assert [storage.device for storage in DATASETS.storages()] == [slow_disk.device]
    assert DATASETS.paths() == [str(slow_disk.path)]


@pytest.mark.disk
def test_slow_mount_without_workers(recorder, slow_mount):
    """Fetches of the training thread itself from a FUSE file system are blocked on it, by its type."""
    for number in range(60):
        (slow_mount.path / f"{number:04}.bin").write_bytes(os.urandom(1 << 12))
    slow_mount.set_delay(0.02)
    loader = DataLoader(Files(slow_mount.path), batch_size=4)
    list(recorder.trainer.batches(loader))
    slow_mount.set_delay(0.0)
    finish(recorder)

    key = max(recorder.totals.time_s, key=recorder.totals.time_s.get)
    assert key == ("blocked.network_fs", "", -1, "", "fuse.gpumon")
    assert recorder.totals.count == {-1: 15}


def test_persistent_workers(recorder):
    """Workers that stay serve several epochs; each batch of each epoch is linked to its record."""
    loader = DataLoader(Timed(16), batch_size=4, num_workers=2, persistent_workers=True)
    for epoch in range(3):
        assert len(list(recorder.trainer.batches(loader, epoch))) == 4
        recorder.accounts.poll()
    assert sorted(WORKERS.values()) == [0, 1]
    del loader
    finish(recorder)

    assert sum(recorder.totals.count.values()) == 12
    assert sum(recorder.totals.ready_age.counts) == 12


def test_batches_that_wait_for_the_trainer(recorder):
    """A batch that lay ready before it was asked for has an age; one that was waited for has none."""
    loader = DataLoader(Timed(12, sleep_s=0.005), batch_size=2, num_workers=1, prefetch_factor=2)
    for _batch in recorder.trainer.batches(loader):
        time.sleep(0.05)  # a step
    finish(recorder)

    ages = recorder.totals.ready_age
    assert sum(ages.counts) == 6
    assert ages.min_s == 0.0
    assert 0.02 < ages.max_s < 0.5
    assert 0.0 < recorder.totals.handover_s < 0.1


def test_out_of_order(recorder):
    """With in_order=False each fetch has a record all the same."""
    loader = DataLoader(Timed(32, sleep_s=0.002), 4, num_workers=2, in_order=False, collate_fn=spanned)
    batches = list(recorder.trainer.batches(loader))
    finish(recorder)

    assert sum(recorder.totals.count.values()) == 8
    assert sum(recorder.totals.time_s.values()) == pytest.approx(stopwatch_s(batches), rel=0.03)


def test_iterable_data_set(recorder):
    """The fetch that only finds the end of a stream is no fetch of a batch."""
    batches = list(recorder.trainer.batches(DataLoader(Stream(), batch_size=2, num_workers=2)))
    finish(recorder)

    assert len(batches) == 6
    assert recorder.totals.count == {0: 3, 1: 3}


def test_break_in_an_epoch(recorder):
    """Batches that were fetched ahead and never used are fetches too; they have no age."""
    for epoch in range(3):
        for number, _batch in enumerate(recorder.trainer.batches(DataLoader(Timed(64), 4, num_workers=2))):
            if number == 2:
                break
        gc.collect()
    finish(recorder)

    assert sum(recorder.totals.count.values()) >= 9
    assert sum(recorder.totals.ready_age.counts) == 9


def test_killed_worker(recorder):
    """A worker killed by SIGKILL: the loader raises as it does without us, what it recorded is kept."""
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        for _batch in recorder.trainer.batches(DataLoader(Deadly(), batch_size=1, num_workers=1)):
            pass
    finish(recorder)

    assert recorder.totals.count == {0: 6}


def test_exception_in_the_data_set(recorder):
    """The user's exception passes through with its type and text."""
    with pytest.raises(LookupError, match="sample 3"):
        list(recorder.trainer.batches(DataLoader(Faulty(), batch_size=1, num_workers=1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same(recorder, workers):
    """Values, order and the random state of the trainer and of workers are those of a run without us."""

    def run(batches):
        torch.manual_seed(0)
        random.seed(0)
        values = [(indexes.tolist(), rows.tolist()) for indexes, rows in batches()]
        return values, torch.rand(1).item(), random.random()

    def loader():
        return DataLoader(Random(), batch_size=4, shuffle=True, num_workers=workers)

    recorded = run(lambda: recorder.trainer.batches(loader()))
    torch_workers.uninstrument()

    assert recorded == run(loader)


def test_identical_objects_without_workers(recorder):
    """Without workers the very objects of the data set come through."""
    samples = [object() for _ in range(5)]

    assert list(recorder.trainer.batches(DataLoader(samples, batch_size=None))) == samples
    finish(recorder)
    assert recorder.totals.count == {-1: 5}


def test_short_fetches_without_workers(recorder):
    """Of short fetches only some are accounted for, and their accounts stand for all."""
    loader = DataLoader(Timed(6000, burn_s=0.00005), batch_size=1, collate_fn=spanned)
    batches = list(recorder.trainer.batches(loader))
    finish(recorder)

    assert recorder.totals.count == {-1: 6000}
    shares = recorder.by_account()
    assert shares["cpu"] + shares.get("runnable", 0.0) > 0.8
    assert sum(recorder.totals.time_s.values()) >= stopwatch_s(batches)


def test_fifty_epochs_leave_nothing(recorder):
    """Fifty epochs with new workers each leave no thread, no open file and no file in /dev/shm behind."""

    def state():
        gc.collect()
        recorder.accounts.poll()
        return (
            threading.active_count(),
            len(os.listdir(recorder.folder)),
            len([name for name in os.listdir("/dev/shm") if name.startswith("gpumon-")]),
            len(WORKERS),
        )

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    for _epoch in range(3):
        list(recorder.trainer.batches(DataLoader(Timed(8), batch_size=4, num_workers=2)))
    before, opened = state(), descriptors()
    for _epoch in range(50):
        list(recorder.trainer.batches(DataLoader(Timed(8), batch_size=4, num_workers=2)))

    assert state() == before
    assert descriptors() <= opened + 4  # files of workers that ended are closed at the next look
    finish(recorder)
    assert sum(recorder.totals.count.values()) == 106


def test_workers_run_no_thread_of_ours(recorder):
    """A forked worker has the loader's threads and none of ours."""

    def threads(_batch):
        return [thread.name for thread in threading.enumerate()]

    loader = DataLoader(Timed(4), batch_size=2, num_workers=1, collate_fn=threads)

    assert not [name for batch in recorder.trainer.batches(loader) for name in batch if "gpumon" in name]


def test_another_signature_runs_without_accounts():
    """A loop that we do not know runs untouched, and is put back as it was."""

    def other(*arguments):
        return ORIGINAL(*arguments)

    torch_worker._worker_loop = other
    try:
        with Recorder() as recorder:
            loader = DataLoader(Timed(8), batch_size=4, num_workers=1)
            assert len(list(recorder.trainer.batches(loader))) == 2
            finish(recorder)
            assert recorder.totals.count == {}
        assert torch_worker._worker_loop is other
    finally:
        torch_worker._worker_loop = ORIGINAL


def test_no_room_for_records(tmp_path):
    """Where the folder is gone workers run without accounts."""
    with Recorder() as recorder:
        for name in os.listdir(recorder.folder):
            os.unlink(os.path.join(recorder.folder, name))
        os.rmdir(recorder.folder)
        loader = DataLoader(Timed(8), batch_size=4, num_workers=1)
        assert len(list(recorder.trainer.batches(loader))) == 2


def test_uninstrument_in_the_middle_of_an_epoch(recorder):
    """Running workers go on; workers that start afterwards have no accounts."""
    loader = DataLoader(Timed(16), batch_size=4, num_workers=1)
    for number, _batch in enumerate(recorder.trainer.batches(loader)):
        if number == 1:
            torch_workers.uninstrument()
    assert number == 3
    gc.collect()
    finish(recorder)
    assert recorder.totals.count == {0: 4}

    list(recorder.trainer.batches(loader))
    finish(recorder)
    assert recorder.totals.count == {0: 4}


def test_instrumented_again():
    """After uninstrument and instrument each fetch is counted once, and restored is restored."""
    for _round in range(3):
        with Recorder() as recorder:
            list(recorder.trainer.batches(DataLoader(Timed(8), batch_size=4, num_workers=1)))
            finish(recorder)
            assert recorder.totals.count == {0: 2}
        assert torch_worker._worker_loop is ORIGINAL


def test_wrapped_by_somebody_else():
    """Whoever wraps our loop keeps the wrapper after uninstrument; it then only passes through."""
    with Recorder() as recorder:
        ours = torch_worker._worker_loop

        def wrapper(*args):
            return ours(*args)

        torch_worker._worker_loop = wrapper
        list(recorder.trainer.batches(DataLoader(Timed(8), batch_size=4, num_workers=1)))
        finish(recorder)
        assert recorder.totals.count == {0: 2}
    try:
        assert torch_worker._worker_loop is wrapper
        assert len(list(DataLoader(Timed(8), batch_size=4, num_workers=1))) == 2
    finally:
        torch_worker._worker_loop = ORIGINAL
        torch_workers._replaced.clear()


def test_stateful_loader(recorder):
    """torchdata's StatefulDataLoader, which has a worker loop of its own, has accounts too."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    loader = stateful.StatefulDataLoader(Timed(16, sleep_s=0.002), batch_size=4, num_workers=2)
    assert len(list(recorder.trainer.batches(loader))) == 4
    finish(recorder)
    assert recorder.totals.count == {0: 2, 1: 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_with_the_step_tracer(workers):
    """In a real loop over a real tracer all fetches are accounted for, and all batches linked."""
    from gpumon.integrations import torch as torch_steps
    from gpumon.tracing.steps import StepTracer

    tracer = StepTracer()
    accounts = FetchAccounts(tracer, StorageMap())
    torch_steps.instrument(tracer)
    accounts.start()
    torch_workers.instrument(accounts)
    try:
        data = Timed(16, sleep_s=0.002)
        loader = DataLoader(data, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _epoch in range(3):
            for _batch in loader:
                optimizer.zero_grad()
                model(torch.ones(1, 1)).sum().backward()
                optimizer.step()
        tracer.drain()
        accounts.poll(tracer.take_fetches(), everything=True)
    finally:
        torch_workers.uninstrument()
        torch_steps.uninstrument()
        del loader
        gc.collect()
        accounts.stop()

    totals = accounts.totals
    assert sum(totals.count.values()) == 12
    assert sum(totals.ready_age.counts) == (12 if workers else 0)
    assert sum(totals.time_s.values()) >= 12 * 4 * 0.002
    assert tracer.account is None
    assert tracer.on_iterator == []


def test_killed_run_leaves_no_folder(tmp_path):
    """What a run killed by SIGKILL left in shared memory goes with the next run."""
    code = """
        import os, signal
        from gpumon.system.storage import StorageMap
        from gpumon.tracing.accounts import FetchAccounts
        class Tracer:
            waiting = False
        accounts = FetchAccounts(Tracer(), StorageMap())
        accounts.start()
        print(accounts.folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = done.stdout.strip()
    assert os.path.isdir(folder)
    os.utime(folder, (0, 0))  # it is old by now
    with Recorder():
        assert not os.path.exists(folder)
