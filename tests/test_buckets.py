"""The histogram that all durations share."""

import pytest

from gpumon.buckets import Buckets
from gpumon.metrics import DURATION_BOUNDS


def test_a_bound_belongs_to_the_bucket_below_it():
    """Upper bounds are inclusive, as OpenTelemetry defines explicit buckets."""
    buckets = Buckets()
    buckets.add(DURATION_BOUNDS[3])
    buckets.add(DURATION_BOUNDS[3] * 1.0001)
    buckets.add(0.0)
    buckets.add(1e6)

    assert buckets.counts[3] == 1
    assert buckets.counts[4] == 1
    assert buckets.counts[0] == 1
    assert buckets.counts[-1] == 1
    assert (buckets.min_s, buckets.max_s) == (0.0, 1e6)
    assert sum(buckets.sums) == DURATION_BOUNDS[3] * 2.0001 + 1e6


def test_many_at_once_are_as_one_by_one():
    """Binned in bulk: the same counts, sums, least and greatest."""
    values = [0, 1, 499_999, 500_000, 500_001, 3_000_000, 7_000_000_000, 400_000_000_000, *range(0, 10**9, 7_654_321)]
    one, many = Buckets(), Buckets()
    for value in values:
        one.add(value / 1e9)
    many.add_ns(values[:9])
    many.add_ns([])
    many.add_ns(values[9:])

    assert many.counts == one.counts
    assert many.sums == pytest.approx(one.sums)
    assert (many.min_s, many.max_s) == (one.min_s, one.max_s)
