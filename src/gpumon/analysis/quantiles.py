"""Quantiles of step durations from the buckets of their histogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpumon.analysis.rows import Execute, query

_MOST = 0.9
"""Of all values, in one bucket: then what the others add to the sum is known well enough."""


def durations(execute: Execute, instances: set[str]) -> dict[str, float | None]:
    """`p50`, `p95` (estimated within their bucket) and `max` (exact) of all training steps."""
    rows = query(
        execute,
        "select instance, total, counts, bounds, minimum, maximum from stg_histograms "
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
    total = sum(row["total"] for row in same)
    return {
        "p50": quantile(0.5, counts, bounds, lowest, highest, total),
        "p95": quantile(0.95, counts, bounds, lowest, highest, total),
        "max": highest if highest is not None else quantile(1.0, counts, bounds, lowest, highest),
    }


def quantile(
    q: float,
    counts: Sequence[int],
    bounds: Sequence[float],
    lowest: float | None,
    highest: float | None,
    total: float | None = None,
) -> float | None:
    """The *q*-quantile; never outside of [lowest, highest].

    Where nearly all values are in one bucket or in two beside each other, their mean follows from *total*, the sum of
    all values: they are taken to lie evenly around it. All others are taken to lie evenly in their bucket.
    """
    number = sum(counts)
    if not number:
        return None
    edges = [_edges(place, bounds, lowest, highest) for place in range(len(counts))]
    wanted, before = q * number, 0
    if total is not None and (most := _most(counts, edges, total)) is not None:
        first, last, low, high = most
        before, count = sum(counts[:first]), sum(counts[first : last + 1])
        if before <= wanted <= before + count:
            return low + (high - low) * (wanted - before) / count
        before = 0
    for (low, high), count in zip(edges, counts, strict=True):
        if count and before + count >= wanted:
            return low + (high - low) * min(1.0, max(0.0, (wanted - before) / count))
        before += count
    return highest


def _most(
    counts: Sequence[int], edges: Sequence[tuple[float, float]], total: float
) -> tuple[int, int, float, float] | None:
    """(first bucket, last bucket, lowest value, highest value) of nearly all values; None where they are spread."""
    peak = max(range(len(counts)), key=counts.__getitem__)
    for first, last in ((peak, peak), (peak - 1, peak), (peak, peak + 1)):
        if first < 0 or last >= len(counts) or (count := sum(counts[first : last + 1])) < _MOST * sum(counts):
            continue
        elsewhere = sum(
            number * sum(edges[place]) / 2 for place, number in enumerate(counts) if not first <= place <= last
        )
        mean, lowest, highest = (total - elsewhere) / count, edges[first][0], edges[last][1]
        half = min(mean - lowest, highest - mean)
        if first != last and (below := counts[first] / count) != 0.5:
            half = min(half, (mean - edges[first][1]) / (1 - 2 * below))  # so many lie below the bound in the middle
        if half >= 0:
            return first, last, mean - half, mean + half
    return None


def _edges(place: int, bounds: Sequence[float], lowest: Any, highest: Any) -> tuple[float, float]:
    low = bounds[place - 1] if place else 0.0
    high = bounds[place] if place < len(bounds) else (highest if highest is not None else low)
    if lowest is not None:
        low = max(low, min(lowest, high))
    if highest is not None:
        high = min(high, max(highest, low))
    return low, high
