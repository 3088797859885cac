"""Where this process' signals go: the one place that decides between the application's providers and ours.

Signal by signal (traces, metrics, logs):

1. A provider that was given as an argument, or that the application set as the global one, is used; nothing
   of the application's is ever replaced. That holds also when it is set later: our instruments wait on the
   API's proxies, and whatever of ours had begun for that signal ends.
2. Otherwise our own providers (never set as global) export to what `export` says:

   | `export` | |
   |---|---|
   | `auto` | `file` where a run directory is named, else `otlp` where an endpoint is, else `file` |
   | `otlp` | OTLP, http/protobuf unless `OTEL_EXPORTER_OTLP_PROTOCOL` says grpc |
   | `file` | the run directory: the named one, or a new one under `gpumon-runs/` |
   | `auto+file`, `otlp+file` | both, each with a queue of its own; `auto+file` sends where an endpoint is named |
   | `none` | nothing |

A run directory that was asked for (`file`, or one that is named) is written beside the application's
providers too: they cannot write it. With `auto` ours begins only when there is something to record (a step,
or 30 s of life, or the exit), so an application that sets its providers first never sees a directory of ours.
`OTEL_SDK_DISABLED` switches everything off; `OTEL_<SIGNAL>_EXPORTER=none` one signal of ours.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from opentelemetry import _logs, metrics, trace

from gpumon import metrics as m
from gpumon.config import Config
from gpumon.metrics import Attributes
from gpumon.telemetry import otlp
from gpumon.telemetry.events import emit
from gpumon.telemetry.export import SIGNALS, Export, Outlet
from gpumon.telemetry.files import RunFiles
from gpumon.telemetry.histograms import SdkHistograms
from gpumon.telemetry.instruments import HUB, HistogramSource
from gpumon.telemetry.leave_out import Exported, nobody
from gpumon.telemetry.reader import Reader, deltas_are_preferred
from gpumon.telemetry.resource import identity, job_id, ranks, resource, service_name
from gpumon.telemetry.run_json import join_run, leave_run, new_run_id, run_name, shared_run_name
from gpumon.telemetry.sinks import FileSink, OtlpSink, Sink
from gpumon.version import __version__

logger = logging.getLogger(__name__)

RUNS = "gpumon-runs"
EARLY_INTERVAL_S, EARLY_S, INTERVAL_S = 1.0, 300.0, 10.0
GRACE_S = 30.0
EXIT_S = 2.0
"""The exit may wait 3 s for all of gpumon."""
DELIVERY_S = 1.8
"""Of that, for a receiver that is slow, or not there."""

TAKEN_OVER = "The application set OpenTelemetry providers of its own while it ran: they get the signals since."

Destinations = list[tuple[trace.Tracer, Attributes]]


class Output:
    """One process' way out. `open`, `start`, and `close` when the process ends.

    `before_collect` is called in the export thread before everything is read. Where the application's
    readers collect, nothing is called before: what they read must be no older than the caller likes.
    """

    @classmethod
    def open(
        cls,
        config: Config,
        *,
        histograms: HistogramSource,
        before_collect: Callable[[], None],
        exported: Exported = nobody,
        tracer_provider: Any = None,
        meter_provider: Any = None,
        logger_provider: Any = None,
    ) -> Output:
        """Decide, and create the instruments; writes nothing yet and starts no thread.

        *exported* tells which series OTLP receivers get from the node's agent, and so not from here.
        """
        given = {"traces": tracer_provider, "metrics": meter_provider, "logs": logger_provider}
        return cls(config, histograms, before_collect, given, exported)

    def __init__(
        self,
        config: Config,
        histograms: HistogramSource,
        before_collect: Callable[[], None],
        given: dict[str, Any],
        exported: Exported = nobody,
    ) -> None:
        self.service = service_name(config.service_name)
        self.is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        self.run_dir: Path | None = None  # known once something is written there
        self.run_id, self._planned = _plan(config, self.service)
        self._cpu_ns = 0
        self._config = config
        self._kinds = _kinds(config)
        named = config.run_dir is not None
        self._is_asked_for = "file" in config.export.split("+") or ("file" in self._kinds and named)
        self._source = histograms
        self._before_collect = before_collect
        self._given = given
        self._applications = _Applications(given, histograms) if not self.is_disabled else None
        self._ours = {signal for signal in SIGNALS if is_wanted(signal)}
        self._own: Export | None = None
        self._own_tracer: trace.Tracer | None = None
        self._opening = threading.Lock()
        self._has_failed = False
        self._seen: set[str] = set()  # signals with a provider of the application's
        self._deadline = 0.0  # of the delivery at the exit
        self._began = time.monotonic()
        self._interval_s = interval_from_environment()
        self._wake = threading.Event()
        self._closing = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="gpumon-export", daemon=True)
        HUB.attributes = identity(self.run_id)
        HUB.exported = self._exported = exported

    # -- for the instrumentor -------------------------------------------------------------------------

    def start(self) -> None:
        """Start the export thread."""
        if not self.is_disabled:
            self._thread.start()

    def close(self) -> bool:
        """Write what is left and end; gives up after `EXIT_S`. Returns whether all of it was written."""
        if os.getpid() != self._pid or not self._thread.is_alive():
            return False
        self._deadline = time.monotonic() + DELIVERY_S
        self._closing = True
        self._wake.set()
        self._thread.join(EXIT_S)
        own = self._own
        return not self._thread.is_alive() and (own is None or (own.is_empty and not any(own.dropped.values())))

    @property
    def is_listening(self) -> bool:
        """Whether anyone takes signals now; false costs nothing: no need to read a device."""
        return self._applications is not None and (bool(self._kinds) or self._applications.any_set())

    @property
    def cpu_ns(self) -> int:
        """CPU time of the threads that export."""
        own = self._own
        return self._cpu_ns + (own.cpu_ns if own is not None else 0)

    def tracers(self) -> Destinations:
        """Every tracer to end spans with, and the attributes that they carry there; none, one or two.

        Asking begins our own export when it is its turn: ask only with a span at hand.
        """
        if self._applications is None or os.getpid() != self._pid:
            return []
        own = self._begin_own() if self._is_ours("traces") else None  # first: it may learn the run's id
        found: Destinations = []
        if self._applications.is_set("traces"):
            found.append((self._applications.tracer, HUB.attributes))
        if own is not None and self._own_tracer is not None:
            found.append((self._own_tracer, {}))
        return found

    def has_new_provider(self) -> bool:
        """Whether the application has set a provider since the last call."""
        if self._applications is None:
            return False
        before, self._seen = self._seen, set(filter(self._applications.is_set, SIGNALS))
        return bool(self._seen - before)

    def event(
        self,
        name: str,
        body: str,
        attributes: Attributes | None = None,
        *,
        time_ns: int | None = None,
        is_warning: bool = False,
    ) -> None:
        """Emit a log record with an event name, of now or of *time_ns*; nothing before OpenTelemetry 1.35."""
        if self._applications is None or os.getpid() != self._pid:
            return
        targets: list[tuple[Any, Attributes]] = []
        if self._is_ours("logs") and (own := self._begin_own()) is not None:
            targets.append((_logger(own.logger_provider), {}))
        if self._applications.is_set("logs"):
            targets.append((self._applications.logger, HUB.attributes))
        for target, extra in targets:
            emit(target, name, body, {**(attributes or {}), **extra}, time_ns=time_ns, is_warning=is_warning)

    def exemplify(self, span: trace.Span, values: Sequence[tuple[m.Metric, Attributes, float]], time_ns: int) -> None:
        """Note *values* of our histograms with the span that shows where they come from: that of a kept step."""
        own = self._own
        if own is not None:
            for reader in own.readers:
                for metric, attributes, value in values:
                    reader.exemplify(metric, attributes, value, time_ns, span.get_span_context())

    def spans_dropped(self) -> Iterator[tuple[float, Attributes]]:
        """Values of `gpumon.spans.dropped`."""
        if self._own is not None:
            yield float(self._own.spans_dropped), {m.REASON: "buffer_full"}

    def dropped(self) -> Iterator[tuple[float, Attributes]]:
        """Values of `gpumon.export.dropped`."""
        if self._own is not None:
            for signal, count in self._own.dropped.items():
                yield float(count), {m.SIGNAL: signal}

    # -- the choice -----------------------------------------------------------------------------------

    def _is_ours(self, signal: str) -> bool:
        """Whether our own export takes *signal* now."""
        return any(self._takes(kind, signal) for kind in self._kinds)

    def _takes(self, kind: str, signal: str) -> bool:
        """Whether our files, or our OTLP, take *signal* now."""
        if kind not in self._kinds or signal not in self._ours or self._applications is None:
            return False
        if kind == "file" and self._is_asked_for:
            return True
        if self._applications.is_set(signal):
            return False
        # Events go along with the rest; alone they are no reason for an export of ours.
        return signal != "logs" or self._takes(kind, "traces") or self._takes(kind, "metrics")

    def _begin_own(self) -> Export | None:
        """Our own export, begun on the first call; None where it cannot be, which is said once."""
        with self._opening:
            if self._own is None and (sinks := list(self._open_sinks())):
                self._own = self._open_own(sinks)
            return self._own

    def _open_sinks(self) -> Iterator[Sink]:
        if "file" in self._kinds:
            try:
                yield self._open_files()
            except OSError as error:
                if not self._has_failed:
                    logger.warning("gpumon cannot write its run directory: %s; set GPUMON_RUN_DIR", error)
                self._has_failed = True
        if "otlp" in self._kinds:
            yield OtlpSink(self._config.endpoint)

    def _open_files(self) -> FileSink:
        rank = ranks()["gpumon.rank"]
        began = time.time() - (time.monotonic() - self._began)
        self.run_dir, self.run_id = join_run(self._planned, self.run_id, self.service, rank, began)
        HUB.attributes = identity(self.run_id)
        return FileSink(RunFiles(self.run_dir, rank))

    def _open_own(self, sinks: list[Sink]) -> Export:
        described = resource(self.service, self.run_id)
        cumulative = Reader(HUB.values, self._source, described)
        deltas = Reader(HUB.values, self._source, described, for_otlp=True) if deltas_are_preferred() else cumulative
        outlets = [Outlet(sink, deltas if sink.kind == "otlp" else cumulative) for sink in sinks]
        own = Export(described, outlets, self._exported)
        self._own_tracer = own.tracer_provider.get_tracer(m.SCOPE, __version__, m.SCHEMA_URL)
        return own

    def _is_time(self) -> bool:
        """Whether our own export should begin by now, if it is ours to do."""
        if self._is_asked_for or self._closing or time.monotonic() - self._began > GRACE_S:
            return True
        return any(metric is m.STEP_DURATION and any(buckets.counts) for metric, _, buckets in self._source())

    # -- export thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        due = self._began + self._interval()
        failures = 0
        while True:
            closing = self._wake.wait(max(0.0, due - time.monotonic()))
            began = time.thread_time_ns()
            try:
                self._export(closing)
            except Exception:  # export must never end the training
                failures += 1
                log = logger.warning if failures == 1 else logger.debug
                log("gpumon export failed", exc_info=True)
                if os.environ.get("GPUMON_STRICT") == "1":
                    raise
            self._cpu_ns += time.thread_time_ns() - began
            if closing:
                return
            due = max(due + self._interval(), time.monotonic())

    def _interval(self) -> float:
        if self._interval_s is not None:
            return self._interval_s
        return EARLY_INTERVAL_S if time.monotonic() - self._began < EARLY_S else INTERVAL_S

    def _export(self, closing: bool) -> None:
        self._before_collect()
        assert self._applications is not None
        self._applications.record()
        own = self._own
        if any(self._is_ours(signal) for signal in SIGNALS):
            if own is None and self._is_time():
                own = self._begin_own()
            if own is not None:
                own.collect(self._takes)
                if not closing:
                    own.flush()
        elif own is not None and not closing:
            self._hand_over(own)
        if closing and own is not None:
            self._stop_own(own, self._deadline)

    def _hand_over(self, own: Export) -> None:
        """The application's providers take all signals from now on."""
        own.collect(lambda kind, signal: signal != "metrics")
        self._stop_own(own, time.monotonic() + DELIVERY_S, TAKEN_OVER)
        self._cpu_ns += own.cpu_ns
        self._own, self._own_tracer, self._kinds = None, None, ()

    def _stop_own(self, own: Export, deadline: float, note: str | None = None) -> None:
        own.close_files()
        if self.run_dir is not None:
            with suppress(OSError):
                leave_run(self.run_dir, note)
        own.close(deadline - time.monotonic())


class _Applications:
    """The application's providers: given, or global (the API's proxies until it sets them)."""

    def __init__(self, given: dict[str, Any], histograms: HistogramSource) -> None:
        self._given = given
        self.tracer: trace.Tracer = (given["traces"] or trace.get_tracer_provider()).get_tracer(
            m.SCOPE, __version__, m.SCHEMA_URL
        )
        meter_provider = given["metrics"] or metrics.get_meter_provider()
        HUB.instrument(meter_provider)
        self._histograms = SdkHistograms(meter_provider, histograms)
        self.logger = _logger(given["logs"] or _logs.get_logger_provider())

    def is_set(self, signal: str) -> bool:
        """Whether there is a provider for *signal*; one that does nothing on purpose counts."""
        if self._given[signal] is not None:
            return True
        get = {"traces": trace.get_tracer_provider, "metrics": metrics.get_meter_provider}.get(
            signal, _logs.get_logger_provider
        )
        return not type(get()).__name__.lstrip("_").startswith("Proxy")

    def any_set(self) -> bool:
        return any(self.is_set(signal) for signal in SIGNALS)

    def record(self) -> None:
        """Hand the histograms on; what was counted before a provider was set comes with the first call."""
        if self.is_set("metrics"):
            self._histograms.record()


def _logger(provider: Any) -> Any:
    return provider.get_logger(m.SCOPE, __version__, m.SCHEMA_URL)


def _kinds(config: Config) -> tuple[str, ...]:
    """Of `file` and `otlp`, where our own export goes to."""
    asked = config.export.split("+")
    kinds = {"file", "otlp"}.intersection(asked)
    if "auto" in asked:
        is_free = config.run_dir is None or "file" in asked
        kinds.add("otlp" if is_free and otlp.named(config.endpoint) else "file")
    return tuple(sorted(kinds))


def _plan(config: Config, service: str) -> tuple[str, Path]:
    """(run id, run directory) as they will be, unless others have made them by then."""
    if ranks()["gpumon.world_size"] > 1:
        name, run_id = shared_run_name(service, job_id() or "")
    else:
        run_id = new_run_id()
        name = run_name(time.time(), service, run_id)
    if config.run_dir is None:
        return run_id, Path.cwd() / RUNS / name
    return os.environ.get("GPUMON_RUN_ID") or run_id, config.run_dir.absolute()


def is_wanted(signal: str) -> bool:
    return os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower() != "none"


def interval_from_environment() -> float | None:
    text = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "").strip()
    try:
        return max(0.1, float(text) / 1000) if text else None
    except ValueError:
        logger.warning("OTEL_METRIC_EXPORT_INTERVAL=%r is no number of milliseconds: ignored", text)
        return None
