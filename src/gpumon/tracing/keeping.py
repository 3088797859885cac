"""Which steps are kept as examples: slow, failed, first of an epoch, and one a second."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from gpumon.tracing.records import Step

SAMPLE_NS = 1_000_000_000  # one step is kept as an example per export window
WAITING = 2048  # kept steps that wait for the background thread
RECENT = 512  # steps whose median and 95th percentile say what is slow
ENOUGH = 20  # of them, to say so
SLOWEST = 1  # slow steps kept of one run of regular steps: a noisy machine has dozens a second
AT_MOST = {"slow": 1, "failed": 8, "first_of_epoch": 1, "sampled": 8}  # kept per second, stage and reason


class _Slow:
    """From which duration on a step is slow: twice the running median, and past 1.3 times the 95th percentile."""

    __slots__ = ("_new", "_recent", "limit")

    def __init__(self) -> None:
        self.limit = float("inf")
        self._recent: deque[int] = deque(maxlen=RECENT)
        self._new = 0

    def learn(self, durations: Sequence[int]) -> None:
        self._recent.extend(durations[-RECENT:])
        self._new += len(durations)
        if len(self._recent) >= ENOUGH and self._new > len(self._recent) // 4:
            self._new = 0
            ordered = sorted(self._recent)
            self.limit = max(2.0 * ordered[len(ordered) // 2], 1.3 * ordered[int(len(ordered) * 0.95)])


class Keeper:
    """Chooses, and holds what it chose until somebody takes it."""

    def __init__(self, keep: str) -> None:
        self.not_kept = 0
        self._keep = keep
        self._kept: deque[Step] = deque()
        self._slow: dict[str, _Slow] = {}
        self._sample_at: dict[str, int] = {}  # by stage: when the next example is due
        self._counts: dict[tuple[str, str], tuple[int, int]] = {}  # (stage, reason) -> second, kept in it

    def take(self) -> list[Step]:
        return [self._kept.popleft() for _ in range(len(self._kept))]

    def step(self, step: Step) -> None:
        """A step with all of its details; sets its reason and keeps it, or not."""
        if self._keep == "none":
            return
        slow = self._slow.setdefault(step.stage, _Slow())
        duration = step.end_ns - step.begin_ns
        if step.failed is not None:
            step.keep_reason = "failed"
        elif step.first_of_epoch:
            step.keep_reason = "first_of_epoch"
        elif duration > slow.limit:
            step.keep_reason = "slow"
        elif self._keep == "all" or step.end_ns >= self._sample_at.get(step.stage, 0):
            step.keep_reason = "sampled"
        else:
            step.keep_reason = ""
        if step.failed is None:
            slow.learn([duration])
        if step.keep_reason:
            self._add(step)

    def rows(
        self, rows: list[tuple[int, ...]], durations: list[int], ends: Sequence[int], done: int, epoch: int
    ) -> None:
        """Regular training steps, *done* steps after the first."""
        if self._keep == "none":
            return
        slow = self._slow.setdefault("train", _Slow())
        reasons = dict.fromkeys(range(len(rows)), "sampled") if self._keep == "all" else {}
        at = bisect_left(ends, self._sample_at.get("train", 0))
        while at < len(ends):
            reasons[at] = "sampled"
            at = bisect_left(ends, ends[at] + SAMPLE_NS, at + 1)
        if max(durations) > slow.limit:
            chosen = sorted((i for i, ns in enumerate(durations) if ns > slow.limit), key=durations.__getitem__)
            if self._keep != "all":
                self.not_kept += max(0, len(chosen) - SLOWEST)
                chosen = chosen[-SLOWEST:]
            reasons.update((i, "slow") for i in chosen)
        slow.learn(durations)
        for i, reason in sorted(reasons.items()):
            f0, f1, b0, b1, o0, o1, _, samples, end = rows[i]
            spans = [("data.wait", f0, f1), ("forward", f1, b0), ("backward", b0, b1), ("optimizer", o0, o1)]
            phase_ns = {name: to - from_ for name, from_, to in spans}
            phase_ns["other"] = end - f0 - sum(phase_ns.values())
            self._add(Step(done + i + 1, "train", epoch, f0, end, spans, phase_ns, samples, keep_reason=reason))

    def _add(self, step: Step) -> None:
        key = step.stage, step.keep_reason
        second, count = self._counts.get(key, (-1, 0))
        if second != step.end_ns // SAMPLE_NS:
            second, count = step.end_ns // SAMPLE_NS, 0
        if len(self._kept) >= WAITING or (count >= AT_MOST[step.keep_reason] and self._keep != "all"):
            self.not_kept += 1
            return
        self._counts[key] = second, count + 1
        self._sample_at[step.stage] = max(self._sample_at.get(step.stage, 0), step.end_ns + SAMPLE_NS)
        self._kept.append(step)
