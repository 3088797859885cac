"""Rows of two engines, compared: the same up to the last digits of their numbers, whatever their order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def assert_same_rows(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], what: str) -> None:
    """Every row of one is a row of the other, column by column."""
    assert len(ours) == len(theirs), what
    for mine, other in zip(sorted(ours, key=_key), sorted(theirs, key=_key), strict=True):
        assert mine.keys() == other.keys(), what
        for name in mine:
            assert is_same(mine[name], other[name]), (what, name, mine, other)


def is_same(mine: Any, other: Any) -> bool:
    """Equal, numbers to nine digits or a millionth; also inside of lists and dictionaries."""
    if isinstance(mine, dict):
        return (
            isinstance(other, dict)
            and mine.keys() == other.keys()
            and all(is_same(mine[name], other[name]) for name in mine)
        )
    if isinstance(mine, list | tuple):
        return len(mine) == len(other) and all(is_same(*pair) for pair in zip(mine, other, strict=True))
    if isinstance(mine, int | float) and other is not None:
        return math.isclose(mine, float(other), rel_tol=1e-9, abs_tol=1e-6)
    return bool(mine == other)


def _key(row: dict[str, Any]) -> tuple[str, str]:
    """Text, then numbers to few digits: engines may differ in the last one."""
    known = [(name, value) for name, value in sorted(row.items()) if value is not None and not isinstance(value, list)]
    return repr([(n, v) for n, v in known if isinstance(v, str)]), repr(
        [(n, round(float(v), 3)) for n, v in known if not isinstance(v, str)]
    )
