"""How many samples a batch holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def size_of(batch: Any, depth: int = 6) -> int:
    """The first dimension of the first array in *batch*, in whatever container; else its length; else 0."""
    size = _array_size(batch, depth)
    if size is not None:
        return size
    try:
        return len(batch)
    except Exception:
        return 0


def _array_size(item: Any, depth: int) -> int | None:
    shape = getattr(item, "shape", None)
    if shape is not None:
        try:
            return int(shape[0])
        except Exception:
            return None
    if depth and isinstance(item, Mapping):
        values: Any = item.values()
    elif depth and isinstance(item, (list, tuple)):
        values = item
    elif depth and type(item).__module__ != "builtins" and hasattr(item, "values") and hasattr(item, "keys"):
        values = item.values()
    else:
        return None
    try:
        for value in values:
            if (size := _array_size(value, depth - 1)) is not None:
                return size
            if isinstance(value, (int, float, str, bytes)):
                return None  # a flat list of samples
    except Exception:
        return None
    return None
