"""The catalogue's metrics as Prometheus names them.

Two writers are met. Prometheus' own OTLP receiver (and the Collector) makes `hw_gpu_utilization_ratio` of a gauge
with the unit 1; OpenTelemetry's Python, which serves `/metrics`, leaves that suffix out. All else is the same.
"""

from __future__ import annotations

import re
from typing import Final

from gpumon.metrics import Metric

_UNITS: Final = {"s": "seconds", "By": "bytes", "Cel": "celsius", "W": "watts", "J": "joules", "Hz": "hertz"}
_PER: Final = {"s": "second"}


def prometheus_name(metric: Metric, *, is_scraped: bool = False) -> str:
    """The family's name; *is_scraped*: as OpenTelemetry's Python writes it on a page `/metrics`.

    The series of a histogram add `_bucket`, `_sum` and `_count`.
    """
    words = re.findall("[A-Za-z0-9]+", metric.name)
    amount, _, per = re.sub(r"\{.*?\}", "", metric.unit).partition("/")
    if (unit := _UNITS.get(amount, "")) and unit not in words:
        words.append(unit)
    if per and _PER[per] not in words:
        words += ["per", _PER[per]]
    if metric.kind == "counter":
        words = [word for word in words if word != "total"] + ["total"]
    if is_ratio(metric) and not is_scraped:
        words = [word for word in words if word != "ratio"] + ["ratio"]
    return "_".join(words)


def series_names(metric: Metric, *, is_scraped: bool = False) -> tuple[str, ...]:
    """The names of its series."""
    name = prometheus_name(metric, is_scraped=is_scraped)
    return tuple(name + part for part in ("_bucket", "_sum", "_count")) if metric.kind == "histogram" else (name,)


def is_ratio(metric: Metric) -> bool:
    """Whether its name ends in `_ratio` over OTLP."""
    return metric.kind == "gauge" and metric.unit == "1"


def label(attribute: str) -> str:
    """`hw.id` -> `hw_id`."""
    return re.sub("[^A-Za-z0-9]+", "_", attribute)
