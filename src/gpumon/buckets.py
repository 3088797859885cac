"""A histogram that costs one list update per value; tracing, collectors and export share it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
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

    def add_ns(self, nanoseconds: Sequence[int]) -> None:
        """Add many durations at once: one sort and one look-up per bucket, not per value."""
        if not nanoseconds:
            return
        ordered = sorted(nanoseconds)
        low = 0
        while low < len(ordered):
            index = bisect_left(DURATION_BOUNDS, ordered[low] / 1e9)
            bound = DURATION_BOUNDS[index] * 1e9 if index < len(DURATION_BOUNDS) else float("inf")
            high = bisect_right(ordered, bound, low + 1)
            self.counts[index] += high - low
            self.sums[index] += sum(ordered[low:high]) / 1e9
            low = high
        self.min_s = min(self.min_s, ordered[0] / 1e9)
        self.max_s = max(self.max_s, ordered[-1] / 1e9)
