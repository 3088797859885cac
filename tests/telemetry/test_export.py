"""Our own providers: what cannot be written waits, within a bound, and is counted when it is given up."""

import threading
import time

import pytest
from opentelemetry.sdk.resources import Resource

from gpumon import metrics as m
from gpumon.buckets import Buckets
from gpumon.telemetry.export import MAX_BATCH, MAX_SPANS, Export, Outlet
from gpumon.telemetry.reader import Reader
from otlp_receiver import eventually

RESOURCE = Resource({"service.name": "demo"})


class Sink:
    """Keeps what it is given; refuses the signals in `refuses`, and hangs until `answers`."""

    place, why = "nowhere", ""

    def __init__(self, kind="file"):
        self.kind = kind
        self.answers = threading.Event()
        self.answers.set()
        self.refuses = set()
        self.written = []
        self.is_closed = False

    def _write(self, signal, batch):
        self.answers.wait(30)
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


def an_export(*sinks, buckets=None, **options):
    source = [(m.STEP_DURATION, {m.STAGE: "train"}, buckets)] if buckets else []
    reader = Reader(lambda *_: (), lambda: source, RESOURCE)
    return Export(RESOURCE, [Outlet(sink, reader, **options) for sink in sinks])


def end_spans(export, count):
    tracer = export.tracer_provider.get_tracer("gpumon")
    for number in range(count):
        tracer.start_span("train.step", attributes={"n": number}).end()


def numbers(sink):
    return [span.attributes["n"] for signal, batch in sink.written if signal == "traces" for span in batch]


def test_what_comes_while_it_delivers_is_no_failure(sink, caplog):
    """Another signal's batch, queued meanwhile, waits for the next round: nobody refused it."""
    outlet = Outlet(sink, None)
    outlet.add("metrics", "first", 1)
    outlet.add("logs", "second", 1)
    sink.write_logs = lambda records: outlet.add("metrics", "third", 1) or True

    outlet.deliver()
    assert not caplog.records

    outlet.deliver()
    assert [batch for _, batch in sink.written] == ["first", "third"]


def test_everything_is_written_once_in_order(sink):
    """Two rounds: each span once."""
    export = an_export(sink)
    for _ in range(2):
        end_spans(export, 3)
        export.collect()
        export.flush()
        assert export.is_empty

    assert numbers(sink) == [0, 1, 2, 0, 1, 2]


def test_refused_batches_are_kept_in_order(sink):
    """While the sink refuses, batches wait; then they come in their order, and nothing was dropped."""
    export = an_export(sink, buckets=Buckets())
    sink.refuses = {"traces", "metrics", "logs"}
    for _ in range(10):
        end_spans(export, 1)
        export.collect()
        export.flush()
        assert not export.is_empty
    sink.refuses.clear()
    export.flush()

    assert export.is_empty
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
    export = an_export(sink, buckets=buckets)
    sink.refuses = {"traces"}
    end_spans(export, 4)
    for _ in range(6):
        export.collect()
        export.flush()

    assert [signal for signal, _ in sink.written] == ["metrics"] * 6
    assert export.dropped["traces"] == 4


def test_an_outage_after_refusals_loses_nothing(sink):
    """A signal that was refused alone is dropped alone; while the sink takes nothing at all, everything waits."""
    buckets = Buckets()
    buckets.add(0.1)
    export = an_export(sink, buckets=buckets)
    sink.refuses = {"traces"}
    end_spans(export, 1)
    for _ in range(4):
        export.collect()
        export.flush()
    assert export.dropped["traces"] == 1
    sink.refuses = {"traces", "metrics", "logs"}
    for _ in range(5):
        end_spans(export, 1)
        export.collect()
        export.flush()
    sink.refuses = set()
    export.flush()

    assert export.dropped["traces"] == 1
    assert len(numbers(sink)) == 5


def test_close_counts_what_is_left(sink):
    """What was never written is dropped, visibly."""
    export = an_export(sink)
    sink.refuses = {"traces"}
    end_spans(export, 5)
    export.collect()
    export.flush()
    export.close(1.0)

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
    export = an_export(sink, buckets=Buckets())
    export.collect()
    export.flush()

    assert not sink.written


def test_large_batches_are_split(sink):
    """A receiver over grpc takes requests of 4 MiB: thousands of spans come in several."""
    export = an_export(sink)
    end_spans(export, 2 * MAX_BATCH + 1)
    export.collect()
    export.flush()

    assert [len(batch) for _, batch in sink.written] == [MAX_BATCH, MAX_BATCH, 1]


def test_a_receiver_that_hangs_holds_up_no_file(sink):
    """Two outlets: the file gets each window at once, the receiver all of them once it answers."""
    buckets = Buckets()
    buckets.add(0.1)
    receiver = Sink("otlp")
    receiver.answers.clear()
    export = an_export(sink, receiver, buckets=buckets)
    began = time.monotonic()
    for _ in range(5):
        end_spans(export, 2)
        export.collect()
        export.flush()
    took = time.monotonic() - began

    assert len(sink.written) == 10
    assert not receiver.written
    assert took < 1.0
    receiver.answers.set()
    export.close(10.0)
    assert sorted(map(str, receiver.written)) == sorted(map(str, sink.written))
    assert not any(export.dropped.values())
    assert receiver.is_closed


def test_an_exit_leaves_a_hanging_receiver_behind(sink):
    """`close` waits so long and no longer; what hung or waited is counted, and the file has it."""
    receiver = Sink("otlp")
    receiver.answers.clear()
    export = an_export(sink, receiver)
    for _ in range(3):
        end_spans(export, 1)
        export.collect()
        export.flush()
    began = time.monotonic()
    export.close(0.2)
    took = time.monotonic() - began
    receiver.refuses = {"traces"}
    receiver.answers.set()

    assert took < 1.0
    assert len(numbers(sink)) == 3
    eventually(lambda: export.dropped["traces"] == 3)


def test_each_outlet_gets_its_signals(sink):
    """What an application's provider takes is kept from one outlet and not from the other."""
    receiver = Sink("otlp")
    export = an_export(sink, receiver)
    end_spans(export, 1)
    export.collect(lambda kind, signal: (kind, signal) != ("otlp", "traces"))
    export.flush()
    export.close(1.0)

    assert numbers(sink) == [0]
    assert not receiver.written
