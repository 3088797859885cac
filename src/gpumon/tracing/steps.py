"""Steps of this process: what training threads stamp, folded by one background thread into exact sums.

A regular step costs the training a few stores. `drain` sums runs of regular steps by columns; only what is
irregular goes through the boundary rules (`machine.py`).
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gpumon.tracing import stamps as s
from gpumon.tracing.device_time import DeviceTimer
from gpumon.tracing.keeping import Keeper
from gpumon.tracing.machine import Machine
from gpumon.tracing.records import Step, Totals
from gpumon.tracing.stamps import NOBODY, Stamps

INLINE = 4096  # iterators known to fetch in the training thread
TakenFetch = tuple[int, int, int, int, int]
"""A batch taken from worker processes: iterator's serial, generation, idx, begin and end of the wait."""
EVERY_STEP_NS = 5_000_000  # mean step from which on the device time of each is taken: it costs some 20 µs
DEVICE_TIMES = 4096
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """Of the loader that feeds the steps, as set."""

    workers: int | None
    prefetch: int | None
    batch_size: int | None
    persistent: bool | None


class FetchAccount(Protocol):
    """Takes account of fetches in the training thread: `begin` and `end` around one, while `armed`."""

    armed: bool

    def begin(self) -> None: ...
    def end(self, got: bool = True) -> None: ...


class StepTracer:
    """Everything that one `instrument()` knows of steps.

    *keep* says of which steps `take_kept` gives an example with detail: "default" (slow, failed, first of an
    epoch, and one a second), "all", or "none".
    """

    def __init__(self, keep: str = "default") -> None:
        self.on = True
        self.totals = Totals()
        self.settings: dict[int, LoaderSettings] = {}  # by the number that a loader has
        self.on_iterator: list[Callable[[Any, int], None]] = []
        self.inline_account: FetchAccount | None = None  # of fetches in the training thread
        self.account: FetchAccount | None = None  # the same while it wants an account of the next one
        self.fetches: deque[TakenFetch] = deque(maxlen=100_000)
        self.inline: set[int] = set()  # iterators that fetch in the training thread
        self.inline_fetches = (0, 0)  # how many of those fetches there were, and their wall time [ns]
        self.local = threading.local()  # .stamps: the slots of this thread
        self.last = NOBODY  # of the thread that asked last: cheaper to look at than `local`
        self.device_timer: Callable[[], DeviceTimer | None] | None = None
        self.device_times: OrderedDict[int, float] = OrderedDict()  # the latest: begin of the step -> seconds
        self.device_memory: dict[int, dict[str, int]] = {}  # device -> state -> bytes
        self._timed_at = 0.0
        self._pid = os.getpid()
        self._threads: list[tuple[Stamps, Machine]] = []
        self._lock = threading.Lock()
        self._draining = threading.Lock()
        self._keeper = Keeper(keep)
        self._loader: LoaderSettings | None = None
        self._trained = False  # in a thread that is over

    # -- training threads ---------------------------------------------------------------------------

    def stamps(self) -> Stamps:
        """The slots of this thread."""
        found: Stamps | None = getattr(self.local, "stamps", None)
        if found is None:
            found = self._caller() or self._add()
            self.local.stamps, self.local.leaving = found, _Leaving(self)
        if self.on:
            self.last = found
        return found

    def _add(self) -> Stamps:
        stamps = Stamps()
        machine = Machine(self.totals, self._count, lambda: self._trains_beside(stamps))
        with self._lock:
            self._threads.append((stamps, machine))
        return stamps

    def _caller(self) -> Stamps | None:
        """The slots of the thread whose backward this thread of autograd's runs: it waits meanwhile."""
        if threading.get_ident() in threading._active:  # type: ignore[attr-defined]
            return None
        callers = [stamps for stamps, _ in list(self._threads) if stamps.is_in_backward]
        return callers[0] if len(callers) == 1 else None

    def stop(self) -> None:
        """Stamp nothing any more; who looks at `last` asks whether we are `on`."""
        self.on = False
        self.last = NOBODY

    def next_number(self) -> int:
        """A number for an iteration over a loader; no other tracer of this process gives it too."""
        return next(_numbers)

    @property
    def loader(self) -> LoaderSettings | None:
        """Of the loader that fed the last step."""
        for _, machine in reversed(list(self._threads)):
            for loader in machine.decider.previous:
                if loader in self.settings:
                    self._loader = self.settings[loader]
                    return self._loader
        return self._loader

    @property
    def waiting(self) -> bool:
        """Whether a thread is inside a fetch now."""
        return any(stamps.in_fetch for stamps, _ in list(self._threads))

    # -- background thread --------------------------------------------------------------------------

    def drain(self) -> None:
        """Fold what the training threads stored since the last call."""
        with self._draining:
            self._time_device()
            if self.inline_account is not None and self.inline_account.armed:
                self.account = self.inline_account
            for stamps, machine in list(self._threads):
                is_over = not stamps.thread.is_alive()
                log = stamps.log
                if count := len(log):
                    taken = log[:count]
                    del log[:count]
                    self._fold(machine, taken)
                if is_over:
                    self._end(stamps, machine)
                    self._loader = self.loader
                    self._trained = self._trained or machine.trains
                    with self._lock:
                        self._threads.remove((stamps, machine))

    def take_kept(self) -> list[Step]:
        return self._keeper.take()

    @property
    def not_kept(self) -> int:
        """Steps that were worth keeping, and were too many to keep."""
        return self._keeper.not_kept

    def take_fetches(self) -> list[TakenFetch]:
        return [self.fetches.popleft() for _ in range(len(self.fetches))]

    def finish(self) -> None:
        """Close what is open: at the exit, or when nothing is stamped any more."""
        if os.getpid() != self._pid:
            return
        self.drain()
        with self._draining:
            for stamps, machine in list(self._threads):
                self._end(stamps, machine)

    def _time_device(self) -> None:
        """Ask for the device time of one step a second, of every step where steps are long; add what came."""
        timer = self.device_timer
        if timer is None:
            return
        train = self.totals.stage("train")
        is_long = train.step_ns > EVERY_STEP_NS * train.steps > 0
        is_due = time.monotonic() - self._timed_at >= 1.0
        self._timed_at = time.monotonic() if is_due else self._timed_at
        for stamps, _ in list(self._threads):
            if stamps.gpu is None:
                stamps.gpu = timer()
                continue
            stamps.gpu.every = is_long
            stamps.gpu.wanted = stamps.gpu.wanted or is_due
            self.device_memory.update(stamps.gpu.memory)
            while stamps.gpu.done:
                timed = stamps.gpu.done.popleft()
                train.gpu_steps += 1
                train.gpu_s += timed.seconds
                for phase, seconds in timed.phases.items():
                    train.gpu_phase_s[phase] = train.gpu_phase_s.get(phase, 0.0) + seconds
                self.device_times[timed.begin_ns] = timed.seconds
                if len(self.device_times) > DEVICE_TIMES:
                    self.device_times.popitem(last=False)

    def _end(self, stamps: Stamps, machine: Machine) -> None:
        stamps.flush()
        taken = stamps.log[:]
        del stamps.log[: len(taken)]
        self._fold(machine, taken)
        machine.finish(time.perf_counter_ns())

    def _trains_beside(self, own: Stamps) -> bool:
        return self._trained or any(machine.trains for stamps, machine in list(self._threads) if stamps is not own)

    def _count_inline(self, walls: list[int]) -> None:
        self.inline_fetches = (self.inline_fetches[0] + len(walls), self.inline_fetches[1] + sum(walls))
        if len(self.inline) > INLINE:
            newest = max(self.inline)
            self.inline = {number for number in self.inline if number > newest - INLINE // 4}

    def _fold(self, machine: Machine, taken: list[tuple[Any, ...]]) -> None:
        index, count = 0, len(taken)
        while index < count:
            item = taken[index]
            if len(item) != s.ROW or not machine.accepts(item[0], item[6]):
                self._feed(machine, item)
                index += 1
                continue
            until = index + 1
            while until < count and len(taken[until]) == s.ROW:
                it = taken[until][6]
                if it != item[6] and not machine.iterations.fed(it):
                    break  # a first batch is judged by the rules
                until += 1
            self._sum(machine, taken[index:until])
            index = until

    def _feed(self, machine: Machine, item: tuple[Any, ...]) -> None:
        """What is irregular."""
        if len(item) == s.ROW:
            it, wall = item[6], item[1] - item[0]
        elif item[0] == s.FETCH and item[3] is None:
            it, wall = item[4], item[2] - item[1]
        elif item[0] == s.BEGIN:
            it, wall = item[6], item[2] - item[1]
        else:
            it = None
        if it in self.inline:
            self._count_inline([wall])
        machine.feed(item)

    def _sum(self, machine: Machine, rows: list[tuple[int, ...]]) -> None:
        """Sum regular steps by columns."""
        f0, f1, b0, b1, o0, o1, its, samples, ends = zip(*rows, strict=True)
        stage = self.totals.stage("train")
        begin_sum = sum(f0)
        total = sum(ends) - begin_sum
        phases = {
            "data.wait": sum(f1) - begin_sum,
            "forward": sum(b0) - sum(f1),
            "backward": sum(b1) - sum(b0),
            "optimizer": sum(o1) - sum(o0),
        }
        phases["other"] = total - sum(phases.values())
        durations = [end - begin for end, begin in zip(ends, f0, strict=True)]
        self._keeper.rows(rows, durations, ends, stage.steps, machine.epoch)
        stage.steps += len(rows)
        stage.samples += sum(samples)
        stage.step_ns += total
        for name, ns in phases.items():
            stage.phase_ns[name] = stage.phase_ns.get(name, 0) + ns
        stage.durations.add_ns(durations)
        waits = [end - begin for end, begin in zip(f1, f0, strict=True)]
        stage.waits.add_ns(waits)
        if not self.inline.isdisjoint(its):
            self._count_inline([wall for it, wall in zip(its, waits, strict=True) if it in self.inline])
        machine.sum(its, ends[-1])

    def _count(self, step: Step) -> None:
        """Add a step of the machine's; keep it where it is worth it."""
        stage = self.totals.stage(step.stage)
        if step.failed is None:
            duration = step.end_ns - step.begin_ns
            wait = step.phase_ns.get("data.wait")
            if step.skipped:
                stage.skipped += 1
            else:
                stage.steps += 1
            stage.samples += step.samples
            stage.assumed += step.assumed
            stage.step_ns += duration
            for name, ns in step.phase_ns.items():
                stage.phase_ns[name] = stage.phase_ns.get(name, 0) + ns
            stage.durations.add(duration / 1e9)
            if wait is not None:
                stage.waits.add(wait / 1e9)
            if step.first_of_epoch:
                stage.first_of_epoch += 1
                stage.first_of_epoch_wait_ns += wait or 0
                stage.first_of_epoch_step_ns += duration
        else:
            stage.failures += 1
        self._keeper.step(step)


class _Leaving:
    """Lies in a thread's local storage, which goes before its ident can be another thread's."""

    def __init__(self, tracer: StepTracer) -> None:
        self._tracer = tracer

    def __del__(self) -> None:
        self._tracer.last = NOBODY
