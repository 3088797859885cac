"""Kept steps as spans, through a real SDK."""

import time

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gpumon.tracing.fetch_ring import Fetch
from gpumon.tracing.records import Step
from gpumon.tracing.spans import Clock, RunSpan, emit_fetch, emit_step


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("gpumon")


def a_step(**changes):
    begin = time.perf_counter_ns() - 100_000_000
    parts = [
        ("data.wait", begin, begin + 60_000_000),
        ("forward", begin + 60_000_000, begin + 70_000_000),
        ("optimizer", begin + 70_000_000, begin + 90_000_000),
    ]
    settings = {"number": 7, "stage": "train", "epoch": 2, "samples": 32, "keep_reason": "slow"}
    return Step(**{**settings, **changes}, begin_ns=begin, end_ns=begin + 90_000_000, spans=parts, phase_ns={})


def test_a_fetch_is_a_trace_of_its_own_and_kept_like_its_step(tracer, exporter):
    """In its worker's time, linked to the step, with why that one is kept."""
    step = a_step()
    root = emit_step(tracer, step, Clock(), {}, {})
    fetch = Fetch(step.begin_ns - 50_000_000, step.begin_ns, 20_000_000, 0, 4096, 3, 0)
    emit_fetch(tracer, root, step.keep_reason, 1, fetch, Clock(), {"gpumon.rank": 1})
    found = exporter.get_finished_spans()[-1]

    assert (found.name, found.parent, found.end_time - found.start_time) == ("data.fetch", None, 50_000_000)
    assert [link.context.span_id for link in found.links] == [root.get_span_context().span_id]
    assert dict(found.attributes) == {
        "gpumon.worker.id": 1,
        "gpumon.keep.reason": "slow",
        "gpumon.fetch.cpu.time": 0.02,
        "gpumon.fetch.runnable.time": 0.0,
        "gpumon.fetch.read": 4096,
        "gpumon.rank": 1,
    }


def test_a_step_is_one_trace(tracer, exporter):
    """A root span with the step's number in an attribute, and one child per part, in its time."""
    step = a_step()
    emit_step(tracer, step, Clock(), {"gpumon.window.disk.await": 0.08}, {"gpumon.rank": 1})
    *children, root = exporter.get_finished_spans()

    assert root.name == "train.step"
    assert root.kind is SpanKind.INTERNAL
    assert root.parent is None
    assert dict(root.attributes) == {
        "gpumon.step.number": 7,
        "gpumon.stage": "train",
        "gpumon.epoch": 2,
        "gpumon.batch.size": 32,
        "gpumon.keep.reason": "slow",
        "gpumon.step.slow": True,
        "gpumon.step.first_of_epoch": False,
        "gpumon.window.disk.await": 0.08,
        "gpumon.rank": 1,
    }
    assert [child.name for child in children] == ["data.wait", "forward", "optimizer.step"]
    assert {child.parent.span_id for child in children} == {root.context.span_id}
    assert {child.context.trace_id for child in children} == {root.context.trace_id}
    assert root.end_time - root.start_time == 90_000_000
    assert [child.end_time - child.start_time for child in children] == [60_000_000, 10_000_000, 20_000_000]
    assert root.start_time <= children[0].start_time
    assert children[-1].end_time <= root.end_time
    assert abs(root.end_time - (time.time_ns() - 10_000_000)) < 1_000_000_000


def test_a_step_belongs_to_no_span_of_the_application(tracer, exporter):
    """Whatever span is current where steps are ended, a step is a trace of its own."""
    with tracer.start_as_current_span("application") as current:
        emit_step(tracer, a_step(), Clock(), {}, {})
        assert trace.get_current_span() is current

    assert {span.name for span in exporter.get_finished_spans() if span.parent is None} == {
        "train.step",
        "application",
    }


def test_a_failed_step_has_an_error(tracer, exporter):
    """error.type and an error status, so that every backend finds failed steps."""
    emit_step(tracer, a_step(failed="OutOfMemoryError", keep_reason="failed"), Clock(), {}, {})
    root = exporter.get_finished_spans()[-1]

    assert root.attributes["error.type"] == "OutOfMemoryError"
    assert root.status.status_code is StatusCode.ERROR


def test_the_run_span_rotates(tracer, exporter):
    """`train.run` ends when its time has come or the run ends; windows follow each other without a gap."""
    asked = []

    def destinations():
        asked.append(True)
        return [(tracer, {"gpumon.rank": 1})]

    run = RunSpan(Clock())
    run.rotate(destinations, {"gpumon.run.steps": 1})
    assert not asked
    run.rotate(destinations, {"gpumon.run.steps": 2}, force=True)
    run.rotate(destinations, {"gpumon.run.steps": 5}, force=True)
    first, second = exporter.get_finished_spans()

    assert first.name == "train.run"
    assert dict(second.attributes) == {"gpumon.rank": 1, "gpumon.run.steps": 5}
    assert first.end_time == second.start_time


def test_the_clock_follows_a_wall_clock_that_was_set(monkeypatch):
    """After the wall clock was set, spans that follow have its time; within a span nothing jumps."""
    clock = Clock()
    before = clock.wall(0)
    set_ahead = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: set_ahead() + 3_600_000_000_000)
    assert clock.wall(0) == before
    clock.sync()

    assert clock.wall(0) - before == pytest.approx(3_600_000_000_000, abs=50_000_000)
