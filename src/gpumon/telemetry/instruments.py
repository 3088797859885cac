"""Observable instruments for the whole catalogue, on an application's providers; callbacks only read memory.

The API cannot remove a callback, and a second `create_observable_*` of the same name silently drops the new
one. So instruments are made once per meter provider and read from the one `HUB`, whose source comes and goes
with `instrument()` and `uninstrument()`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
from opentelemetry.sdk.metrics.export import MetricReader

from gpumon.buckets import Buckets
from gpumon.metrics import CATALOGUE, SCHEMA_URL, SCOPE, Attributes, Metric
from gpumon.telemetry.leave_out import Exported, nobody
from gpumon.version import __version__

logger = logging.getLogger(__name__)

Source = Callable[[Metric, int], Iterable[tuple[float, Attributes]]]
"""Called with a metric and a number that tells readers apart; yields its values now."""

HistogramSource = Callable[[], Iterable[tuple[Metric, Attributes, Buckets]]]


class Hub:
    """Where every callback reads; empty outside of `instrument()` … `uninstrument()` and in forked children.

    `attributes` go onto the points of these providers; our own export says them in its resource.
    """

    def __init__(self) -> None:
        self.attributes: Attributes = {}
        self.exported: Exported = nobody
        self._source: Source | None = None
        self._pid = os.getpid()
        self._providers: weakref.WeakSet[MeterProvider] = weakref.WeakSet()

    def attach(self, source: Source) -> None:
        self._source, self._pid = source, os.getpid()

    def detach(self) -> None:
        self._source, self.attributes, self.exported = None, {}, nobody

    def values(self, metric: Metric, reader: int) -> Iterable[tuple[float, Attributes]]:
        """Of every series of *metric* now; nothing where nobody is attached, and in a forked child.

        A forked DataLoader worker inherits the application's metric readers, and the SDK restarts their
        threads there: it must not report the parent's series a second time.
        """
        source = self._source
        if source is None or os.getpid() != self._pid:
            return ()
        try:
            return list(source(metric, reader))
        except Exception:  # the SDK would log a traceback at every export
            logger.debug("no values for %s", metric.name, exc_info=True)
            if os.environ.get("GPUMON_STRICT") == "1":
                raise
            return ()

    def instrument(self, provider: MeterProvider) -> None:
        """Create every observable instrument on *provider*, once."""
        if provider in self._providers:
            return
        self._providers.add(provider)
        meter = provider.get_meter(SCOPE, __version__, SCHEMA_URL)
        for metric in CATALOGUE:
            if metric.kind != "histogram":
                _create(meter, metric)(metric.name, [self._callback(metric)], metric.unit, metric.description)

    def _callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            reader = _reader()
            values = self.values(metric, id(reader) if reader is not None else threading.get_ident())
            if (is_exported := self.exported()) is not None and _sends_otlp(reader):
                values = [(value, at) for value, at in values if not is_exported(metric.name, at)]
            return [Observation(value, {**attributes, **self.attributes}) for value, attributes in values]

        return observe


HUB = Hub()


def _create(meter: Meter, metric: Metric) -> Callable[..., Any]:
    return {
        "gauge": meter.create_observable_gauge,
        "counter": meter.create_observable_counter,
        "updowncounter": meter.create_observable_up_down_counter,
    }[metric.kind]


_COLLECT = getattr(MetricReader.collect, "__code__", None)


def _reader() -> MetricReader | None:
    """The metric reader that collects now; each has a window of its own for gauges.

    A callback is not told who asks, and a thread says too little: a periodic reader collects in its own
    thread, but in the main thread when it is flushed or at the exit; a scrape comes from any thread.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is _COLLECT:
            reader: MetricReader = frame.f_locals["self"]
            return reader
    return None


def _sends_otlp(reader: MetricReader | None) -> bool:
    """Whether an application's reader hands what it collects to one of OpenTelemetry's OTLP exporters."""
    exporter = getattr(reader, "_exporter", None)  # it has no public name
    return type(exporter).__module__.startswith("opentelemetry.exporter.otlp.")
