"""How many samples a batch holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

DEPTH = 6
_FLAT = (int, float, complex, str, bytes, type(None))


def size_of(batch: Any) -> int:
    """The first dimension of the first array in *batch*, in whatever container.

    Without any array: the length of the first list in it. 0 where there is neither.
    """
    try:
        size = _array_size(batch, DEPTH)
        return size if size is not None else _list_size(batch)
    except Exception:  # noqa: BLE001 - containers of the user's: their code may do anything
        return 0


def _array_size(item: Any, depth: int) -> int | None:
    if isinstance(graphs := getattr(item, "num_graphs", None), int):
        return graphs  # a batch of graphs: its tensors hold nodes
    shape = getattr(item, "shape", None)
    if shape is not None and not callable(shape):
        try:
            return int(shape[0])
        except (IndexError, TypeError, ValueError):
            return None  # a scalar
    if not depth:
        return None
    for value in _values(item):
        if isinstance(value, _FLAT):
            if not isinstance(item, Mapping) and type(item) is list:
                return None  # a flat list of samples
            continue
        if (size := _array_size(value, depth - 1)) is not None:
            return size
    return None


def _values(item: Any) -> Iterable[Any]:
    if isinstance(item, Mapping):
        return item.values()
    if isinstance(item, (list, tuple)):
        return item
    if isinstance(item, _FLAT):
        return ()
    if callable(getattr(item, "keys", None)) and callable(getattr(item, "values", None)):
        return item.values()  # type: ignore[no-any-return]
    fields = getattr(item, "__dict__", None)  # data classes and the like
    return fields.values() if isinstance(fields, dict) else ()


def _list_size(batch: Any) -> int:
    if isinstance(batch, Mapping):
        return next((len(value) for value in batch.values() if isinstance(value, (list, tuple))), 0)
    if isinstance(batch, tuple):
        return next((len(value) for value in batch if isinstance(value, (list, tuple))), len(batch))
    return len(batch) if isinstance(batch, list) else 0
