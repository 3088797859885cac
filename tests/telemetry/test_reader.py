"""What our own export reads is what the SDK would collect from the same values."""

import json

import pytest
from opentelemetry.sdk.metrics import Counter, Exemplar, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, TraceFlags

from gpumon import metrics as m
from gpumon.buckets import Buckets
from gpumon.telemetry.histograms import SdkHistograms
from gpumon.telemetry.instruments import HUB
from gpumon.telemetry.otlp_json import metrics_line
from gpumon.telemetry.reader import Reader

RESOURCE = Resource({"service.name": "demo"})
TRAIN, READ = {m.STAGE: "train"}, {m.SYSTEM_DEVICE: "sda", m.DISK_IO_DIRECTION: "read"}
PREFERENCES = {
    "cumulative": (),
    "delta": (Counter, ObservableCounter, Histogram),
    "lowmemory": (Counter, Histogram),
}
VARIABLE = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


class Values:
    """A source whose values grow with `round`."""

    def __init__(self):
        self.round = 1
        self.buckets = Buckets()

    def numbers(self, metric, reader):
        if metric is m.STEP_COUNT:
            yield 10 * self.round, TRAIN
            if self.round > 1:
                yield 7 * self.round, {m.STAGE: "validation"}
        elif metric is m.DISK_AWAIT and self.round != 2:
            yield 0.001 * self.round, READ
        elif metric.kind == "updowncounter":
            yield 5 - self.round, {}

    def histograms(self):
        return [(m.STEP_DURATION, TRAIN, self.buckets)]

    def next(self):
        self.round += 1
        for number in range(self.round * 5):
            self.buckets.add(0.01 * number)


@pytest.fixture
def values():
    values = Values()
    values.next()
    HUB.attach(values.numbers)
    yield values
    HUB.detach()


def points(data):
    """{metric: (kind, what it says, points without times)} of an export."""
    (resource,) = json.loads(metrics_line(data))["resourceMetrics"]
    (scope,) = resource["scopeMetrics"]
    found = {"": (resource["resource"], scope["scope"], scope["schemaUrl"])}
    for metric in scope["metrics"]:
        (kind,) = metric.keys() - {"name", "description", "unit"}
        for point in metric[kind]["dataPoints"]:
            point.pop("timeUnixNano")
            point.pop("startTimeUnixNano", None)
            # Sums of buckets come as means; the extremes of a window are not kept.
            point["sum"] = round(point.get("sum", 0), 9)
            point.pop("min", None), point.pop("max", None)
        found[metric["name"]] = metric
    return found


@pytest.mark.parametrize("preference", PREFERENCES)
def test_equals_the_sdk_s_collection(values, preference, monkeypatch):
    """Three rounds: series that come later, go away and come back."""
    monkeypatch.setenv(VARIABLE, preference)
    ours = Reader(HUB.values, values.histograms, RESOURCE, for_otlp=True)
    deltas = dict.fromkeys(PREFERENCES[preference], AggregationTemporality.DELTA)
    sdk = InMemoryMetricReader(preferred_temporality=deltas)
    provider = MeterProvider([sdk], RESOURCE)
    HUB.instrument(provider)
    histograms = SdkHistograms(provider, values.histograms)

    for _ in range(3):
        histograms.record()
        assert points(ours.read()) == points(sdk.get_metrics_data())
        values.next()


def test_times(values, monkeypatch):
    """A gauge has no start; a cumulative sum starts with the reader, a delta where the last one ended."""
    monkeypatch.setenv(VARIABLE, "delta")
    values.next()
    for for_otlp in (False, True):
        reader = Reader(HUB.values, values.histograms, RESOURCE, for_otlp=for_otlp)
        first, second = ({metric.name: metric.data.data_points[0] for metric in read(reader)} for _ in range(2))
        count, later = first[m.STEP_COUNT.name], second[m.STEP_COUNT.name]
        assert first[m.STEP_DURATION.name].time_unix_nano == count.time_unix_nano < later.time_unix_nano
        assert later.start_time_unix_nano == (count.time_unix_nano if for_otlp else count.start_time_unix_nano)
        assert first[m.DISK_AWAIT.name].start_time_unix_nano is None


def read(reader):
    return reader.read().resource_metrics[0].scope_metrics[0].metrics


def an_exemplar(reader, number, *, metric=m.STEP_DURATION, sampled=True):
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    reader.exemplify(metric, TRAIN, number / 100, number, SpanContext(7, number, False, flags))


def exemplars(reader):
    (histogram,) = (metric for metric in read(reader) if metric.name == m.STEP_DURATION.name)
    return list(histogram.data.data_points[0].exemplars)


def test_exemplars(values):
    """The newest eight of a window, in the next point and in no later one; only where there is a trace to see."""
    reader = Reader(HUB.values, values.histograms, RESOURCE)
    an_exemplar(reader, 99, sampled=False)
    assert exemplars(reader) == []
    for number in range(1, 11):
        an_exemplar(reader, number)
    found = exemplars(reader)

    assert [item.span_id for item in found] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert found[0] == Exemplar({}, 0.03, 3, span_id=3, trace_id=7)
    assert exemplars(reader) == []
    assert '"exemplars":[{"timeUnixNano":"9","spanId":"0000000000000009",' in line_of(reader, 9)


def line_of(reader, number):
    an_exemplar(reader, number)
    return metrics_line(reader.read())


def test_exemplars_wait_for_a_point(values, monkeypatch):
    """With deltas a window may have no step: its exemplars come with the next one that has."""
    monkeypatch.setenv(VARIABLE, "delta")
    reader = Reader(HUB.values, values.histograms, RESOURCE, for_otlp=True)
    reader.read()
    an_exemplar(reader, 5)
    assert m.STEP_DURATION.name not in {metric.name for metric in read(reader)}
    values.next()

    assert [item.span_id for item in exemplars(reader)] == [5]


def test_exemplars_are_switched_off(values, monkeypatch):
    """`OTEL_METRICS_EXEMPLAR_FILTER=always_off`."""
    monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", "always_off")
    reader = Reader(HUB.values, values.histograms, RESOURCE)
    an_exemplar(reader, 5)

    assert exemplars(reader) == []


def test_nothing_is_nothing():
    """No value, no line."""
    assert Reader(lambda *_: (), list, RESOURCE).read() is None
