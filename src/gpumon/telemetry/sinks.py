"""The places that our own export writes to: files in a run directory, or an OTLP receiver."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import ReadableSpan

from gpumon.telemetry.files import RunFiles
from gpumon.telemetry.otlp import exporter, place
from gpumon.telemetry.otlp_json import logs_line, metrics_line, spans_line


class Sink(Protocol):
    """Where one process' signals go. `write_*` return whether the batch was delivered or stored."""

    kind: str  # file or otlp
    place: str  # for messages
    why: str  # what was last said of a batch that was not taken

    def write_metrics(self, data: MetricsData) -> bool: ...
    def write_traces(self, spans: Sequence[ReadableSpan]) -> bool: ...
    def write_logs(self, records: Sequence[Any]) -> bool: ...
    def close(self) -> None: ...


_SYSTEM_ERROR = re.compile(r"\[Errno -?\d+\] ([A-Za-z ]+)")


class FileSink:
    """OTLP JSON lines in a run directory."""

    kind = "file"

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self.place = str(files.directory)
        self.why = ""

    def write_metrics(self, data: MetricsData) -> bool:
        return self._files.write("metrics", metrics_line(data))

    def write_traces(self, spans: Sequence[ReadableSpan]) -> bool:
        return self._files.write("traces", spans_line(spans))

    def write_logs(self, records: Sequence[Any]) -> bool:
        return self._files.write("logs", logs_line(records))

    def close(self) -> None:
        self._files.close()


class OtlpSink:
    """OTLP through OpenTelemetry's own exporters, whose `OTEL_EXPORTER_OTLP_*` variables hold here too."""

    kind = "otlp"

    def __init__(self, endpoint: str | None) -> None:
        self.place = place(endpoint)
        self.why = ""
        self._endpoint = endpoint
        self._exporters: dict[str, Any] = {}

    def write_metrics(self, data: MetricsData) -> bool:
        return self._send("metrics", data)

    def write_traces(self, spans: Sequence[ReadableSpan]) -> bool:
        return self._send("traces", spans)

    def write_logs(self, records: Sequence[Any]) -> bool:
        return self._send("logs", records)

    def _send(self, signal: str, batch: Any) -> bool:
        said: list[str] = []
        try:
            # Made on first use, in the sending thread: the import of grpc takes up to half a second.
            if signal not in self._exporters:
                self._exporters[signal] = exporter(signal, self._endpoint)
            with _quiet() as said:
                is_taken = bool(self._exporters[signal].export(batch).name == "SUCCESS")
        except Exception as error:  # noqa: BLE001 - no such package, or whatever the transport raises
            said.append(f"{type(error).__name__}: {error}")
            is_taken = False
        if not is_taken:
            self.why = _reason(said[0]) if said else ""
        return is_taken

    def close(self) -> None:
        with _quiet():
            for found in list(self._exporters.values()):
                found.shutdown()


def _reason(said: str) -> str:
    """What an exporter logged, in one line: the system's own words where they are in it ("Connection refused")."""
    found = _SYSTEM_ERROR.search(said)
    if found:
        return found[1].strip()
    return re.sub(r"(header value: ).*", r"\1not shown", " ".join(said.split()))[:300]


class _ThisThread(logging.Filter):
    """Keeps what the exporters log in one thread; the application's own exporters log as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        self.said.append(record.getMessage())
        return False


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """A receiver that is down is reported once by us, not at every export by each exporter; yields what they say.

    Filters of a logger do not see records of the loggers below it, hence one on each of them.
    """
    hide = _ThisThread()
    loggers = [
        logging.getLogger(name)
        for name in list(logging.root.manager.loggerDict)
        if name.startswith(("opentelemetry.exporter", "urllib3.connectionpool"))
    ]
    for item in loggers:
        item.addFilter(hide)
    try:
        yield hide.said
    finally:
        for item in loggers:
            item.removeFilter(hide)
