"""Calls on a thread that can be left behind."""

import gc
import threading
import time

import pytest

from gpumon.system.hangs import Caller, HangsError
from otlp_receiver import eventually


def named(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_a_result_and_a_failure_come_back():
    """On one thread, in order; its CPU time is known."""
    caller = Caller("a caller")

    assert caller.start(lambda: 42).result(5) == 42
    with pytest.raises(ZeroDivisionError):
        caller.start(lambda: 1 / 0).result(5)
    threads = {caller.start(threading.get_ident).result(5) for _ in range(3)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    eventually(lambda: caller.cpu_ns > 0)


def test_a_call_that_hangs_is_left_behind():
    """The next call gets a thread of its own; the old one ends when its call does."""
    caller, release = Caller("a hanging caller"), threading.Event()
    hanging = caller.start(release.wait)
    with pytest.raises(HangsError):
        hanging.result(0.05)
    caller.leave_behind()

    assert caller.start(lambda: 1).result(5) == 1
    assert len(named("a hanging caller")) == 2
    release.set()
    eventually(lambda: len(named("a hanging caller")) == 1)
    assert hanging.result(0) is True


def test_the_thread_ends_with_its_owner():
    """A caller that is dropped leaves no thread."""
    caller = Caller("a dropped caller")
    caller.start(time.monotonic).result(5)
    del caller
    gc.collect()

    eventually(lambda: not named("a dropped caller"))
