"""The histogram that all durations share."""

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
