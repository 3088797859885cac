"""What to read, and in which order: in order as a copy does, or whole files in random order as a loader does."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from gpumon.bench.access import BLOCK
from gpumon.bench.files import Sample

ROUND: Final = 512 << 20
"""Bytes of a round at most: a fast disk reads it twice."""
WHOLE: Final = 16 << 20
"""Files up to this size are read whole; of larger ones a loader takes parts."""
_STRETCH: Final = 64 << 20


@dataclass(frozen=True)
class Piece:
    """A part of a file, read from its beginning to its end; the whole file where that is small."""

    file: Sample
    offset: int
    length: int


def sequential(files: Sequence[Sample], parts: int, rng: random.Random) -> list[list[Piece]]:
    """Stretches from all over the data, each read in order, for *parts* plans; others in each if there are enough."""
    size = sum(file.size for file in files)
    if size <= ROUND:
        return [list(_stretch(files, 0, 0, size)) for _ in range(parts)]
    number = -(-size // _STRETCH)
    chosen = rng.sample(range(number), min(number, parts * (ROUND // _STRETCH)))
    ends = list(accumulate(file.size for file in files))
    plans: list[list[Piece]] = [[] for _ in range(parts)]
    for place, stretch in enumerate(chosen):
        first = bisect_right(ends, stretch * _STRETCH)
        offset = stretch * _STRETCH - (ends[first] - files[first].size)
        plans[place % parts] += _stretch(files, first, offset // BLOCK * BLOCK, _STRETCH)
    return plans


def _stretch(files: Sequence[Sample], first: int, offset: int, length: int) -> Iterator[Piece]:
    for file in files[first:]:
        while offset < file.size:
            if length <= 0:
                return
            piece = Piece(file, offset, min(BLOCK, file.size - offset))
            yield piece
            offset += piece.length
            length -= piece.length
        offset = 0


def whole_files(files: Sequence[Sample], parts: int, rng: random.Random) -> list[list[Piece]]:
    """Files in random order, or blocks of large ones, for *parts* plans; others in each where there are enough."""
    counts = [1 if file.size <= WHOLE else -(-file.size // BLOCK) for file in files]
    ends = list(accumulate(counts))
    if not ends:
        return [[] for _ in range(parts)]
    chosen = rng.sample(range(ends[-1]), min(ends[-1], parts * ROUND // BLOCK + len(files)))
    pieces = []
    for unit in chosen:
        number = bisect_right(ends, unit)
        file = files[number]
        if file.size <= WHOLE:
            pieces.append(Piece(file, 0, file.size))
        else:
            offset = (unit - (ends[number] - counts[number])) * BLOCK
            pieces.append(Piece(file, offset, min(BLOCK, file.size - offset)))
    size = sum(piece.length for piece in pieces)
    if size <= ROUND:
        return [rng.sample(pieces, len(pieces)) for _ in range(parts)]
    plans: list[list[Piece]] = []
    share, at = min(ROUND, size // parts), 0
    for _ in range(parts):
        plan: list[Piece] = []
        length = 0
        while at < len(pieces) and (length < share or not plan):
            plan.append(pieces[at])
            length += pieces[at].length
            at += 1
        plans.append(plan or list(plans[-1]))
    return plans
