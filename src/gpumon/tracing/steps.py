"""Steps of this process: what training threads stamp, folded by one background thread into exact sums.

A regular step costs the training a few stores. `drain` sums runs of regular steps by columns; only what is
irregular goes through the boundary rules (`machine.py`).
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from gpumon.buckets import Buckets
from gpumon.metrics import DURATION_BOUNDS
from gpumon.tracing import stamps as s
from gpumon.tracing.machine import Machine
from gpumon.tracing.records import StageTotals, Step, Totals
from gpumon.tracing.stamps import Stamps

SAMPLE_NS = 1_000_000_000  # one step is kept as an example per export window
KEEP = 2048  # kept steps that wait for the background thread
SLOW_PER_DRAIN = 2  # slow steps kept of one run of regular steps: the slowest; a noisy machine has dozens a second
WINDOW = 512  # recent steps whose median and p95 say what is slow
TakenFetch = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """Of the loader that feeds the steps, as set."""

    workers: int | None
    prefetch: int | None
    batch_size: int | None
    persistent: bool | None


class FetchAccount(Protocol):
    """Takes account of fetches in the training thread: `begin` and `end` while `armed`, else the two sums."""

    armed: bool
    count: int
    wall_ns: int

    def begin(self) -> None: ...
    def end(self, got: bool = True) -> None: ...


class StepTracer:
    """Everything that one `instrument()` knows of steps."""

    def __init__(self, keep: str = "default") -> None:
        self.on = True
        self.totals = Totals()
        self.settings: dict[int, LoaderSettings] = {}  # by the number that a loader has
        self.on_iterator: list[Callable[[Any, int], None]] = []
        self.account: FetchAccount | None = None
        self.fetches: deque[TakenFetch] = deque(maxlen=100_000)
        self.not_kept = 0  # slow steps beyond what is kept
        self._keep = keep
        self._pid = os.getpid()
        self._threads: dict[int, tuple[Stamps, Machine]] = {}
        self._stamps: dict[int, Stamps] = {}
        self._lock = threading.Lock()
        self._kept: deque[Step] = deque(maxlen=KEEP)
        self._recent: dict[str, deque[int]] = {}
        self._limits: dict[str, tuple[float, int]] = {}
        self._sampled: dict[str, int] = {}
        self._numbers = 0

    # -- training threads ---------------------------------------------------------------------------

    def stamps(self) -> Stamps:
        """The slots of this thread."""
        found = self._stamps.get(threading.get_ident())
        if found is None:
            found = Stamps()
            machine = Machine(self.totals, self._count, lambda: self._trains_beside(found))
            with self._lock:
                self._threads[found.thread] = (found, machine)
            self._stamps[found.thread] = found
        return found

    def next_number(self) -> int:
        """A number for an iteration over a loader."""
        self._numbers += 1
        return self._numbers

    @property
    def loader(self) -> LoaderSettings | None:
        """Of the loader that fed the last step."""
        for _, machine in list(self._threads.values()):
            for loader in machine.previous:
                if loader in self.settings:
                    return self.settings[loader]
        return None

    @property
    def waiting(self) -> bool:
        """Whether a thread is inside a fetch now."""
        return any(stamps.in_fetch for stamps in list(self._stamps.values()))

    # -- background thread --------------------------------------------------------------------------

    def drain(self) -> None:
        """Fold what the training threads stored since the last call."""
        with self._lock:
            threads = list(self._threads.values())
        for stamps, machine in threads:
            log = stamps.log
            count = len(log)
            if not count:
                continue
            taken = log[:count]
            del log[:count]
            self._fold(machine, taken)

    def take_kept(self) -> list[Step]:
        return [self._kept.popleft() for _ in range(len(self._kept))]

    def take_fetches(self) -> list[TakenFetch]:
        return [self.fetches.popleft() for _ in range(len(self.fetches))]

    def finish(self) -> None:
        """Close what is open: at the exit, or when nothing is stamped any more."""
        if os.getpid() != self._pid:
            return
        at = time.perf_counter_ns()
        with self._lock:
            threads = list(self._threads.values())
        for stamps, _ in threads:
            stamps.flush()
        self.drain()
        for _, machine in threads:
            machine.finish(at)

    def _trains_beside(self, own: Stamps) -> bool:
        return any(machine.trains for stamps, machine in list(self._threads.values()) if stamps is not own)

    def _fold(self, machine: Machine, taken: list[tuple[Any, ...]]) -> None:
        index, count = 0, len(taken)
        while index < count:
            item = taken[index]
            if len(item) != s.ROW:
                machine.feed(item)
                index += 1
                continue
            until = index
            while until < count and len(taken[until]) == s.ROW:
                until += 1
            # A first batch is judged by the rules; the step before is closed by it too.
            while index < until:
                known = machine.iterators.get(taken[index][6])
                if known is not None and known.fed and (machine.is_clean or self._close_regular(machine, taken[index])):
                    break
                machine.feed(taken[index])
                index += 1
            if index < until:
                index += self._sum(machine, taken[index:until])

    @staticmethod
    def _close_regular(machine: Machine, row: tuple[int, ...]) -> bool:
        """Close the step before a row, where nothing else is undecided; whether the machine is clean then."""
        cur = machine.cur
        if cur is None or machine.pend or machine.open_updates or not cur.updates or machine.evaluating is not None:
            return False
        machine._close_at_fetch(row[0])
        return machine.is_clean

    def _sum(self, machine: Machine, rows: list[tuple[int, ...]]) -> int:
        """Sum regular steps by columns; returns how many of *rows* those were."""
        f0, f1, b0, b1, o0, o1, its, samples, ends = zip(*rows, strict=True)
        numbers = set(its)
        if len(numbers) > 1:
            known = machine.iterators
            fed = next((i for i, it in enumerate(its) if it not in known or not known[it].fed), len(rows))
            if fed < len(rows):
                return self._sum(machine, rows[:fed]) if fed else 0
        stage = self.totals.stage("train")
        begin_sum, n = sum(f0), len(rows)
        total = sum(ends) - begin_sum
        phases = {
            "data.wait": sum(f1) - begin_sum,
            "forward": sum(b0) - sum(f1),
            "backward": sum(b1) - sum(b0),
            "optimizer": sum(o1) - sum(o0),
        }
        phases["other"] = total - sum(phases.values())
        durations = [end - begin for end, begin in zip(ends, f0, strict=True)]
        self._keep_rows(machine, rows, durations, stage.steps)
        stage.steps += n
        stage.samples += sum(samples)
        stage.step_ns += total
        for name, ns in phases.items():
            stage.phase_ns[name] = stage.phase_ns.get(name, 0) + ns
        add_all(stage.durations, durations)
        add_all(stage.waits, [end - begin for end, begin in zip(f1, f0, strict=True)])
        machine.steps += n
        machine.bound = ends[-1]
        machine.trains = machine.backward_ever = machine.update_ever = True
        machine.previous = {machine._loader(its[-1])}
        return n

    def _keep_rows(self, machine: Machine, rows: list[tuple[int, ...]], durations: list[int], done: int) -> None:
        if self._keep == "none":
            return
        slow, enough = self._limit("train", durations)
        chosen = [i for i, ns in enumerate(durations) if ns > slow] if enough and max(durations) > slow else []
        chosen.sort(key=durations.__getitem__)
        self.not_kept += max(0, len(chosen) - SLOW_PER_DRAIN)
        reasons = dict.fromkeys(chosen[-SLOW_PER_DRAIN:], "slow")
        last = len(rows) - 1
        if rows[last][8] - self._sampled.get("train", 0) >= SAMPLE_NS:
            self._sampled["train"] = rows[last][8]
            reasons.setdefault(last, "sampled")
        if self._keep == "all":
            for i in range(len(rows)):
                reasons.setdefault(i, "sampled")
        for i, reason in sorted(reasons.items()):
            f0, f1, b0, b1, o0, o1, _, samples, end = rows[i]
            spans = [("data.wait", f0, f1), ("forward", f1, b0), ("backward", b0, b1), ("optimizer", o0, o1)]
            phase_ns = {name: to - from_ for name, from_, to in spans}
            phase_ns["other"] = end - f0 - sum(phase_ns.values())
            self._kept.append(
                Step(
                    number=done + i + 1, stage="train", epoch=machine.epoch, begin_ns=f0, end_ns=end, spans=spans,
                    phase_ns=phase_ns, samples=samples, keep_reason=reason,
                )  # fmt: skip
            )

    def _limit(self, stage: str, durations: list[int]) -> tuple[float, bool]:
        """(from which duration a step is slow, whether enough steps were seen to say so); learns *durations*."""
        recent = self._recent.setdefault(stage, deque(maxlen=WINDOW))
        limit, known = self._limits.get(stage, (0.0, 0))
        recent.extend(durations[-WINDOW:])
        if len(recent) >= max(20, min(WINDOW, known + known // 4)) or known >= WINDOW:
            ordered = sorted(recent)
            median, p95 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]
            self._limits[stage] = (max(2.0 * median, 1.3 * p95), len(recent))
            if not limit:
                limit = self._limits[stage][0]
        return limit, limit > 0

    def _count(self, step: Step) -> None:
        """Add a step of the machine's; keep it where it is worth it."""
        stage = self.totals.stage(step.stage)
        if step.failed is not None:
            stage.failures += 1
            step.keep_reason = "failed"
            if self._keep != "none":
                self._kept.append(step)
            return
        if step.skipped:
            stage.skipped += 1
        else:
            stage.steps += 1
        duration = step.end_ns - step.begin_ns
        wait = step.phase_ns.get("data.wait")
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
        if self._keep == "none":
            return
        slow, enough = self._limit(step.stage, [duration])
        if step.first_of_epoch:
            step.keep_reason = "first_of_epoch"
        elif enough and duration > slow:
            step.keep_reason = "slow"
        elif self._keep != "all" and step.end_ns - self._sampled.get(step.stage, 0) < SAMPLE_NS:
            return
        self._sampled[step.stage] = step.end_ns
        self._kept.append(step)


def add_all(buckets: Buckets, nanoseconds: list[int]) -> None:
    """Add many durations at once: one sort and one look-up per bound, not per value."""
    ordered = sorted(nanoseconds)
    sums = [0, *accumulate(ordered)]
    low = 0
    for index, bound in enumerate((*(bound * 1e9 for bound in DURATION_BOUNDS), float("inf"))):
        high = bisect_right(ordered, bound)
        if high > low:
            buckets.counts[index] += high - low
            buckets.sums[index] += (sums[high] - sums[low]) / 1e9
            low = high
        if low == len(ordered):
            break
    buckets.min_s = min(buckets.min_s, ordered[0] / 1e9)
    buckets.max_s = max(buckets.max_s, ordered[-1] / 1e9)
