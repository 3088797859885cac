"""Reads what a collector yields: by metric and attributes, and over a window of two collections."""

from collections.abc import Iterable

from gpumon import metrics as m
from gpumon.metrics import Metric, Reading


class Readings:
    """The readings of one collection."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self.all = list(readings)

    def of(self, metric: Metric) -> list[Reading]:
        return [reading for reading in self.all if reading.metric is metric]

    def one(self, metric: Metric, *values) -> Reading | None:
        """The reading whose attributes have all of *values*; None when there is none."""
        found = [reading for reading in self.of(metric) if set(values) <= set(reading.attributes.values())]
        if len(found) > 1:  # a device's name is also among the parents of another
            found = [reading for reading in found if reading.attributes.get(m.SYSTEM_DEVICE) in values]
        assert len(found) <= 1, found
        return found[0] if found else None

    def value(self, metric: Metric, *values) -> float | None:
        reading = self.one(metric, *values)
        return None if reading is None else reading.value


def over(before: Readings, after: Readings, metric: Metric, *values) -> float | None:
    """Δvalue ÷ Δper between two collections, as the export does it; None where Δper is 0."""
    first, last = before.one(metric, *values), after.one(metric, *values)
    if first is None or last is None or last.per == first.per:
        return None
    return (last.value - first.value) / (last.per - first.per)
