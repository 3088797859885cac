"""Observable instruments over one hub: every reader sees the same series, once, and costs only memory."""

import logging
import threading
import time

import pytest
from opentelemetry.metrics import CallbackOptions
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)

from gpumon import metrics as m
from gpumon.metrics import CATALOGUE, Reading
from gpumon.sampler import Sampler
from gpumon.telemetry.instruments import HUB, Hub
from otlp_receiver import eventually


@pytest.fixture
def hub():
    return Hub()


class Ramp:
    """A collector whose gauge says 1, 2, 3, … at every collection."""

    interval_s = 0.05
    may_block = False

    def __init__(self):
        self.value = 0

    def collect(self):
        self.value += 1
        yield Reading(m.DISK_IN_FLIGHT, self.value, {m.SYSTEM_DEVICE: "sda"})


class Kept(MetricExporter):
    """Keeps (time, value) of every exported point of one metric."""

    def __init__(self, name):
        super().__init__()
        self.name, self.points = name, []

    def export(self, metrics_data, timeout_millis=10_000, **_):
        for item in metrics_data.resource_metrics:
            for scoped in item.scope_metrics:
                for metric in scoped.metrics:
                    if metric.name == self.name:
                        self.points += [(point.time_unix_nano, point.value) for point in metric.data.data_points]
        return MetricExportResult.SUCCESS

    def shutdown(self, timeout_millis=0, **_):
        pass

    def force_flush(self, timeout_millis=0):
        return True


def found(reader):
    data = reader.get_metrics_data()
    return {
        metric.name: metric
        for item in (data.resource_metrics if data else [])
        for scoped in item.scope_metrics
        for metric in scoped.metrics
    }


def everything(metric, _):
    """Two series of every metric of the catalogue."""
    for value in (1, 2):
        yield value, dict.fromkeys(metric.attributes, str(value)) or {"n": value}


def test_every_metric_but_histograms_has_an_instrument(hub):
    """The whole catalogue comes out with its kind, unit and description."""
    reader = InMemoryMetricReader()
    hub.attach(everything)
    hub.instrument(MeterProvider([reader]))
    metrics = found(reader)
    kinds = {"gauge": ("Gauge", None), "counter": ("Sum", True), "updowncounter": ("Sum", False)}

    expected = [metric for metric in CATALOGUE if metric.kind != "histogram"]
    assert set(metrics) == {metric.name for metric in expected}
    for metric in expected:
        data = metrics[metric.name].data
        assert (type(data).__name__, getattr(data, "is_monotonic", None)) == kinds[metric.kind]
        assert metrics[metric.name].unit == metric.unit
        assert metrics[metric.name].description == metric.description
        assert len(data.data_points) == 2


def test_instrumenting_twice_makes_no_second_series(hub):
    """The instruments of a provider are made once, however often it is instrumented."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    hub.attach(lambda metric, _: [(5, {})])
    for _ in range(3):
        hub.instrument(provider)

    assert [point.value for point in found(reader)["gpumon.step.count"].data.data_points] == [5]


def test_detached_means_silent(hub):
    """After detach nothing is reported; attach again, and it is."""
    reader = InMemoryMetricReader()
    hub.instrument(MeterProvider([reader]))
    assert not found(reader)
    hub.attach(everything)
    assert found(reader)
    hub.detach()
    assert not found(reader)


def test_a_source_that_fails_is_silent(hub, monkeypatch, caplog):
    """A bug in one source costs its own metric, and no traceback at every export."""
    monkeypatch.delenv("GPUMON_STRICT")
    caplog.set_level(logging.INFO)

    def source(metric, reader):
        if metric is m.STEP_COUNT:
            raise RuntimeError("a bug")
        return everything(metric, reader)

    reader = InMemoryMetricReader()
    hub.attach(source)
    hub.instrument(MeterProvider([reader]))

    assert len(found(reader)) == len([metric for metric in CATALOGUE if metric.kind != "histogram"]) - 1
    assert not caplog.records


def test_gauges_are_means_over_each_readers_own_window():
    """Two readers of different intervals each get the mean of exactly what was collected in their windows."""
    collector = Ramp()
    sampler = Sampler({"ramp": collector})
    hub = Hub()
    hub.attach(sampler.observe)
    fast, slow = Kept(m.DISK_IN_FLIGHT.name), Kept(m.DISK_IN_FLIGHT.name)
    provider = MeterProvider([PeriodicExportingMetricReader(fast, 200), PeriodicExportingMetricReader(slow, 700)])
    hub.instrument(provider)
    sampler.start()
    eventually(lambda: len(slow.points) >= 2 and len(fast.points) >= 6)
    sampler.stop()
    provider.shutdown()

    for exporter in (fast, slow):
        # A window of the samples a + 1 … b has the mean (a + 1 + b) / 2, and the next one begins at b + 1.
        # So the ends follow from the means; a sample lost or used twice makes them no integers.
        end, previous = 0.0, None
        for _, mean in exporter.points:
            if mean != previous:  # else nothing was collected since
                begin, end = end, 2 * mean - end - 1
                assert end == int(end)
                assert begin < end <= collector.value
            previous = mean
    assert fast.points[0][1] < slow.points[0][1]  # a longer first window of a rising value has the larger mean


def test_a_flush_belongs_to_the_readers_window(hub):
    """A periodic reader that is flushed from another thread is still the same reader."""
    readers = []
    hub.attach(lambda metric, reader: readers.append(reader) or ())
    provider = MeterProvider([PeriodicExportingMetricReader(Kept("none"), 50), InMemoryMetricReader()])
    hub.instrument(provider)
    eventually(lambda: readers)
    in_thread = readers[0]
    readers.clear()
    provider.force_flush()

    assert len(set(readers)) == 2
    assert in_thread in readers
    provider.shutdown()


def test_a_scrape_from_any_thread_is_one_reader(hub):
    """Threads that come and go, as of a scraped endpoint, are one reader with one window."""
    readers = set()
    hub.attach(lambda metric, reader: readers.add(reader) or ())
    reader = InMemoryMetricReader()
    hub.instrument(MeterProvider([reader]))
    for _ in range(5):
        thread = threading.Thread(target=reader.collect)
        thread.start()
        thread.join()

    assert len(readers) == 1


def test_callbacks_only_read_memory():
    """A collector that hangs in a driver delays no export."""
    release = threading.Event()

    class Hanging:
        interval_s, may_block = 0.05, True

        def collect(self):
            release.wait(20)
            yield from ()

    sampler = Sampler({"ramp": Ramp(), "hanging": Hanging()})
    hub = Hub()
    hub.attach(sampler.observe)
    reader = InMemoryMetricReader()
    hub.instrument(MeterProvider([reader]))
    sampler.start()
    eventually(lambda: m.DISK_IN_FLIGHT.name in found(reader))
    began = time.perf_counter()
    for _ in range(5):
        found(reader)
    took = (time.perf_counter() - began) / 5
    release.set()
    sampler.stop()

    assert took < 0.05


def test_the_global_hub_is_empty_without_instrument():
    """Importing gpumon's telemetry reports nothing."""
    reader = InMemoryMetricReader()
    HUB.instrument(MeterProvider([reader]))

    assert not found(reader)


def test_readers_of_another_sdk_still_get_values(hub):
    """A callback that nobody knows calls is answered too."""
    callbacks = []

    class Meter:
        def __getattr__(self, _):
            return lambda name, callback, unit, description: callbacks.extend(callback)

    class Provider:
        def get_meter(self, *_):
            return Meter()

    hub.attach(everything)
    hub.instrument(Provider())

    assert all(len(list(callback(CallbackOptions()))) == 2 for callback in callbacks)
