"""A disk's throughput held against what `gpumon bench` got from it."""

from dataclasses import replace

import pytest

from gpumon.rules.causes import cause_of_waits
from gpumon.rules.ceilings import Ceiling, fitting, one_at_a_time_s
from gpumon.rules.evidence import Account, Disk, Evidence, Fetches, Loader, Steps
from gpumon.rules.facts import facts_of
from gpumon.rules.sentences import because

KIB = 1024
MEASURED = [
    Ceiling("sequential", 1, 89e6, 89e6 / (128 * KIB)),
    Ceiling("sequential", 8, 700e6, 700e6 / (128 * KIB)),
    Ceiling("random", 1, 11e6, 110.0),
    Ceiling("random", 8, 48e6, 480.0),
]


def evidence(fraction, *, unloaded_s=0.004, best=1.0, await_s=0.08, queue=7.0, ceiling=MEASURED[3], benched_s=None):
    """Two workers blocked on a disk that gives *fraction* of its ceiling."""
    rate = fraction * 48e6
    disk = Disk(
        "loop0",
        type="virtual",
        seconds=10.0,
        await_s=await_s,
        queue=queue,
        read_time_s=95.0,
        read_bytes=10 * rate,
        own_read_bytes=10 * rate,
        best_read_bytes_per_s=rate / best,
        unloaded_s=unloaded_s,
        ceiling=ceiling,
        benched_s=benched_s,
    )
    return Evidence(
        run_s=60.0,
        steps=Steps(600, 60.0, {"data.wait": 50.0, "forward": 10.0}),
        fetches=Fetches(600, [Account("blocked.disk", 95.0, device="loop0"), Account("cpu", 5.0)], 0.98, 0.0),
        disks={"loop0": disk},
        loader=Loader(8),
    )


def benched(given):
    return [fact for fact in facts_of(cause_of_waits(given), given) if fact.source == "gpumon bench"]


def test_at_its_ceiling_a_disk_is_saturated():
    """0.9 of what the bench got: that is the evidence, with its source, and the sentence says so."""
    given = evidence(0.9)
    cause = cause_of_waits(given)

    assert cause.name == "disk_saturated"
    [fact] = benched(given)
    assert (fact.metric, fact.unit) == ("system.disk.io", "By/s")
    assert (fact.value, fact.reference) == pytest.approx((0.9 * 48e6, 48e6))
    assert "43 MB/s of 48 MB/s (gpumon bench)" in because(cause, given)


def test_far_below_its_ceiling_it_is_not():
    """0.3 of what the bench got, however steady: it gives less than it could, and says how much."""
    given = evidence(0.3)
    cause = cause_of_waits(given)

    assert cause.name == "disk_slow"
    assert [(fact.value, fact.reference) for fact in benched(given)] == [pytest.approx((0.3 * 48e6, 48e6))]
    assert "gives 14 MB/s, where it gave gpumon bench 48 MB/s" in because(cause, given)


def test_writes_count_for_what_a_disk_could_give():
    """A third of its ceiling in reads, and as much again in the run's own writes: not slow by the bench."""
    given = evidence(0.34)
    disk = given.disks["loop0"]
    busy = replace(disk, write_bytes=0.9 * disk.read_bytes, own_write_bytes=0.9 * disk.read_bytes)

    assert cause_of_waits(replace(given, disks={"loop0": busy})).name == "disk_saturated"


@pytest.mark.parametrize(
    ("fraction", "name"), [(0.86, "disk_saturated"), (0.84, "disk_saturated"), (0.59, "disk_slow")]
)
def test_between_the_run_itself_decides(fraction, name):
    """A little below the ceiling, and as good as its best second: saturated, as without a bench."""
    assert cause_of_waits(evidence(fraction)).name == name


def test_a_ceiling_settles_what_no_window_of_the_run_could():
    """Its best second is not known, or better because of a cache: the ceiling says that it gives its most."""
    assert cause_of_waits(evidence(0.95, best=0.3)).name == "disk_saturated"
    assert cause_of_waits(evidence(0.95, best=0.3, ceiling=None)).name == "disk_slow"


def test_a_disk_that_is_slow_at_rest_stays_slow():
    """At the ceiling of eight readers because every read takes long: more readers would get more."""
    given = evidence(1.0, unloaded_s=0.078)

    assert cause_of_waits(given).name == "disk_slow"


def test_the_bench_says_how_the_disk_is_at_rest_where_nothing_else_does():
    """Its single reader's time per request is a baseline, and named as such."""
    slow, quick = evidence(0.95, unloaded_s=None, benched_s=0.078), evidence(0.95, unloaded_s=None, benched_s=0.009)

    assert cause_of_waits(slow).name == "disk_slow"
    assert cause_of_waits(quick).name == "disk_saturated"
    assert any((fact.metric, fact.reference) == ("gpumon.disk.await", 0.078) for fact in benched(slow))
    own = evidence(0.95, unloaded_s=0.078, benched_s=0.001)
    assert own.disks["loop0"].baseline[0] == 0.078


def test_without_a_ceiling_nothing_changes():
    """The report of a run without a bench names none."""
    given = evidence(0.9, ceiling=None)

    assert cause_of_waits(given).name == "disk_saturated"
    assert benched(given) == []
    assert "bench" not in because(cause_of_waits(given), given)


@pytest.mark.parametrize(
    ("readers", "size", "chosen"),
    [
        (8, 100 * KIB, MEASURED[3]),
        (1, 100 * KIB, MEASURED[2]),
        (0, 100 * KIB, MEASURED[2]),
        (4, 100 * KIB, MEASURED[3]),  # the next more
        (32, 100 * KIB, MEASURED[3]),  # as many as were measured
        (None, 100 * KIB, MEASURED[3]),
        (8, None, MEASURED[3]),
        (8, 4 * KIB, None),  # records of a memory map
    ],
)
def test_the_pattern_that_fits_how_the_run_reads(readers, size, chosen):
    """Files in random order, by as many readers; smaller pieces than that are held against nothing."""
    assert fitting(MEASURED, readers, size) == chosen


def test_readahead_cuts_the_large_reads_of_a_bench():
    """A shard read in order arrives in requests of 128 KiB: held against blocks of 1 MiB all the same."""
    blocks = [Ceiling("random", 8, 900e6, 900e6 / 2**20)]

    assert fitting(blocks, 8, 128 * KIB) == blocks[0]
    assert fitting(blocks, 8, 16 * KIB) is None


def test_in_order_where_nothing_else_was_measured():
    """The other figures were spoilt."""
    assert fitting(MEASURED[:2], 8, None) == MEASURED[1]
    assert fitting([], 8, None) is None


def test_time_of_one_request_at_rest():
    """Of the single reader of whole files; not known without one."""
    assert one_at_a_time_s(MEASURED) == pytest.approx(1 / 110)
    assert one_at_a_time_s(MEASURED[:2]) is None
