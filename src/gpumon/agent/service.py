"""`gpumon agent` as a service: what runs, from start to stop.

collectors ──> Sampler ──> Node ──> Api ──> Unix socket
                  └──> NodeExport (OTLP), /metrics for Prometheus
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import math
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gpumon import metrics as m
from gpumon.agent.collect import Demand, make_sampler
from gpumon.agent.notify import Notify
from gpumon.agent.paths import ClientPaths
from gpumon.agent.settings import apply, read_settings
from gpumon.agent.socket import chosen_path, listen
from gpumon.buckets import Buckets
from gpumon.config import Config
from gpumon.errors import GpumonError
from gpumon.metrics import Attributes, Metric

if TYPE_CHECKING:
    from gpumon.agent.server import Server
    from gpumon.telemetry.node import NodeExport

logger = logging.getLogger("gpumon.agent")

PROMETHEUS_PORT: Final = 9464
_KEEP_S: Final = 300.0  # between looks for what can be forgotten
_FORGET_S: Final = 3600.0
_IDLE_S: Final = 60.0
_MALLOPT: Final = {-8: 2, -3: 128 << 10, -1: 128 << 10}  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
_GC_OBJECTS: Final = 20_000  # new ones between two looks for garbage: a round of readings makes a few thousand


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    socket: Path | None = None
    group: str | None = None
    prometheus: str | None = None  # HOST:PORT
    config: Path | None = None


def serve(options: Options) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP reads the configuration and looks for devices anew.

    Raises:
        GpumonError: it cannot begin.
        ValueError: a setting does not fit.
    """
    try:
        import waitress  # noqa: F401
    except ImportError:
        install = "pip install 'opentelemetry-instrumentation-gpumon[agent]'"
        raise GpumonError(f"the agent needs waitress: {install}") from None
    _stay_small()
    logging.basicConfig(level=logging.INFO, format="gpumon agent: %(message)s")
    environment = dict(os.environ)
    config = apply(read_settings(options.config, environment))
    signals = Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    service = Service(options, config, environment)
    try:
        service.start()
        service.wait(signals)
    finally:
        service.stop()


class Signals:
    """Signals of the process, one after the other, for the main thread.

    By a pipe that the interpreter writes to at once: a handler in Python runs only when the main thread comes to it,
    and one that arrives just before this waits for a queue would lie there until the wait is over.
    """

    def __init__(self, *numbers: int) -> None:
        self._out, into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(into, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda _number, _frame: None)

    def get(self, timeout_s: float) -> int | None:
        """The next one's number; None where none came in time."""
        select.select([self._out], [], [], timeout_s)
        try:
            return os.read(self._out, 1)[0]
        except BlockingIOError:
            return None


class Service:
    """`start`, `wait`, `stop`. *environment* is what it was before the configuration file added to it."""

    def __init__(self, options: Options, config: Config, environment: Mapping[str, str]) -> None:
        from gpumon.agent.api import Api
        from gpumon.agent.node import Node
        from gpumon.agent.server import Server

        self._options, self._config = options, config
        self._environment = environment
        self._notify = Notify(self._environment)
        self._demand = Demand()
        self._sampler = make_sampler(config, self._demand)
        self._paths = ClientPaths()
        self._export: NodeExport | None = None
        self._node = Node(self._sampler, self._paths, self._demand, self._is_exporting)
        self._listener = listen(chosen_path(options.socket, os.environ), options.group, environment)
        self._server: Server | None = None
        self._places: list[str] = []
        try:
            self._server = Server(self._listener, Api(self._node))
            self._open_exports(self._server)
        except BaseException:
            self._listener.close()
            raise
        who = f"group {self._listener.group}" if self._listener.group else "root alone: there is no group gpumon"
        self._places.insert(0, f"{self._listener.path} ({who})")

    def start(self) -> None:
        assert self._server is not None
        self._sampler.start()
        self._server.start()
        if self._export is not None:
            self._export.start()
        gc.set_threshold(_GC_OBJECTS, 10, 10)
        _settle()
        status = f"at {', '.join(self._places)}; {', '.join(name for name, _, _ in self._sampler.state())}"
        logger.info("ready %s", status)
        self._notify.ready(status)

    def wait(self, signals: Signals) -> None:
        """Until a signal says to stop; meanwhile the little that has to be done now and then."""
        self._paths.refresh()
        kept = time.monotonic()
        pause_s = min(_IDLE_S, (self._notify.watchdog_s or 2 * _IDLE_S) / 2)
        while True:
            if self._server is not None and self._server.is_alive:
                self._notify.alive()
            number = signals.get(pause_s)
            if number in (signal.SIGTERM, signal.SIGINT):
                return
            if number == signal.SIGHUP:
                self._reload()
            if time.monotonic() - kept > _KEEP_S:
                kept = time.monotonic()
                self._sampler.forget(_FORGET_S)
                self._paths.refresh()

    def stop(self) -> None:
        """Within 3 s: send what is left, remove the socket."""
        self._notify.stopping()
        if self._server is not None:
            self._server.stop()
        self._listener.close()
        if self._export is not None:
            self._export.close()
        self._sampler.stop()
        logger.info("stopped")

    def _reload(self) -> None:
        """Other collectors and intervals may hold from now on; socket and exports stay as they are."""
        self._notify.reloading()
        try:
            config = apply(read_settings(self._options.config, self._environment))
            fresh = make_sampler(config, self._demand)
        except ValueError as error:
            logger.error("not reloaded: %s", error)
        else:
            self._sampler.stop()
            fresh.succeed(self._sampler)
            self._sampler = self._node.sampler = fresh
            fresh.start()
            _settle()
            self._paths.refresh()
            logger.info("reloaded: %s", ", ".join(name for name, _, _ in fresh.state()))
        self._notify.ready("reloaded")

    # -- exports ------------------------------------------------------------------------------------

    def _open_exports(self, server: Server) -> None:
        from gpumon.telemetry.node import NodeExport, node_resource, prometheus_app, sends_otlp

        described = node_resource(self._config)
        if sends_otlp(self._config):
            self._export = NodeExport(
                self._config, described, self._observe, self._histograms, lambda: self._sampler.take_events()
            )
            self._places.append(f"OTLP to {self._export.place}")
        if self._options.prometheus is not None:
            host, port = _address(self._options.prometheus)
            application = prometheus_app(self._observe, self._histograms, described)
            port = server.add_tcp(host, port, application)
            self._places.append(f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics")

    def _is_exporting(self) -> bool:
        return self._export is not None and self._export.is_delivering

    def _observe(
        self, metric: Metric, reader: int, slower_than_s: float = math.inf
    ) -> Iterable[tuple[float, Attributes]]:
        if metric is m.EXPORT_DROPPED and self._export is not None:
            return [(float(count), {m.SIGNAL: name}) for name, count in self._export.dropped.items()]
        if metric is m.OVERHEAD_TIME:
            return [(time.process_time(), {m.OVERHEAD: "background"})]
        return self._sampler.observe(metric, reader, slower_than_s=slower_than_s)

    def _histograms(self) -> Iterator[tuple[Metric, Attributes, Buckets]]:
        for name, buckets in self._sampler.durations():
            yield m.COLLECTOR_DURATION, {m.COLLECTOR: name}, buckets


def _stay_small() -> None:
    """Let glibc give memory back: it keeps what each thread freed for that thread, and large blocks once freed."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)


def _settle() -> None:
    """What is there now stays: no later look for garbage has to pass it again."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _address(text: str) -> tuple[str, int]:
    """HOST:PORT, PORT alone on the loopback interface, HOST alone with the usual port; [::1]:9464 for IPv6."""
    host, separator, port = text.rpartition(":")
    if not separator:
        host, port = ("", text) if text.isdigit() else (text, "")
    elif text.endswith("]"):
        host, port = text, ""
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    number: Any = int(port) if port.isdigit() else PROMETHEUS_PORT if not port else None
    if number is None or not 0 <= number <= 65535:
        raise ValueError(f"--prometheus: expected HOST:PORT, got {text!r}")
    return host, number
