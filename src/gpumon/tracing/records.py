"""What the tracing machine hands on: exact sums over all steps, and the few steps that are kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpumon.buckets import Buckets as Buckets  # re-exported


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
    gpu_steps: int = 0  # whose device time was taken
    gpu_s: float = 0.0
    gpu_phase_s: dict[str, float] = field(default_factory=dict)


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


@dataclass(slots=True)
class FetchTotals:
    """Sums over all fetches of batches; who fetched is a DataLoader's worker id, -1 the training thread.

    `time_s` is keyed (account, device, worker id, call, file system), "" where that says nothing: each second
    of a fetch is in exactly one account, so that the accounts add up to the fetches' wall time.
    `read_bytes` is keyed by device, "" where unknown. `handover_s` is the part of waits after the batch was
    ready in its worker, without the first batches of epochs.
    """

    count: dict[int, int] = field(default_factory=dict)
    time_s: dict[tuple[str, str, int, str, str], float] = field(default_factory=dict)
    read_bytes: dict[str, int] = field(default_factory=dict)
    ready_age: Buckets = field(default_factory=Buckets)
    handover_s: float = 0.0
    lost: int = 0
