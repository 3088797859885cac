"""How many samples a batch holds, in whatever container."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

from gpumon.tracing.batch import size_of

Pair = namedtuple("Pair", "inputs targets")


@dataclass
class Named:
    weight: torch.Tensor
    inputs: torch.Tensor


class Encoding:
    """As tokenizers return it: neither a dict nor a Mapping."""

    def __init__(self, **values):
        self._values = values

    def keys(self):
        return self._values.keys()

    def values(self):
        return self._values.values()


class Graphs:
    """A batch of graphs: its tensors hold nodes."""

    num_graphs = 3

    def __init__(self):
        self.x = torch.zeros(17, 2)


class Hostile:
    @property
    def shape(self):
        raise RuntimeError("hands off")


ROWS = torch.zeros(5, 2)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (ROWS, 5),
        ([ROWS, torch.zeros(5)], 5),
        ((ROWS, 3), 5),
        (Pair(ROWS, None), 5),
        (Named(torch.tensor(1.0), ROWS), 5),
        ({"inputs": ROWS, "labels": torch.zeros(5)}, 5),
        ({"weight": torch.tensor(0.5), "inputs": ROWS}, 5),
        ({"texts": ["a", "b", "c", "d", "e"], "ids": ROWS}, 5),
        ([["a", "b", "c", "d", "e"], ROWS], 5),
        (({"one": {"deep": [ROWS]}},), 5),
        (Encoding(ids=ROWS), 5),
        (Graphs(), 3),
        (ROWS.numpy(), 5),
        (["a", "b", "c"], 3),
        ([1, 2, 3], 3),
        ({"texts": ["a", "b"]}, 2),
        (torch.tensor(1.0), 0),
        (None, 0),
        (7, 0),
        ("text", 0),
        (Hostile(), 0),
    ],
)
def test_size_of(batch, expected):
    """The first dimension of the first array; else the length of a list; else nothing."""
    assert size_of(batch) == expected
