"""The way out of a node's agent: OTLP with the machine as resource, and a page for Prometheus.

No run directory, no application's providers: what an agent says belongs to no run.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource

from gpumon.config import Config
from gpumon.errors import GpumonError
from gpumon.metrics import Attributes, Metric
from gpumon.telemetry import otlp
from gpumon.telemetry.events import emit
from gpumon.telemetry.export import Export, Outlet
from gpumon.telemetry.instruments import HistogramSource, Source
from gpumon.telemetry.output import interval_from_environment, is_wanted
from gpumon.telemetry.reader import Reader
from gpumon.telemetry.resource import host_attributes
from gpumon.telemetry.sinks import OtlpSink

logger = logging.getLogger(__name__)

SERVICE: Final = "gpumon-agent"
INTERVAL_S: Final = 15.0
QUEUE_BYTES: Final = 8 << 20
"""Kept of what a receiver does not take: an agent is to stay small."""
EXIT_S: Final = 1.5

_WHOLE_S: Final = 60.0
"""Between two exports of what is read that seldom (SMART: forty series per disk)."""

Event = tuple[int, str, str, Attributes]
NodeSource = Callable[[Metric, int, float], Iterable[tuple[float, Attributes]]]


def node_resource(config: Config) -> Resource:
    """The machine, and the agent on it; `OTEL_RESOURCE_ATTRIBUTES` adds to it."""
    service = config.service_name or os.environ.get("OTEL_SERVICE_NAME") or SERVICE
    told: dict[str, Any] = {
        "service.name": service,
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
        **host_attributes(),
    }
    return Resource.create(told)


def sends_otlp(config: Config) -> bool:
    """Whether an OTLP receiver is named, and nothing forbids to use it."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    asked = config.export.split("+")
    return "otlp" in asked or ("auto" in asked and otlp.named(config.endpoint))


class NodeExport:
    """Sends values and events to an OTLP receiver, every `OTEL_METRIC_EXPORT_INTERVAL` (default 15 s)."""

    def __init__(
        self,
        config: Config,
        described: Resource,
        values: NodeSource,
        histograms: HistogramSource,
        take_events: Callable[[], Iterable[Event]],
    ) -> None:
        """*values* is asked with what is the longest interval at which a series may be read."""
        self._take_events = take_events
        self._values = values
        self._whole_at = 0.0
        self._leave_out_slow = False
        self.place = otlp.place(config.endpoint)
        outlet = Outlet(
            OtlpSink(config.endpoint), Reader(self._read, histograms, described, for_otlp=True), queue_bytes=QUEUE_BYTES
        )
        self._export = Export(described, [outlet])
        self._outlet = outlet
        self._interval_s = interval_from_environment() or INTERVAL_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpumon-export", daemon=True)

    @property
    def is_delivering(self) -> bool:
        """Whether the receiver takes metrics: until it has, and while it does not, others had better send theirs."""
        return is_wanted("metrics") and self._outlet.is_delivering

    @property
    def dropped(self) -> dict[str, int]:
        return self._export.dropped

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Send what is left, for a second and a half at most."""
        until = time.monotonic() + EXIT_S
        self._stop.set()
        self._thread.join(EXIT_S)
        self._export.close(until - time.monotonic())

    def _read(self, metric: Metric, reader: int) -> Iterable[tuple[float, Attributes]]:
        return self._values(metric, reader, _WHOLE_S / 2 if self._leave_out_slow else math.inf)

    def _run(self) -> None:
        began = time.monotonic()
        due = time.monotonic() + min(2.0, self._interval_s)  # the first one soon: it shows that all is well
        while True:
            stopping = self._stop.wait(max(0.0, due - time.monotonic()))
            due = max(due + self._interval_s, time.monotonic())
            try:
                target = self._export.logger_provider.get_logger("gpumon")
                for at_ns, name, text, attributes in self._take_events():
                    emit(target, name, text, attributes, time_ns=at_ns, is_warning=True)
                now = time.monotonic()
                self._leave_out_slow = not stopping and now < self._whole_at and now - began > _WHOLE_S
                if not self._leave_out_slow:
                    self._whole_at = now + _WHOLE_S - 1.0
                self._export.collect(lambda _kind, signal: is_wanted(signal))
                self._export.flush()
            except Exception:
                logger.exception("export failed")
            if stopping:
                return


def prometheus_app(values: Source, histograms: HistogramSource, described: Resource) -> Any:
    """A WSGI application with the page /metrics.

    Raises:
        GpumonError: a package is missing.
    """
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, REGISTRY, make_wsgi_app
    except ImportError as error:
        raise GpumonError(
            f"--prometheus needs {error.name}: pip install 'opentelemetry-instrumentation-gpumon[agent]'"
        ) from None
    reader, lock = Reader(values, histograms, described), threading.Lock()

    class Scraped(PrometheusMetricReader):
        """Gets our values as they are: the SDK's own collection, over instruments, costs three times as much."""

        def take(self, data: MetricsData) -> None:
            self._receive_metrics(data)

    for about_python in (GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR):
        REGISTRY.unregister(about_python)
    scraped = Scraped()  # registers itself; exporters before 0.66 in this registry alone
    MeterProvider([scraped], resource=described, shutdown_on_exit=False)  # without instruments
    page = make_wsgi_app(REGISTRY)

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"the metrics are at /metrics\n"]
        with lock:  # one after the other: a scrape's means are since the one before it
            if (data := reader.read()) is not None:
                scraped.take(data)
            return page(environ, start_response)

    return application
