"""Our own providers: what cannot be written waits, within a bound, and is counted when it is given up."""

import pytest
from opentelemetry.sdk.resources import Resource

from gpumon import metrics as m
from gpumon.buckets import Buckets
from gpumon.telemetry.export import MAX_SPANS, Export
from gpumon.telemetry.reader import Reader

RESOURCE = Resource({"service.name": "demo"})


class Sink:
    """Keeps what it is given; refuses the signals in `refuses`."""

    def __init__(self):
        self.refuses = set()
        self.written = []
        self.is_closed = False

    def _write(self, signal, batch):
        if signal in self.refuses:
            return False
        self.written.append((signal, batch))
        return True

    def write_traces(self, spans):
        return self._write("traces", spans)

    def write_metrics(self, data):
        return self._write("metrics", data)

    def write_logs(self, records):
        return self._write("logs", records)

    def close(self):
        self.is_closed = True


@pytest.fixture
def sink():
    return Sink()


def an_export(sink, buckets=None, **options):
    source = [(m.STEP_DURATION, {m.STAGE: "train"}, buckets)] if buckets else []
    return Export(RESOURCE, sink, Reader(lambda *_: (), lambda: source, RESOURCE), **options)


def end_spans(export, count):
    tracer = export.tracer_provider.get_tracer("gpumon")
    for number in range(count):
        tracer.start_span("train.step", attributes={"n": number}).end()


def numbers(sink):
    return [span.attributes["n"] for signal, batch in sink.written if signal == "traces" for span in batch]


def test_everything_is_written_once_in_order(sink):
    """Two rounds: each span once."""
    export = an_export(sink)
    for _ in range(2):
        end_spans(export, 3)
        export.collect()
        assert export.flush()

    assert numbers(sink) == [0, 1, 2, 0, 1, 2]


def test_refused_batches_are_kept_in_order(sink):
    """While the sink refuses, batches wait; then they come in their order, and nothing was dropped."""
    export = an_export(sink, Buckets())
    sink.refuses = {"traces", "metrics", "logs"}
    for _ in range(10):
        end_spans(export, 1)
        export.collect()
        assert not export.flush()
    sink.refuses.clear()

    assert export.flush()
    assert numbers(sink) == [0] * 10
    assert not any(export.dropped.values())


def test_the_queue_is_bounded_and_drops_the_oldest(sink):
    """Past its bound the oldest batches go, and are counted by item."""
    export = an_export(sink, queue_bytes=50_000)
    sink.refuses = {"traces"}
    tracer = export.tracer_provider.get_tracer("gpumon")
    for number in range(100):
        tracer.start_span("train.step", attributes={"n": number}).end()
        export.collect()
        export.flush()
    sink.refuses.clear()
    export.flush()

    assert numbers(sink) == list(range(75, 100))
    assert export.dropped == {"traces": 75, "metrics": 0, "logs": 0}


def test_one_refused_batch_does_not_stop_the_rest(sink):
    """A sink that never takes spans still gets all metrics."""
    buckets = Buckets()
    buckets.add(0.1)
    export = an_export(sink, buckets)
    sink.refuses = {"traces"}
    end_spans(export, 4)
    for _ in range(6):
        export.collect()
        export.flush()

    assert [signal for signal, _ in sink.written] == ["metrics"] * 6
    assert export.dropped["traces"] == 4


def test_close_counts_what_is_left(sink):
    """What was never written is dropped, visibly."""
    export = an_export(sink)
    sink.refuses = {"traces"}
    end_spans(export, 5)
    export.collect()
    export.flush()
    export.close()

    assert export.dropped["traces"] == 5
    assert sink.is_closed


def test_a_flood_of_spans_is_bounded(sink):
    """Between two collections only so many spans are held; the newest stay, and the others are counted."""
    export = an_export(sink)
    end_spans(export, MAX_SPANS + 10)
    export.collect()
    export.flush()

    assert len(numbers(sink)) == MAX_SPANS
    assert numbers(sink)[-1] == MAX_SPANS + 9
    assert export.spans_dropped == 10


def test_an_empty_histogram_is_absent(sink):
    """Before the first step there is no duration, rather than one of count 0."""
    export = an_export(sink, Buckets())
    export.collect()
    export.flush()

    assert not sink.written
