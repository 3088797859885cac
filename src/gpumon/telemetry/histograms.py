"""Our histograms in a provider that is not ours."""

from __future__ import annotations

import os
import weakref
from typing import Any

from opentelemetry.metrics import MeterProvider

from gpumon.metrics import CATALOGUE, DURATION_BOUNDS, SCHEMA_URL, SCOPE
from gpumon.telemetry.instruments import HUB, HistogramSource
from gpumon.version import __version__


class SdkHistograms:
    """Records our histograms into a meter provider from bucket sums.

    Per step only a bucket's count and sum are kept; each new count is recorded as the mean of what its bucket
    gained. So count, sum and buckets come out exact, whatever the provider's own aggregation.
    """

    def __init__(self, provider: MeterProvider, source: HistogramSource) -> None:
        meter = provider.get_meter(SCOPE, __version__, SCHEMA_URL)
        self._source = source
        self._instruments: dict[str, Any] = {
            metric.name: meter.create_histogram(
                metric.name,
                metric.unit,
                metric.description,
                explicit_bucket_boundaries_advisory=list(DURATION_BOUNDS),
            )
            for metric in CATALOGUE
            if metric.kind == "histogram"
        }
        self._done: dict[tuple[str, tuple[tuple[str, Any], ...]], tuple[list[int], list[float]]] = {}
        _FORGET_AT_FORK.add(self)

    def record(self) -> None:
        """Record what was added since the last call."""
        for metric, attributes, buckets in self._source():
            key = (metric.name, tuple(sorted(attributes.items())))
            counts, sums = self._done.get(key, ([0] * len(buckets.counts), [0.0] * len(buckets.counts)))
            new_counts, new_sums = list(buckets.counts), list(buckets.sums)
            record = self._instruments[metric.name].record
            for index, count in enumerate(new_counts):
                gained = count - counts[index]
                if gained > 0:
                    mean = (new_sums[index] - sums[index]) / gained
                    for _ in range(gained):
                        record(mean, {**attributes, **HUB.attributes})
            self._done[key] = (new_counts, new_sums)

    def forget(self) -> None:
        """Drop what the SDK holds of these histograms, in a forked child.

        The SDK restarts the application's readers there, which would export the parent's sums once more for
        every DataLoader worker. There is no public way; where the private one changes, nothing happens.
        """
        for instrument in self._instruments.values():
            real = getattr(instrument, "_real_instrument", None) or instrument
            storages = getattr(getattr(real, "_measurement_consumer", None), "_reader_storages", {})
            for storage in storages.values():
                getattr(storage, "_instrument_view_instrument_matches", {}).pop(real, None)


_FORGET_AT_FORK: weakref.WeakSet[SdkHistograms] = weakref.WeakSet()


def _forget_in_child() -> None:
    for histograms in list(_FORGET_AT_FORK):
        histograms.forget()


os.register_at_fork(after_in_child=_forget_in_child)
