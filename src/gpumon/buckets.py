"""A histogram that costs one list update per value; tracing, collectors and export share it."""

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
