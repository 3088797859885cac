"""Our bucket sums as SDK histograms in a provider of the application's."""

import random
import time

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View

from gpumon import metrics as m
from gpumon.buckets import Buckets
from gpumon.telemetry.histograms import SdkHistograms

AT = {m.STAGE: "train"}


def points(reader):
    return {
        metric.name: metric.data.data_points
        for item in reader.get_metrics_data().resource_metrics
        for scoped in item.scope_metrics
        for metric in scoped.metrics
    }


def test_counts_sums_and_buckets_are_exact():
    """Whatever was added arrives with exact count, sum and buckets, however it was cut into windows."""
    steps = Buckets()
    reader = InMemoryMetricReader()
    histograms = SdkHistograms(MeterProvider([reader]), lambda: [(m.STEP_DURATION, AT, steps)])
    rng = random.Random(7)
    values = [rng.lognormvariate(-4, 2) for _ in range(500)]
    for index, value in enumerate(values):
        steps.add(value)
        if index % 90 == 0:
            histograms.record()
    histograms.record()
    (point,) = points(reader)["gpumon.step.duration"]

    assert point.count == 500
    assert point.sum == pytest.approx(sum(values))
    assert list(point.bucket_counts) == steps.counts
    assert tuple(point.explicit_bounds) == m.DURATION_BOUNDS
    assert dict(point.attributes) == AT


def test_an_aggregation_of_the_users_choice():
    """A view that asks for exponential histograms gets one, with the same count and sum."""
    steps = Buckets()
    for value in (0.01, 0.011, 2.0):
        steps.add(value)
    reader = InMemoryMetricReader()
    views = [View(instrument_name="gpumon.step.duration", aggregation=ExponentialBucketHistogramAggregation())]
    SdkHistograms(MeterProvider([reader], views=views), lambda: [(m.STEP_DURATION, AT, steps)]).record()
    (point,) = points(reader)["gpumon.step.duration"]

    assert point.count == 3
    assert point.sum == pytest.approx(2.021)
    assert point.scale


def test_series_are_kept_apart():
    """Each combination of attributes has its own running state."""
    train, test = Buckets(), Buckets()
    reader = InMemoryMetricReader()
    source = [(m.STEP_DURATION, AT, train), (m.STEP_DURATION, {m.STAGE: "test"}, test)]
    histograms = SdkHistograms(MeterProvider([reader]), lambda: source)
    for _ in range(3):
        train.add(0.1)
        test.add(0.2)
        test.add(0.2)
        histograms.record()
    counts = {point.attributes[m.STAGE]: point.count for point in points(reader)["gpumon.step.duration"]}

    assert counts == {"train": 3, "test": 6}


def test_ten_thousand_steps_of_a_window_are_recorded_in_the_background_quickly():
    """A fast loop's whole window costs a fraction of a second, once, outside of the training thread."""
    steps = Buckets()
    for _ in range(10_000):
        steps.add(0.001)
    histograms = SdkHistograms(MeterProvider([InMemoryMetricReader()]), lambda: [(m.STEP_DURATION, AT, steps)])
    began = time.thread_time()
    histograms.record()

    assert time.thread_time() - began < 0.5
