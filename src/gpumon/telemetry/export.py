"""Our own providers, for the signals that no provider of the application's takes, and the queues behind them.

Nothing here is set as the global provider: an application may still set its own at any later time.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from gpumon.telemetry.leave_out import Exported, nobody, without
from gpumon.telemetry.reader import Reader
from gpumon.telemetry.sinks import Sink

logger = logging.getLogger(__name__)

MAX_SPANS, MAX_LOGS = 8192, 1024
MAX_BATCH = 1000
"""Spans or records in one request: receivers over grpc take 4 MiB, unless told otherwise."""
QUEUE_BYTES = 64 * 2**20
SIGNALS = ("traces", "metrics", "logs")
_ITEM_BYTES = {"traces": 2000, "metrics": 600, "logs": 1000}  # a span, a point, a record in memory, about
_REFUSALS = 3


@dataclass(slots=True)
class _Batch:
    number: int  # in order of age
    signal: str
    data: Any
    items: int

    @property
    def size(self) -> int:
        return self.items * _ITEM_BYTES[self.signal]


class Outlet:
    """The queue before one sink. One thread adds, one (the same, or another) flushes.

    What could not be written waits, up to `QUEUE_BYTES`, and is written later with its own timestamps; past
    that the oldest batches go first. `dropped` counts items by signal.
    """

    def __init__(self, sink: Sink, reader: Reader, queue_bytes: int = QUEUE_BYTES) -> None:
        self.reader = reader
        self.dropped: dict[str, int] = dict.fromkeys(SIGNALS, 0)
        self._sink = sink
        self._lock = threading.Lock()  # of the queues, `_queued` and `dropped`; never held while writing
        self._queues: dict[str, deque[_Batch]] = {signal: deque() for signal in SIGNALS}
        self._order = list(SIGNALS)
        self._refusals = dict.fromkeys(SIGNALS, 0)  # in a row, each beside another signal that was taken
        self._number = 0
        self._queued = 0  # bytes, with the batch that is being written
        self._writing = 0  # items of that batch
        self._queue_bytes = queue_bytes
        self._is_failing = False
        self._is_closed = False
        self._has_delivered = False

    @property
    def is_delivering(self) -> bool:
        """Whether the last metrics were taken."""
        return self._has_delivered and not self._is_failing

    @property
    def kind(self) -> str:
        return self._sink.kind

    @property
    def is_empty(self) -> bool:
        return not self._queued

    def add(self, signal: str, data: Any, items: int) -> None:
        with self._lock:
            self._number += 1
            batch = _Batch(self._number, signal, data, items)
            self._queues[signal].append(batch)
            self._queued += batch.size
            self._trim()

    def deliver(self) -> None:
        """Write what is queued; that a sink takes nothing is said once, until it takes all of it."""
        if self.flush():
            self._is_failing = False
        elif not self._is_failing:
            why = f" ({self._sink.why})" if self._sink.why else ""
            text = "gpumon cannot deliver to %s now%s; it keeps 64 MiB and goes on trying"
            logger.warning(text, self._sink.place, why)
            self._is_failing = True

    def flush(self) -> bool:
        """Write what is queued, each signal in its order; whether the sink took all that it was given.

        A receiver that takes nothing is asked once. A signal that is refused round after round while others
        are taken loses its oldest batch: it is that batch, or that signal, which is not wanted.
        """
        is_taking, is_refused = False, False
        for signal in list(self._order):
            while (batch := self._take(signal)) is not None:
                if self._write(batch):
                    self._has_delivered = self._has_delivered or signal == "metrics"
                    is_taking, self._refusals[signal] = True, 0
                    self._done(batch)
                    continue
                is_refused = True
                self._order.remove(signal)
                self._order.append(signal)  # tried last from now on
                self._refusals[signal] += is_taking
                self._put_back(batch, is_unwanted=is_taking and self._refusals[signal] >= _REFUSALS)
                if not is_taking:
                    return False
                break
        return not is_refused

    def close(self) -> None:
        """Close the sink; what is still queued is dropped, counted and said."""
        with self._lock:
            self._is_closed = True
            left = self._writing
            for queue in self._queues.values():
                while queue:
                    left += queue[0].items
                    self._drop(queue.popleft())
        if left:
            logger.warning("gpumon ends with %s items that %s did not take", left, self._sink.place)
        self._sink.close()

    def _write(self, batch: _Batch) -> bool:
        write: Callable[[Any], bool] = getattr(self._sink, f"write_{batch.signal}")
        return write(batch.data)

    def _take(self, signal: str) -> _Batch | None:
        with self._lock:
            batch = self._queues[signal].popleft() if self._queues[signal] else None
            self._writing = batch.items if batch else 0
            return batch

    def _put_back(self, batch: _Batch, *, is_unwanted: bool) -> None:
        with self._lock:
            self._writing = 0
            if is_unwanted or self._is_closed:
                self._drop(batch)
            else:
                self._queues[batch.signal].appendleft(batch)
                self._trim()

    def _done(self, batch: _Batch) -> None:
        with self._lock:
            self._writing = 0
            self._queued -= batch.size

    def _trim(self) -> None:
        while self._queued > self._queue_bytes and (queues := [queue for queue in self._queues.values() if queue]):
            self._drop(min(queues, key=lambda queue: queue[0].number).popleft())

    def _drop(self, batch: _Batch) -> None:
        self._queued -= batch.size
        self.dropped[batch.signal] += batch.items


def _unseen() -> AbstractContextManager[Any]:
    """Hides the requests that carry our own export from instrumentations, where there may be any.

    An agent has none, and saves the memory: their package loads asyncio.
    """
    if "opentelemetry.instrumentation" not in sys.modules:
        return nullcontext()
    from opentelemetry.instrumentation.utils import suppress_instrumentation

    hidden: AbstractContextManager[Any] = suppress_instrumentation()
    return hidden


class Sender:
    """Delivers an outlet in a thread of its own: a receiver that is slow or hangs holds up nothing else."""

    def __init__(self, outlet: Outlet) -> None:
        self.cpu_ns = 0
        self._outlet = outlet
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"gpumon-{outlet.kind}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def finish(self, timeout_s: float) -> None:
        """Deliver what is left and end; what hangs by then is left behind, in a daemon thread."""
        self._closing = True
        self._wake.set()
        self._thread.join(max(0.0, timeout_s))

    def _run(self) -> None:
        with _unseen():
            while True:
                self._wake.wait()
                self._wake.clear()
                closing = self._closing  # read before the last delivery, so that nothing is left behind
                try:
                    self._outlet.deliver()
                except Exception:  # export must never end the training
                    logger.debug("gpumon export failed", exc_info=True)
                self.cpu_ns = time.thread_time_ns()
                if closing:
                    return


Takes = Callable[[str, str], bool]
"""Whether an outlet of a kind (file, otlp) takes a signal now."""


class Export:
    """Own providers over one or more outlets. `collect` and `flush` are called by one thread.

    A receiver over the network is served by a thread of its own; files are written in the caller's.
    *exported* tells which series a receiver gets from somebody else; files hold all.
    """

    def __init__(self, resource: Resource, outlets: Sequence[Outlet], exported: Exported = nobody) -> None:
        self._outlets = list(outlets)
        self._exported = exported
        self._senders = {outlet.kind: Sender(outlet) for outlet in outlets if outlet.kind == "otlp"}
        self._readers = {id(outlet.reader): outlet.reader for outlet in outlets}
        self._spans, self._logs = _SpanBuffer(), _LogBuffer()
        # The SDK's own exit hooks would wait for a full export timeout: the caller has a deadline instead.
        self.tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(self._spans)
        self.logger_provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(self._logs)  # type: ignore[arg-type]

    @property
    def spans_dropped(self) -> int:
        """Spans that ended while the buffer was full."""
        return self._spans.dropped

    @property
    def dropped(self) -> dict[str, int]:
        """Items that some outlet gave up, by signal."""
        return {signal: sum(outlet.dropped[signal] for outlet in self._outlets) for signal in SIGNALS}

    @property
    def is_empty(self) -> bool:
        return all(outlet.is_empty for outlet in self._outlets)

    @property
    def cpu_ns(self) -> int:
        """CPU time of the threads here."""
        return sum(sender.cpu_ns for sender in self._senders.values())

    @property
    def readers(self) -> list[Reader]:
        return list(self._readers.values())

    def collect(self, takes: Takes = lambda kind, signal: True) -> None:
        """Queue what was recorded since the last call, for each outlet that takes the signal."""
        for signal, buffer in (("traces", self._spans), ("logs", self._logs)):
            items = buffer.take()
            for begin in range(0, len(items), MAX_BATCH):
                batch = items[begin : begin + MAX_BATCH]
                for outlet in self._outlets:
                    if takes(outlet.kind, signal):
                        outlet.add(signal, batch, len(batch))
        # Outlets with the same temporality share one reader: they get the very same points.
        data: dict[int, MetricsData | None] = {}
        for outlet in self._outlets:
            if not takes(outlet.kind, "metrics"):
                continue
            key = id(outlet.reader)
            if key not in data:
                data[key] = outlet.reader.read()
            points = data[key]
            if points is not None and outlet.kind == "otlp" and (is_exported := self._exported()) is not None:
                points = without(points, is_exported)
            if points is not None and (count := count_points(points)):
                outlet.add("metrics", points, count)

    def flush(self) -> None:
        """Write files; let the others be sent."""
        for outlet in self._outlets:
            if (sender := self._senders.get(outlet.kind)) is not None:
                sender.wake()
            else:
                outlet.deliver()

    def close_files(self) -> None:
        """Write files and close them: they wait for no receiver."""
        for outlet in self._outlets:
            if outlet.kind not in self._senders:
                outlet.deliver()
                outlet.close()

    def close(self, timeout_s: float) -> None:
        """Deliver what is left, for so long at most, and close; what is queued then is dropped, and counted."""
        self.close_files()
        for outlet in self._outlets:
            if (sender := self._senders.get(outlet.kind)) is not None:
                sender.finish(timeout_s)
                outlet.close()


class _Buffer:
    """Holds items until they are taken; the oldest go first when it is full."""

    def __init__(self, limit: int) -> None:
        self._items: deque[Any] = deque(maxlen=limit)
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Any) -> None:
        self.dropped += len(self._items) == self._items.maxlen
        self._items.append(item)

    def take(self) -> list[Any]:
        return list(self._take())

    def _take(self) -> Iterator[Any]:
        while self._items:
            yield self._items.popleft()


class _SpanBuffer(_Buffer, SpanProcessor):
    def __init__(self) -> None:
        super().__init__(MAX_SPANS)

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self.add(span)


class _LogBuffer(_Buffer):
    """A log record processor; the SDK called the hook `emit` before it became `on_emit`."""

    def __init__(self) -> None:
        super().__init__(MAX_LOGS)
        self.on_emit = self.emit = self.add

    def enabled(self, **_: Any) -> bool:
        return True

    def shutdown(self) -> None:
        """Nothing to stop."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def count_points(data: MetricsData) -> int:
    return sum(
        len(metric.data.data_points)
        for item in data.resource_metrics
        for scoped in item.scope_metrics
        for metric in scoped.metrics
    )
