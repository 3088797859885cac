"""What the tracing machine hands on: exact sums over all steps, and the few steps that are kept."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from gpumon.metrics import DURATION_BOUNDS


@dataclass(slots=True)
class Buckets:
    """A cumulative histogram over `DURATION_BOUNDS`, in seconds; count and sum per bucket."""

    min_s: float = float("inf")
    max_s: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BOUNDS) + 1))
    sums: list[float] = field(default_factory=lambda: [0.0] * (len(DURATION_BOUNDS) + 1))

    def add(self, seconds: float) -> None:
        index = bisect_left(DURATION_BOUNDS, seconds)
        self.counts[index] += 1
        self.sums[index] += seconds
        if seconds < self.min_s:
            self.min_s = seconds
        if seconds > self.max_s:
            self.max_s = seconds


@dataclass(slots=True)
class StageTotals:
    """Sums over all steps of one stage; times in nanoseconds. `phase_ns` adds up to `step_ns`."""

    steps: int = 0
    samples: int = 0
    epochs: int = 0
    failures: int = 0
    skipped: int = 0
    assumed: int = 0
    step_ns: int = 0
    first_of_epoch: int = 0
    first_of_epoch_wait_ns: int = 0
    first_of_epoch_step_ns: int = 0
    phase_ns: dict[str, int] = field(default_factory=dict)
    durations: Buckets = field(default_factory=Buckets)
    waits: Buckets = field(default_factory=Buckets)


@dataclass(slots=True)
class Totals:
    """Sums of the whole process, by stage, plus what belongs to no step."""

    stages: dict[str, StageTotals] = field(default_factory=dict)
    background_fetches: int = 0
    loader_startup_ns: int = 0

    def stage(self, name: str) -> StageTotals:
        if name not in self.stages:
            self.stages[name] = StageTotals()
        return self.stages[name]


@dataclass(slots=True)
class Step:
    """One kept step. Times are `time.perf_counter_ns()`.

    `spans` are its parts in time order: (phase, begin, end). `fetches` are the keys of the batches that it
    used: (iterator number, worker id, nth batch of that worker), where known.
    """

    number: int  # 1-based, per process and stage
    stage: str
    epoch: int  # 1-based; 0: unknown
    begin_ns: int
    end_ns: int
    spans: list[tuple[str, int, int]]
    phase_ns: dict[str, int]
    samples: int = 0
    first_of_epoch: bool = False
    failed: str | None = None  # the exception's type
    skipped: bool = False
    assumed: bool = False
    keep_reason: str = "sampled"  # slow, failed, first_of_epoch, sampled
    fetches: list[tuple[int, int, int]] = field(default_factory=list)
