"""Quantiles of step durations from the buckets of their histogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpumon.analysis.rows import Execute, query


def durations(execute: Execute, instances: set[str]) -> dict[str, float | None]:
    """`p50`, `p95` (interpolated in their bucket) and `max` (exact) of all training steps."""
    rows = query(
        execute,
        "select instance, counts, bounds, minimum, maximum from stg_histograms "
        "where metric = 'gpumon.step.duration' and stage = 'train'",
    )
    rows = [row for row in rows if row["instance"] in instances and row["counts"]]
    if not rows:
        return {"p50": None, "p95": None, "max": None}
    bounds = rows[0]["bounds"]
    same = [row for row in rows if row["bounds"] == bounds]  # an application's views may differ by process
    counts = [sum(column) for column in zip(*(row["counts"] for row in same), strict=True)]
    lowest = min((row["minimum"] for row in same if row["minimum"] is not None), default=None)
    highest = max((row["maximum"] for row in rows if row["maximum"] is not None), default=None)
    return {
        "p50": quantile(0.5, counts, bounds, lowest, highest),
        "p95": quantile(0.95, counts, bounds, lowest, highest),
        "max": highest if highest is not None else quantile(1.0, counts, bounds, lowest, highest),
    }


def quantile(
    q: float, counts: Sequence[int], bounds: Sequence[float], lowest: float | None, highest: float | None
) -> float | None:
    """The *q*-quantile, straight-line within its bucket; never outside of [lowest, highest]."""
    total = sum(counts)
    if not total:
        return None
    wanted, before = q * total, 0
    for place, count in enumerate(counts):
        if count and before + count >= wanted:
            low, high = _edges(place, bounds, lowest, highest)
            return low + (high - low) * min(1.0, max(0.0, (wanted - before) / count))
        before += count
    return highest


def _edges(place: int, bounds: Sequence[float], lowest: Any, highest: Any) -> tuple[float, float]:
    low = bounds[place - 1] if place else 0.0
    high = bounds[place] if place < len(bounds) else (highest if highest is not None else low)
    if lowest is not None:
        low = max(low, min(lowest, high))
    if highest is not None:
        high = min(high, max(highest, low))
    return low, high
