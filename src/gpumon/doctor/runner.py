"""Runs checks beside each other: each has a time limit, and one that crashes or hangs stops no other."""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from gpumon.doctor.check import Check, Result, failed
from gpumon.doctor.place import Place

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Done:
    """A check that has ended, or was given up; `number` is its place in reading order."""

    number: int
    check: Check
    results: tuple[Result, ...]


def run(checks: Sequence[Check], place: Place) -> Iterator[Done]:
    """The results as they come.

    A thread per check, none of them waited for: what hangs in the kernel ends with the process.
    """
    came: queue.SimpleQueue[Done] = queue.SimpleQueue()
    began = time.monotonic()
    for number, check in enumerate(checks):
        _start(partial(_put, came, number, check, place), check.name)
    waiting = dict(enumerate(checks))
    while waiting:
        number = min(waiting, key=lambda number: waiting[number].limit_s)
        check = waiting[number]
        try:
            done = came.get(timeout=max(0.0, began + check.limit_s - time.monotonic()))
        except queue.Empty:
            done = Done(number, check, (failed(f"no answer within {check.limit_s:g} s", check.stuck(place)),))
        if waiting.pop(done.number, None) is not None:
            yield done


def _put(came: queue.SimpleQueue[Done], number: int, check: Check, place: Place) -> None:
    came.put(Done(number, check, _run(check, place)))


def _run(check: Check, place: Place) -> tuple[Result, ...]:
    try:
        result = check.run(place)
        return (result,) if isinstance(result, Result) else tuple(result)
    except BaseException as error:  # noqa: BLE001 - the one boundary: no check stops another
        if os.environ.get("GPUMON_STRICT") == "1":
            traceback.print_exc()
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return (failed(f"the check itself failed: {told}", "GPUMON_STRICT=1 gpumon doctor"),)


def at_once(function: Callable[[T], R], items: Sequence[T], timeout_s: float, otherwise: R) -> list[R]:
    """What *function* says of each item, all asked beside each other; *otherwise* of one without an answer in time."""
    answers: dict[int, R] = {}
    raised: list[BaseException] = []

    def ask(number: int, item: T) -> None:
        try:
            answers[number] = function(item)
        except BaseException as error:  # noqa: BLE001 - it is the check's, and told there
            raised.append(error)

    threads = [_start(partial(ask, number, item), "item") for number, item in enumerate(items)]
    until = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if raised:
        raise raised[0]
    return [answers.get(number, otherwise) for number in range(len(items))]


def _start(target: Callable[[], Any], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=f"gpumon-doctor-{name}", daemon=True)
    thread.start()
    return thread
