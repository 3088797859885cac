"""Our own providers, for the signals that no provider of the application's takes.

Nothing here is set as the global provider: an application may still set its own at any later time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from gpumon.telemetry.reader import Reader
from gpumon.telemetry.sinks import Sink

logger = logging.getLogger(__name__)

MAX_SPANS, MAX_LOGS = 8192, 1024
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


class Export:
    """Own providers over one sink. Passive: `collect` and `flush` are called by one thread.

    What could not be written waits, up to `QUEUE_BYTES`, and is written later with its own timestamps; past
    that the oldest batches go first. `dropped` counts items by signal.
    """

    def __init__(self, resource: Resource, sink: Sink, reader: Reader, queue_bytes: int = QUEUE_BYTES) -> None:
        self._sink = sink
        self._queues: dict[str, deque[_Batch]] = {signal: deque() for signal in SIGNALS}
        self._order = list(SIGNALS)
        self._refusals = dict.fromkeys(SIGNALS, 0)  # in a row, each beside another signal that was taken
        self._number = 0
        self._queued = 0
        self._queue_bytes = queue_bytes
        self._reader = reader
        self._spans, self._logs = _SpanBuffer(), _LogBuffer()
        # The SDK's own exit hooks would wait for a full export timeout: the caller has a deadline instead.
        self.tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(self._spans)
        self.logger_provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        self.logger_provider.add_log_record_processor(self._logs)  # type: ignore[arg-type]
        self.dropped: dict[str, int] = dict.fromkeys(SIGNALS, 0)

    @property
    def spans_dropped(self) -> int:
        """Spans that ended while the buffer was full."""
        return self._spans.dropped

    def collect(self, *, metrics: bool = True) -> None:
        """Queue what was recorded since the last call."""
        if spans := self._spans.take():
            self._add("traces", spans, len(spans))
        if records := self._logs.take():
            self._add("logs", records, len(records))
        if metrics and (data := self._reader.read()) is not None and (points := count_points(data)):
            self._add("metrics", data, points)

    def flush(self) -> bool:
        """Write what is queued, each signal in its order; whether all of it was written.

        A receiver that takes nothing is asked once. A signal that is refused round after round while others
        are taken loses its oldest batch: it is that batch, or that signal, which is not wanted.
        """
        is_taking = False
        for signal in list(self._order):
            queue = self._queues[signal]
            while queue:
                if self._write(queue[0]):
                    is_taking, self._refusals[signal] = True, 0
                    self._remove(queue[0])
                    continue
                self._order.remove(signal)
                self._order.append(signal)  # tried last from now on
                if not is_taking:
                    return False
                self._refusals[signal] += 1
                if self._refusals[signal] >= _REFUSALS:
                    self._drop(queue[0])
                break
        return not any(self._queues.values())

    def close(self) -> None:
        """Close the sink; what is still queued is dropped, and counted."""
        for queue in self._queues.values():
            while queue:
                self._drop(queue[0])
        self._sink.close()

    def _write(self, batch: _Batch) -> bool:
        write: Callable[[Any], bool] = getattr(self._sink, f"write_{batch.signal}")
        return write(batch.data)

    def _add(self, signal: str, data: Any, items: int) -> None:
        self._number += 1
        self._queues[signal].append(_Batch(self._number, signal, data, items))
        self._queued += items * _ITEM_BYTES[signal]
        while self._queued > self._queue_bytes:
            self._drop(min((queue[0] for queue in self._queues.values() if queue), key=lambda batch: batch.number))

    def _remove(self, batch: _Batch) -> None:
        self._queues[batch.signal].popleft()
        self._queued -= batch.items * _ITEM_BYTES[batch.signal]

    def _drop(self, batch: _Batch) -> None:
        self._remove(batch)
        self.dropped[batch.signal] += batch.items


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
