"""Steps that training threads stamped: exact sums, the steps that are kept, threads and forks."""

import multiprocessing
import random
import threading
import time

import pytest

from gpumon.tracing import stamps as s
from gpumon.tracing.steps import LoaderSettings, StepTracer

US, MS = 1_000, 1_000_000


def rows(count, *, it=1, begin=0, wait=50 * US, compute=250 * US, samples=4, slow=()):
    """Regular steps one after the other; those in *slow* wait ten times as long."""
    at = begin
    for number in range(count):
        wait_ns = wait * 10 if number in slow else wait
        end = at + wait_ns + compute
        parts = [at, at + wait_ns, at + wait_ns + compute // 5, at + wait_ns + 3 * compute // 5]
        yield (*parts, end - compute // 5, end - compute // 10, it, samples, end)
        at = end


def traced(steps, *, rows_at_once=10_000, **options):
    tracer = StepTracer(**options)
    stamps = tracer.stamps()
    stamps.log.append((s.ITERATOR, 0, 0, 1, 7))
    for number, row in enumerate(steps):
        stamps.log.append(row)
        if number % rows_at_once == rows_at_once - 1:
            tracer.drain()
    tracer.finish()
    return tracer


@pytest.mark.parametrize("rows_at_once", [1, 7, 10_000])
def test_sums_are_exact(rows_at_once):
    """Whenever they are drained: counts, samples, and phases that add up to the steps."""
    tracer = traced(rows(1000), rows_at_once=rows_at_once)

    train = tracer.totals.stage("train")
    assert (train.steps, train.samples, train.epochs, train.first_of_epoch) == (1000, 4000, 1, 1)
    assert train.phase_ns["data.wait"] == 1000 * 50 * US
    assert train.phase_ns["forward"] == 1000 * 50 * US
    assert train.phase_ns["backward"] == 1000 * 100 * US
    assert train.phase_ns["optimizer"] == 1000 * 25 * US
    # The last step ends at its update, for nothing follows it.
    assert sum(train.phase_ns.values()) == train.step_ns
    assert sum(train.durations.counts) == sum(train.waits.counts) == 1000
    assert sum(train.durations.sums) == pytest.approx(train.step_ns / 1e9)
    assert train.waits.min_s == train.waits.max_s == 50e-6


def test_a_row_is_summed_in_well_under_a_microsecond():
    """The background thread must not take the training's time."""
    taken = list(rows(2001))
    best = float("inf")
    for _ in range(20):
        tracer = StepTracer()
        tracer.stamps().log.extend([(s.ITERATOR, 0, 0, 1, 7), *taken])
        began = time.thread_time_ns()
        tracer.drain()
        best = min(best, (time.thread_time_ns() - began) / len(taken))
    assert best < 1000


def test_sums_of_rows_are_those_of_their_events():
    """A step that stayed regular and the same step as events give the same sums, where it lies between others."""
    steps = list(rows(200))
    events = []
    for f0, f1, b0, b1, o0, o1, it, samples, _ in steps:
        events += [(s.FETCH, f0, f1, None, it, True, samples), (s.BACKWARD, b0), (s.BACKWARD_END, b1, None)]
        events += [(s.UPDATE, o0, 5), (s.UPDATE_END, o1, 5)]
    pick = random.Random(1)
    mixed = []
    for number, row in enumerate(steps):
        mixed += [row] if pick.random() < 0.7 else events[5 * number : 5 * number + 5]
    stop = (s.FETCH, steps[-1][8], steps[-1][8] + MS, "stop", 1, True, 0)

    one, two, three = (traced([*log, stop]).totals.stage("train") for log in (steps, events, mixed))

    assert one.steps == two.steps == three.steps == 200
    assert one.phase_ns == two.phase_ns == three.phase_ns
    assert one.durations.counts == two.durations.counts == three.durations.counts


def test_which_steps_are_kept():
    """Slow ones, the first of an epoch, and one a second."""
    tracer = traced(rows(10_000, slow=(5000, 9000)), rows_at_once=800)

    kept = {step.number: step for step in tracer.take_kept()}
    reasons = [step.keep_reason for step in kept.values()]
    assert kept[1].keep_reason == "first_of_epoch"
    assert kept[5001].keep_reason == kept[9001].keep_reason == "slow"
    assert reasons.count("slow") == 2
    assert reasons.count("sampled") in (2, 3)  # of 3 s of steps
    assert kept[5001].spans[0] == ("data.wait", kept[5001].begin_ns, kept[5001].begin_ns + 500 * US)
    assert sum(kept[5001].phase_ns.values()) == kept[5001].end_ns - kept[5001].begin_ns
    assert tracer.take_kept() == []


def test_many_slow_steps_are_counted_not_kept():
    """Of a run of steps the slowest are kept."""
    tracer = traced(rows(2000, slow=range(1000, 2000, 40)), rows_at_once=1000)

    assert sum(step.keep_reason == "slow" for step in tracer.take_kept()) <= 8
    assert tracer.not_kept > 10


@pytest.mark.parametrize(("keep", "expected"), [("all", 100), ("none", 0)])
def test_all_or_none(keep, expected):
    """What `spans=` says."""
    assert len(traced(rows(100), keep=keep).take_kept()) == expected


def test_an_epoch_of_one_step_is_not_kept_every_time():
    """A new iterator each step: all are the first of an epoch, and a few a second are enough."""
    tracer = StepTracer()
    log = tracer.stamps().log
    for number, row in enumerate(rows(500)):
        log.append((s.ITERATOR, row[0], row[0], number + 1, 7))
        log.append((*row[:6], number + 1, *row[7:]))
    tracer.finish()

    train = tracer.totals.stage("train")
    assert (train.steps, train.first_of_epoch, train.epochs) == (500, 500, 500)
    assert len(tracer.take_kept()) <= 10


def test_each_thread_has_its_own_rules():
    """Steps of two threads, interleaved in time, are two threads' steps; ended threads are let go."""
    tracer = StepTracer()

    def train(it):
        tracer.stamps().log.extend([(s.ITERATOR, 0, 0, it, it), *rows(100, it=it)])

    threads = [threading.Thread(target=train, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracer.drain()

    assert tracer.totals.stage("train").steps == 200
    assert tracer._threads == []


def test_a_thread_that_is_over_is_nobody_s():
    """The system gives its ident to the next thread, whose steps are its own."""
    tracer = StepTracer()
    idents = set()

    def train():
        idents.add(threading.get_ident())
        assert tracer.stamps() is tracer.last
        assert tracer.last.thread is threading.current_thread()

    for _ in range(20):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        assert tracer.last is s.NOBODY

    assert len(idents) < 20, "no ident came again: this test shows nothing here"


def test_settings_of_the_loader_that_feeds_the_steps():
    """Not of the one that was made last."""
    tracer = StepTracer()
    tracer.settings = {7: LoaderSettings(4, 2, 32, True), 8: LoaderSettings(0, None, 64, None)}
    tracer.stamps().log.extend([(s.ITERATOR, 0, 0, 1, 7), *rows(3), (s.ITERATOR, 10 * MS, 10 * MS, 2, 8)])
    tracer.drain()

    assert tracer.loader.workers == 4
    tracer.finish()
    assert tracer.loader.batch_size == 32


def test_a_forked_child_counts_nothing():
    """A loader's worker is a fork of the trainer: it must neither stamp nor report."""
    from torch.utils.data import DataLoader

    from gpumon.integrations import torch as integration

    tracer = StepTracer()
    integration.instrument(tracer)
    try:
        results = multiprocessing.get_context("fork").Queue()

        def child():
            list(DataLoader(list(range(8)), batch_size=2))
            tracer.finish()
            results.put((tracer.on, len(tracer._threads), sum(len(st.log) for st, _ in tracer._threads)))

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert results.get() == (False, 0, 0)
        list(DataLoader(list(range(8)), batch_size=2))
    finally:
        integration.uninstrument()
        tracer.finish()
    assert tracer.totals.stage("validation").steps == 4


def test_steps_before_any_drain_are_bounded():
    """A log that nobody takes does not grow for ever."""
    from gpumon.tracing.stamps import LOG_LIMIT, Stamps

    stamps = Stamps()
    stamps.log = [()] * (LOG_LIMIT - 1)
    for _ in range(10):
        stamps.event(s.BACKWARD, 0)
    assert len(stamps.log) < 10
