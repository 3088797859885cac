"""Memory that grows and does not stop."""

from __future__ import annotations

import itertools
from typing import Final

from gpumon.rules import thresholds as limit

_BLOCK_MIN: Final = 6


def grows(record: str, size: str) -> str:
    """By how many bytes a recorded series grew over half an hour, where it did in each of five blocks.

    *size*: all that there is, of the same labels.
    """
    blocks = [_median(record, age * _BLOCK_MIN) for age in reversed(range(limit.MEMORY_BLOCKS))]
    grown = f"({blocks[-1]} - {blocks[0]})"
    steady = 0.25 / (limit.MEMORY_BLOCKS - 1)
    lines = [
        f"{grown} >= {limit.MEMORY_GROWTH_BYTES:.0f}",
        f"and {grown} >= {limit.MEMORY_GROWTH:g} * {size}",
        *(f"and {later} - {sooner} > {steady:g} * {grown}" for sooner, later in itertools.pairwise(blocks)),
        f"and {record} offset {(limit.MEMORY_BLOCKS + 1) * _BLOCK_MIN}m",
    ]
    return "\n".join(lines)


def _median(record: str, offset_min: int) -> str:
    offset = f" offset {offset_min}m" if offset_min else ""
    return f"quantile_over_time(0.5, {record}[{_BLOCK_MIN}m]{offset})"
