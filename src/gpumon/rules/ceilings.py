"""What a disk gave `gpumon bench`, and which of these figures a run is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpumon.rules import thresholds as limit

SOURCE = "gpumon bench"
"""What evidence names as its source."""


@dataclass(frozen=True)
class Ceiling:
    """What one pattern of reads gave, so many at a time. `operations_per_s`: requests to the device."""

    pattern: str  # sequential, random
    parallel: int
    bytes_per_s: float
    operations_per_s: float

    @property
    def request_bytes(self) -> float:
        return self.bytes_per_s / self.operations_per_s


def fitting(ceilings: Sequence[Ceiling], readers: int | None, request_bytes: float | None) -> Ceiling | None:
    """The ceiling of the pattern that fits how a run reads; None where none does.

    Files in random order by as many readers as the loader has, or the next more; else in order. A run that reads in
    smaller pieces than the bench did (records of a memory map) is held against nothing: requests limit it, not bytes.

    Args:
        readers: of the loader; None: not known.
        request_bytes: mean size of the run's requests to the device; None: not known.
    """
    for pattern in ("random", "sequential"):
        known = sorted((item for item in ceilings if item.pattern == pattern), key=lambda item: item.parallel)
        enough = (item for item in known if readers is not None and item.parallel >= readers)
        chosen = next(enough, known[-1] if known else None)
        if chosen is not None and _is_as_large(request_bytes, chosen.request_bytes):
            return chosen
    return None


def one_at_a_time_s(ceilings: Sequence[Ceiling]) -> float | None:
    """Seconds that a request takes when nobody else queues, by the bench's single reader."""
    alone = (item for item in ceilings if (item.pattern, item.parallel) == ("random", 1))
    return next((1 / item.operations_per_s for item in alone), None)


def _is_as_large(request_bytes: float | None, benched_bytes: float) -> bool:
    """Readahead cuts what a program reads into requests of its own size: nobody asks for larger ones."""
    if request_bytes is None:
        return True
    return request_bytes >= limit.SMALLER_REQUESTS * min(benched_bytes, limit.READAHEAD_BYTES)
