"""The sampler: collectors on their intervals, values in memory; one that fails or hangs hurts no other."""

import logging
import os
import threading
import time

import pytest

from gpumon import metrics as m
from gpumon.errors import CollectorError, NoDataError
from gpumon.metrics import Reading
from gpumon.sampler import Sampler
from otlp_receiver import eventually

SDA = {m.SYSTEM_DEVICE: "sda"}
READS = {**SDA, m.DISK_IO_DIRECTION: "read"}


class Says:
    """A collector that calls a function for its readings."""

    def __init__(self, function, interval_s=0.05, may_block=False):
        self.function, self.interval_s, self.may_block = function, interval_s, may_block
        self.calls = 0

    def collect(self):
        self.calls += 1
        yield from self.function()


@pytest.fixture
def started():
    """Start a sampler over collectors; it is stopped after the test."""
    running = []

    def start(collectors, **options):
        sampler = Sampler(collectors, **options)
        sampler.start()
        running.append(sampler)
        return sampler

    yield start
    for sampler in running:
        sampler.stop()


def value(sampler, metric, reader=1):
    found = list(sampler.observe(metric, reader))
    assert len(found) <= 1, found
    return found[0][0] if found else None


def up(sampler):
    """Collector -> (up, reason)."""
    return {at[m.COLLECTOR]: (number, at.get(m.REASON)) for number, at in sampler.observe(m.COLLECTOR_UP, 1)}


def test_values_of_every_kind(started):
    """Counters and up-down counters are the latest value, gauges a mean; attributes come along."""
    collector = Says(
        lambda: [
            Reading(m.DISK_IO, 100, READS),
            Reading(m.MEMORY_USAGE, 5, {m.SYSTEM_MEMORY_STATE: "used"}),
            Reading(m.CPU_BUSIEST, 0.5),
        ]
    )
    sampler = started({"host": collector})
    eventually(lambda: collector.calls > 2)

    assert list(sampler.observe(m.DISK_IO, 1)) == [(100, READS)]
    assert value(sampler, m.MEMORY_USAGE) == 5
    assert value(sampler, m.CPU_BUSIEST) == 0.5
    assert value(sampler, m.DISK_AWAIT) is None


def test_a_ratio_is_the_difference_quotient_of_each_readers_window(started):
    """Await is Δtime ÷ Δoperations between two asks of one reader, whatever another reader asks meanwhile."""
    terms = [(1.0, 10)]
    collector = Says(lambda: [Reading(m.DISK_AWAIT, terms[0][0], READS, per=terms[0][1])], 0.05)
    sampler = started({"disk": collector})

    def advance(seconds, operations):
        terms[0] = (terms[0][0] + seconds, terms[0][1] + operations)
        seen = collector.calls
        eventually(lambda: collector.calls > seen + 1)

    eventually(lambda: collector.calls > 1)
    assert value(sampler, m.DISK_AWAIT, reader=1) is None  # one reading has no window yet
    assert value(sampler, m.DISK_AWAIT, reader=2) is None
    advance(0.2, 2)
    assert value(sampler, m.DISK_AWAIT, reader=1) == pytest.approx(0.1)
    advance(0.9, 3)
    assert value(sampler, m.DISK_AWAIT, reader=1) == pytest.approx(0.3)
    assert value(sampler, m.DISK_AWAIT, reader=2) == pytest.approx(1.1 / 5)


def test_a_ratio_without_operations_is_absent(started):
    """No I/O in the window: no await at all, neither 0 nor the last one."""
    terms = [(1.0, 10)]
    collector = Says(lambda: [Reading(m.DISK_AWAIT, terms[0][0], READS, per=terms[0][1])])
    sampler = started({"disk": collector})
    eventually(lambda: collector.calls > 1)
    terms[0] = (2.0, 20)
    eventually(lambda: value(sampler, m.DISK_AWAIT) == pytest.approx(0.1))
    seen = collector.calls
    eventually(lambda: collector.calls > seen + 1)

    assert value(sampler, m.DISK_AWAIT) is None


def test_asking_more_often_than_collecting_repeats_the_last_mean(started):
    """An export every second of a collector that reads every minute shows its last value, not gaps."""
    collector = Says(lambda: [Reading(m.CPU_BUSIEST, 0.25)], 60.0)
    sampler = started({"host": collector})
    eventually(lambda: collector.calls)

    assert [value(sampler, m.CPU_BUSIEST) for _ in range(3)] == [0.25] * 3


def test_a_stale_reading_is_absent(started):
    """A device that is gone disappears after three intervals; it does not keep its last value."""
    present = [True]
    collector = Says(
        lambda: [Reading(m.CPU_BUSIEST, 0.5)] + ([Reading(m.DISK_IN_FLIGHT, 3, SDA)] if present[0] else []),
        0.05,
    )
    sampler = started({"disk": collector})
    eventually(lambda: value(sampler, m.DISK_IN_FLIGHT) == 3)
    present[0] = False
    eventually(lambda: value(sampler, m.DISK_IN_FLIGHT) is None, timeout_s=3)

    assert value(sampler, m.CPU_BUSIEST) == 0.5
    present[0] = True
    eventually(lambda: value(sampler, m.DISK_IN_FLIGHT) == 3)


def test_a_counter_never_falls(started):
    """A disk that was plugged again counts from 0: the series goes on, and no delta is negative."""
    counted = [1000]
    collector = Says(lambda: [Reading(m.DISK_IO, counted[0], READS)])
    sampler = started({"disk": collector})
    eventually(lambda: value(sampler, m.DISK_IO) == 1000)
    counted[0] = 10
    eventually(lambda: value(sampler, m.DISK_IO) == 1010)
    counted[0] = 60
    eventually(lambda: value(sampler, m.DISK_IO) == 1060)
    counted[0] = 55  # a source that lost a part of its sum is not one that began anew
    seen = collector.calls
    eventually(lambda: collector.calls > seen + 1)

    assert value(sampler, m.DISK_IO) == 1060


def test_numbers_that_are_none_are_dropped(started):
    """NaN and infinity are no values: the SDK would log each of them at every export."""
    readings = [Reading(m.CPU_BUSIEST, float("nan")), Reading(m.DISK_IO, float("inf"), READS)]
    collector = Says(lambda: readings)
    sampler = started({"host": collector})
    eventually(lambda: collector.calls > 2)

    assert value(sampler, m.CPU_BUSIEST) is None
    assert value(sampler, m.DISK_IO) is None


def fail(error):
    def function():
        yield Reading(m.CPU_USABLE, 8)
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NoDataError("NVML: driver not loaded"), "NVML: driver not loaded"),
        (CollectorError("permission denied: /dev/sda"), "permission denied: /dev/sda"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug"),
    ],
)
def test_a_collector_that_fails_hurts_no_other(started, error, reason, caplog, monkeypatch):
    """The others go on; `gpumon.collector.up` says 0 and why; only a bug is logged, and once."""
    monkeypatch.delenv("GPUMON_STRICT")
    caplog.set_level(logging.INFO)
    broken, fine = Says(fail(error)), Says(lambda: [Reading(m.CPU_BUSIEST, 0.5)])
    sampler = started({"broken": broken, "fine": fine})
    eventually(lambda: broken.calls > 3 and fine.calls > 3)

    assert up(sampler) == {"broken": (0.0, reason), "fine": (1.0, None)}
    assert value(sampler, m.CPU_BUSIEST) == 0.5
    assert value(sampler, m.CPU_USABLE) == 8  # what came before the failure counts
    assert len(caplog.records) == (1 if "bug" in reason else 0)


def test_a_collector_recovers(started):
    """A source that comes back is up again, without a reason."""
    error = [CollectorError("busy")]

    def function():
        if error:
            raise error[0]
        yield Reading(m.CPU_BUSIEST, 0.5)

    sampler = started({"host": Says(function)})
    eventually(lambda: up(sampler).get("host") == (0.0, "busy"))
    error.clear()
    eventually(lambda: up(sampler)["host"] == (1.0, None))


def test_a_collector_that_hangs_is_said_to_hang_and_delays_nobody(started):
    """A driver that never answers: up is 0 and says so, the others keep their pace, stop does not wait."""
    release = threading.Event()
    fine = Says(lambda: [Reading(m.CPU_BUSIEST, 0.5)])
    hanging = Says(lambda: release.wait(30) and (), may_block=True)
    sampler = started({"smart": hanging, "host": fine}, hang_s=0.3)
    eventually(lambda: up(sampler).get("smart") == (0.0, "no answer: the call hangs"))
    seen = fine.calls
    eventually(lambda: fine.calls > seen + 3, timeout_s=2)
    assert up(sampler)["host"] == (1.0, None)
    began = time.monotonic()
    sampler.stop()
    took = time.monotonic() - began
    release.set()

    assert took < 0.5


def test_a_quick_collector_that_hangs_after_all(started):
    """Collectors that share its thread are not said to be up while they cannot run."""
    release = threading.Event()
    first = [True]

    def function():
        if not first:
            release.wait(30)
        first.clear()
        yield Reading(m.CPU_BUSIEST, 0.5)

    sampler = started({"stuck": Says(function), "behind": Says(list)}, hang_s=0.3)
    eventually(lambda: up(sampler).get("behind") == (1.0, None))
    eventually(lambda: up(sampler)["behind"] == (0.0, "not collected: another collector hangs"))
    eventually(lambda: up(sampler)["stuck"] == (0.0, "no answer: the call hangs"))
    release.set()
    eventually(lambda: up(sampler)["behind"] == (1.0, None))


def test_nothing_is_up_or_down_before_its_first_collection():
    """A sampler that was not started reports nothing."""
    sampler = Sampler({"host": Says(list)})

    assert up(sampler) == {}
    assert list(sampler.state()) == [("host", None, "")]


def test_intervals(started):
    """Each collector has its own interval, and the configuration overrides the collector's default."""
    often, seldom = Says(list, 60.0), Says(list, 60.0)
    sampler = started({"often": often, "seldom": seldom}, intervals={"often": 0.05})
    eventually(lambda: often.calls >= 5)

    assert seldom.calls == 1
    assert dict(sampler.durations())["often"].counts
    assert sum(dict(sampler.durations())["seldom"].counts) == 1


def test_the_last_values_of_a_run(started):
    """At the end every collector that answers at once is asked again; one that hangs is not waited for."""
    release = threading.Event()
    quick, hanging = Says(list, 60.0), Says(lambda: release.wait(30) and (), may_block=True)
    sampler = started({"quick": quick, "hanging": hanging})
    eventually(lambda: quick.calls == 1 and hanging.calls == 1)
    began = time.monotonic()
    sampler.collect_now()
    took = time.monotonic() - began
    release.set()

    assert quick.calls == 2
    assert took < 0.3


def test_a_collector_is_only_called_by_its_own_thread(started):
    """Collectors need no locks: also the last collection happens in the thread of all others."""
    threads = set()
    collector = Says(lambda: threads.add(threading.get_ident()) or [], 0.02)
    sampler = started({"host": collector})
    for _ in range(5):
        sampler.collect_now()

    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_forked_child_starts_nothing(started):
    """A sampler that a child inherits has no threads there, and gets none."""
    sampler = started({"host": Says(list)})
    fresh = Sampler({"host": Says(list)})
    child = os.fork()
    if child == 0:
        sampler.start()
        fresh.start()
        os._exit(threading.active_count())

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_what_happened_between_two_moments(started):
    """A step's own window: the mean of the readings around it, also of a step shorter than the interval."""
    level = [1.0]
    collector = Says(lambda: [Reading(m.DISK_IN_FLIGHT, level[0], SDA)], 0.05)
    sampler = started({"disk": collector})

    def stay(amount):
        level[0] = amount
        seen = collector.calls
        eventually(lambda: collector.calls > seen + 1)
        begin = time.monotonic()
        eventually(lambda: collector.calls > seen + 6)
        return begin, time.monotonic()

    low, high = stay(1.0), stay(9.0)
    labels = tuple(sorted(SDA.items()))
    middle = (high[0] + high[1]) / 2

    assert sampler.between(m.DISK_IN_FLIGHT, *low)[labels] == pytest.approx(1.0, abs=2.0)
    assert sampler.between(m.DISK_IN_FLIGHT, *high)[labels] == pytest.approx(9.0)
    assert sampler.between(m.DISK_IN_FLIGHT, middle, middle + 0.001)[labels] == pytest.approx(9.0)
    assert sampler.between(m.DISK_AWAIT, *high) == {}


def test_cpu_time_of_the_sampler_is_known(started):
    """What sampling costs is measured."""
    sampler = started({"host": Says(lambda: [Reading(m.CPU_BUSIEST, sum(range(100_000)))], 0.02)})

    assert eventually(lambda: sampler.cpu_ns > 1_000_000)


def test_a_description_that_changes_replaces_the_old_one():
    """An info series whose attributes changed is gone at once: no disk holds the data set and does not."""

    class Disk:
        interval_s = 3600.0
        may_block = False
        holds = False

        def collect(self):
            yield Reading(m.DISK_INFO, 1.0, {m.SYSTEM_DEVICE: "sda", m.DISK_HOLDS_DATASET: self.holds})

    disk = Disk()
    sampler = Sampler({"disk": disk})
    sampler.start()
    try:
        sampler.collect_now()
        disk.holds = True
        sampler.collect_now()
        given = [attributes[m.DISK_HOLDS_DATASET] for _, attributes in sampler.observe(m.DISK_INFO, 1)]
    finally:
        sampler.stop()

    assert given == [True]


def test_a_state_is_its_latest_value(started):
    """A count of sectors is no mean over a window, whoever asks and how often."""
    disk = {m.HW_ID: "Z1", m.SMART_COUNTER: "reallocated"}
    counts = [304]
    collector = Says(lambda: [Reading(m.SMART_COUNT, counts[0], disk)])
    sampler = started({"smart": collector})
    eventually(lambda: value(sampler, m.SMART_COUNT) == 304)
    counts[0] = 309
    seen = set()
    eventually(lambda: seen.add(value(sampler, m.SMART_COUNT, reader=2)) or 309 in seen)

    assert seen <= {304, 309}
    assert value(sampler, m.SMART_COUNT, reader=3) == 309
    assert sampler.between(m.SMART_COUNT, 0.0, time.monotonic()) == {}


def test_a_collector_may_ask_to_be_called_again_soon(started):
    """Before its interval is over, but never later than that."""
    soon, late = Says(list, interval_s=60.0), Says(list, interval_s=0.05)
    soon.again_s, late.again_s = 0.02, 60.0
    started({"soon": soon, "late": late})

    eventually(lambda: soon.calls > 5 and late.calls > 5)


def test_staleness_is_by_the_interval_however_often_it_is_called(started):
    """Between its polls a collector may have nothing new to say."""
    said = [Reading(m.TEMPERATURE, 31.0, {m.HW_ID: "Z1"})]
    collector = Says(lambda: [said.pop()] if said else [], interval_s=60.0)
    collector.again_s = 0.02
    sampler = started({"smart": collector})
    eventually(lambda: collector.calls > 20)

    assert value(sampler, m.TEMPERATURE) == 31.0


class Last(Says):
    """A collector that may block, with a last reading worth having or not."""

    def __init__(self, function, wants):
        super().__init__(function, interval_s=60.0, may_block=True)
        self.wants, self.closed = wants, 0

    def before_last(self):
        return self.wants

    def close(self):
        self.closed += 1


def test_the_end_of_a_run_waits_for_those_that_want_a_last_reading(started):
    """Not for one that has nothing new; and for none of them long."""
    release = threading.Event()
    wants, fresh = Last(list, wants=True), Last(list, wants=False)
    slow = Last(lambda: release.wait(20) and [], wants=True)
    sampler = started({"wants": wants, "fresh": fresh, "slow": slow})
    eventually(lambda: wants.calls == fresh.calls == slow.calls == 1)
    began = time.monotonic()
    sampler.collect_now()

    assert time.monotonic() - began < 3.0
    assert (wants.calls, fresh.calls) == (2, 1)
    release.set()


def test_collectors_are_closed_with_the_sampler(started):
    """Those that can be."""
    closed, plain = Last(list, wants=False), Says(list)
    sampler = started({"closed": closed, "plain": plain})
    eventually(lambda: closed.calls)
    sampler.stop()

    assert closed.closed == 1


def test_reasons_that_change_are_not_collected(started):
    """One a collection for weeks: only the last is kept."""
    numbers = iter(range(10**9))
    disk = {m.HW_ID: "Z1"}
    collector = Says(
        lambda: [
            Reading(m.COLLECTOR_UP, 0.0, {**disk, m.REASON: f"reason {next(numbers)}"}),
            Reading(m.SMART_INFO, 1.0, {**disk, m.HW_FIRMWARE_VERSION: f"{collector.calls}"}),
            Reading(m.COLLECTOR_UP, 0.0, {m.HW_ID: "Z2", m.REASON: "always the same"}),
        ],
        interval_s=0.01,
    )
    sampler = started({"smart": collector})
    eventually(lambda: collector.calls > 100)

    with sampler._lock:
        kept = {name: len(series) for name, series in sampler._series.items()}
    assert kept[m.COLLECTOR_UP.name] <= 2
    assert kept[m.SMART_INFO.name] == 1
    assert len(sampler._same) <= 4


def latest(sampler, metric, window_s=60.0):
    (found,) = [each for each in sampler.latest(window_s) if each.metric is metric]
    return found


def test_the_latest_values_with_what_makes_a_mean(started):
    """For those who hand them on: a mean over so long, its cumulative terms, how old it is, who read it."""
    terms = [1.0, 10]

    def function():
        yield Reading(m.DISK_AWAIT, terms[0], READS, per=terms[1])
        yield Reading(m.DISK_IN_FLIGHT, 3.0, SDA)
        yield Reading(m.DISK_IO, 100, READS)

    collector = Says(function)
    sampler = started({"disk": collector})
    eventually(lambda: collector.calls > 2)
    assert latest(sampler, m.DISK_AWAIT).value is None
    terms[:] = [3.0, 20]
    eventually(lambda: latest(sampler, m.DISK_AWAIT).terms == (3.0, 20))

    assert latest(sampler, m.DISK_AWAIT).value == pytest.approx(0.2)
    assert latest(sampler, m.DISK_AWAIT).is_ratio and not latest(sampler, m.DISK_IN_FLIGHT).is_ratio
    assert latest(sampler, m.DISK_IN_FLIGHT).value == 3.0
    total, samples = latest(sampler, m.DISK_IN_FLIGHT).terms
    assert total == 3.0 * samples
    assert (latest(sampler, m.DISK_IO).value, latest(sampler, m.DISK_IO).terms) == (100, None)
    assert 0 <= latest(sampler, m.DISK_IO).age_s < 1
    assert latest(sampler, m.DISK_IO).collector == "disk"
    eventually(lambda: latest(sampler, m.DISK_AWAIT, window_s=0.1).value is None)  # no reads in so short a time


def test_what_is_gone_for_long_is_forgotten(started):
    """A disk that was unplugged takes no memory for ever: one that comes later under its name counts from anew."""
    counts = {"sda": 1000, "sdb": 1000}

    def function():
        for name, count in counts.items():
            yield Reading(m.DISK_IO, count, {m.SYSTEM_DEVICE: name})

    def found():
        return {at[m.SYSTEM_DEVICE]: value for value, at in sampler.observe(m.DISK_IO, 1)}

    collector = Says(function)
    sampler = started({"disk": collector})
    eventually(lambda: found() == {"sda": 1000, "sdb": 1000})
    counts.pop("sdb")
    seen = collector.calls
    eventually(lambda: collector.calls > seen + 10)
    sampler.forget(0.2)
    counts.update(sda=5, sdb=5)

    eventually(lambda: found() == {"sda": 1005, "sdb": 5})


def test_a_sampler_that_goes_on_where_another_ended(started):
    """New collectors after a reload: a counter that began anew goes on, a gauge keeps its window, a reader its mark."""
    before = Sampler({"disk": Says(lambda: [Reading(m.DISK_IO, 100, READS), Reading(m.DISK_IN_FLIGHT, 2.0, SDA)])})
    before.start()
    eventually(lambda: value(before, m.DISK_IO) == 100)
    before.stop()
    after = Sampler(
        {"disk": Says(lambda: [Reading(m.DISK_IO, 7, READS), Reading(m.DISK_IN_FLIGHT, 4.0, SDA)]), "host": Says(list)}
    )
    after.succeed(before)
    assert value(after, m.DISK_IO) == 100
    after.start()
    try:
        eventually(lambda: value(after, m.DISK_IO) == 107)
        eventually(lambda: value(after, m.DISK_IN_FLIGHT) == 4.0)
        assert latest(after, m.DISK_IO).attributes == READS
    finally:
        after.stop()


def test_what_is_read_seldom_may_be_left_out(started):
    """An export that comes often need not repeat what is read every few minutes."""
    often = Says(lambda: [Reading(m.DISK_IN_FLIGHT, 1.0, SDA)], 0.05)
    seldom = Says(lambda: [Reading(m.DISK_IN_FLIGHT, 2.0, {m.SYSTEM_DEVICE: "sdb"})], 300.0)
    sampler = started({"often": often, "seldom": seldom})
    eventually(lambda: len(list(sampler.observe(m.DISK_IN_FLIGHT, 1))) == 2)

    assert [found for found, _ in sampler.observe(m.DISK_IN_FLIGHT, 2, slower_than_s=30)] == [1.0]
