"""Sums that never go back, from kernel counters that wrap, restart or end."""

from __future__ import annotations

from collections.abc import Hashable

_WRAP = 1 << 32


class Monotonic:
    """Adds up the growth of raw counters by key.

    The first value of a key counts in full, or as the start from zero with `from_zero`.
    """

    def __init__(self, *, from_zero: bool = False) -> None:
        self._from_zero = from_zero
        self._last: dict[Hashable, float] = {}
        self._sum: dict[Hashable, float] = {}

    def update(self, key: Hashable, raw: float, *, restarted: bool = False, wraps: bool = False) -> float:
        """Take the counter's present value, return the sum.

        A counter that went back counts nothing, unless it *restarted* (its device is a new one: counts from
        zero) or *wraps* at 32 bit and was near the end.
        """
        last = self._last.get(key)
        if last is None:
            self._sum[key] = 0.0 if self._from_zero else raw
        elif raw >= last:
            self._sum[key] += raw - last
        elif wraps and _WRAP // 2 < last < _WRAP and raw < _WRAP // 2:
            self._sum[key] += raw + _WRAP - last
        elif restarted:
            self._sum[key] += raw
        self._last[key] = raw
        return self._sum[key]

    def value(self, key: Hashable) -> float | None:
        """The sum so far, None for an unknown key."""
        return self._sum.get(key)

    def add(self, key: Hashable, growth: float) -> None:
        """Grow a sum that has no raw counter of its own."""
        self._sum[key] = self._sum.get(key, 0.0) + growth

    def forget(self, key: Hashable) -> None:
        """Drop a counter whose owner ended."""
        self._last.pop(key, None)
        self._sum.pop(key, None)
