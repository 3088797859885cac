"""Kept steps as spans: one trace per step, with explicit times; and the run's span, rotated.

Only the OpenTelemetry API is used here, so the same code serves our providers and the application's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from gpumon import metrics as m
from gpumon.tracing.fetch_ring import Fetch
from gpumon.tracing.records import Step

RUN_SPAN_S = 600.0
"""The run's span is ended and begun anew this often: a span that lives for hours is seen by nobody."""

SPAN_NAMES = {"optimizer": "optimizer.step", "checkpoint": "checkpoint.save"}

Window = Callable[[int, int], Mapping[str, Any]]
"""Device readings between two `perf_counter_ns`, as `gpumon.window.*` attributes."""


Destinations = Callable[[], Iterable[tuple[Tracer, Mapping[str, Any]]]]


class Clock:
    """Turns `time.perf_counter_ns()` into nanoseconds since the epoch.

    The offset changes only in `sync`, between spans, so that a step's children lie within it.
    """

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.perf_counter_ns()

    def wall(self, perf_ns: int) -> int:
        return perf_ns + self._offset

    def sync(self) -> None:
        """Follow the wall clock where it was set, or the machine slept."""
        offset = time.time_ns() - time.perf_counter_ns()
        if abs(offset - self._offset) > 50_000_000:  # more than a preemption between the two reads
            self._offset = offset


def emit_step(tracer: Tracer, step: Step, clock: Clock, window: Mapping[str, Any], extra: Mapping[str, Any]) -> Span:
    """End one root span `<stage>.step` with a child per part of the step; returns the root."""
    clock.sync()
    attributes: dict[str, Any] = {
        "gpumon.step.number": step.number,
        "gpumon.stage": step.stage,
        "gpumon.keep.reason": step.keep_reason,
        "gpumon.step.first_of_epoch": step.first_of_epoch,
        "gpumon.step.slow": step.keep_reason == "slow",
        **extra,
        **window,
    }
    if step.epoch:
        attributes["gpumon.epoch"] = step.epoch
    if step.samples:
        attributes["gpumon.batch.size"] = step.samples
    if step.skipped:
        attributes["gpumon.step.skipped"] = True
    if step.assumed:
        attributes["gpumon.step.assumed"] = True
    # An empty context: the step is the root of its own trace, whatever span the application has current.
    root = tracer.start_span(
        f"{step.stage}.step",
        context=Context(),
        kind=SpanKind.INTERNAL,
        attributes=attributes,
        start_time=clock.wall(step.begin_ns),
    )
    inside = set_span_in_context(root, Context())
    for phase, begin, end in step.spans:
        child = tracer.start_span(
            SPAN_NAMES.get(phase, phase),
            context=inside,
            attributes={"gpumon.phase": phase, **extra},
            start_time=clock.wall(begin),
        )
        child.end(clock.wall(end))
    if step.failed:
        root.set_attribute("error.type", step.failed)
        root.set_status(Status(StatusCode.ERROR, step.failed))
    root.end(clock.wall(step.end_ns))
    return root


def emit_fetch(
    tracer: Tracer,
    step: Span,
    keep_reason: str,
    worker_id: int,
    fetch: Fetch,
    clock: Clock,
    extra: Mapping[str, Any],
) -> None:
    """End a span over the fetch of a batch in its worker, linked to the step that used the batch.

    *keep_reason*: the step's; whoever thins traces out keeps both or neither by it.
    """
    span = tracer.start_span(
        "data.fetch",
        context=Context(),
        links=[Link(step.get_span_context())],
        attributes={
            m.WORKER_ID: worker_id,
            "gpumon.keep.reason": keep_reason,
            "gpumon.fetch.cpu.time": fetch.cpu_ns / 1e9,
            "gpumon.fetch.runnable.time": fetch.runnable_ns / 1e9,
            "gpumon.fetch.read": fetch.read_bytes,
            **extra,
        },
        start_time=clock.wall(fetch.begin_ns),
    )
    span.end(clock.wall(fetch.end_ns))


class RunSpan:
    """`train.run`: what this process did since the last rotation."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begin = time.perf_counter_ns()

    def rotate(self, destinations: Destinations, counts: Mapping[str, Any], *, force: bool = False) -> None:
        """End the span when its time has come (or *force*), with *counts* as attributes, and begin the next.

        *destinations* is asked only then: every tracer, and the attributes that its spans carry there.
        """
        now = time.perf_counter_ns()
        if not force and now - self._begin < RUN_SPAN_S * 1e9:
            return
        self._clock.sync()
        for tracer, extra in destinations():
            span = tracer.start_span(
                "train.run",
                context=Context(),
                attributes={**extra, **counts},
                start_time=self._clock.wall(self._begin),
            )
            span.end(self._clock.wall(now))
        self._begin = now
