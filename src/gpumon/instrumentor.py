"""In-process mode: puts the parts together for one process, and takes them apart again.

training thread ─ stamps ─> StepTracer ─┐
loader workers ─ accounts ─> FetchAccounts ─┤ one background thread folds, twice a second
devices ─> collectors ─> Sampler ─┤
                                  └─> instruments and spans ─> Output (the application's providers, or ours)
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from gpumon import metrics as m
from gpumon._hook.sitecustomize import trains_elsewhere
from gpumon.collectors.base import registered
from gpumon.config import Config, Options
from gpumon.from_agent.node_agent import NodeAgent
from gpumon.from_agent.shared import SHARED, Shared
from gpumon.integrations import torch as torch_integration
from gpumon.integrations import torch_workers
from gpumon.metrics import Attributes, Metric
from gpumon.sampler import Sampler
from gpumon.system.datasets import DATASETS
from gpumon.system.storage import STORAGE
from gpumon.telemetry.instruments import HUB
from gpumon.telemetry.output import Output
from gpumon.telemetry.resource import ranks
from gpumon.tracing import manual
from gpumon.tracing.accounts import FetchAccounts
from gpumon.tracing.guard import guard
from gpumon.tracing.readings import TrainingReadings
from gpumon.tracing.records import Buckets, Step
from gpumon.tracing.spans import Clock, RunSpan, emit_fetch, emit_step
from gpumon.tracing.steps import StepTracer

logger = logging.getLogger(__name__)

RUN_ID_VARIABLE = "GPUMON_RUN_ID"  # set by `gpumon run`
FOLD_S = 0.5
SETTLE_S = 1.25
"""A kept step's span waits this long for the device readings of its own window (disks: every second)."""


class GpumonInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """What `gpumon.instrument()` and `opentelemetry-instrument` call."""

    configuration = Options  # the options of OpenTelemetry's declarative configuration
    _recording: Recording | None = None

    def instrument(self, **options: Any) -> None:
        """Begin; under `gpumon run`, which began already, only the data paths of a second call are taken."""
        if self._recording is not None and RUN_ID_VARIABLE in os.environ:
            self._recording.add_data_paths(Config.load(data_paths=options.get("data_paths")).data_paths)
            return
        super().instrument(**options)

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()

    def _instrument(self, **options: Any) -> None:
        if trains_elsewhere(getattr(sys, "orig_argv", sys.argv)) and not _is_child_of_multiprocessing():
            logger.debug("a helper or a launcher: the training is in another process")
            return
        providers = {name: options.pop(name, None) for name in ("tracer_provider", "meter_provider", "logger_provider")}
        known = Config.__dataclass_fields__
        config = Config.load(**{name: value for name, value in options.items() if name in known})
        with guard("instrument"):
            recording = Recording(config, **providers)
            if recording.is_wanted:
                recording.start()
                self._recording = recording

    def _uninstrument(self, **_: Any) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            with guard("uninstrument"):
                recording.stop()


def _is_child_of_multiprocessing() -> bool:
    """Whether this process runs the target of a `multiprocessing.Process`, and that is no worker of a DataLoader.

    False while such a process still starts, and imports the module that the training was started with.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return False
    worker = sys.modules.get("torch.utils.data._utils.worker")
    return worker is None or worker.get_worker_info() is None


class Recording:
    """One process' recording, from `start` to `stop`."""

    def __init__(self, config: Config, **providers: Any) -> None:
        self._config = config
        self._pid = os.getpid()
        self._tracer = StepTracer(keep=config.spans)
        self._accounts = FetchAccounts(self._tracer, STORAGE)
        self._training = TrainingReadings(self._tracer, self._accounts)
        self._sampler: Sampler | None = None
        self._clock = Clock()
        self._settling: deque[Step] = deque()
        self._folding = threading.Lock()
        self._folded = 0.0
        self._cpu_ns = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpumon-fold", daemon=True)
        self._at_childs_end: Any = None
        self._agent = NodeAgent()
        self._output = Output.open(
            config,
            histograms=self._histograms,
            before_collect=self._fold,
            exported=self._agent.exported,
            **providers,
        )
        self._run_span = RunSpan(self._clock)

    @property
    def is_wanted(self) -> bool:
        return not self._output.is_disabled

    def start(self) -> None:
        self.add_data_paths(self._config.data_paths)
        self._tracer.on_iterator.append(self._on_iterator)
        manual.use(self._tracer)
        torch_integration.instrument(self._tracer)
        self._accounts.start()  # before any worker: they write into its folder
        torch_workers.instrument(self._accounts)
        HUB.attach(self._observe)
        atexit.register(self._at_exit)
        if _is_child_of_multiprocessing():  # it ends without what atexit has
            from multiprocessing.util import Finalize

            self._at_childs_end = Finalize(None, self._at_exit, exitpriority=0)
        self._output.start()
        self._thread.start()

    def add_data_paths(self, paths: Iterable[str]) -> None:
        for path in paths:
            DATASETS.add_path(path)

    def stop(self) -> None:
        """Restore what was patched, write what is left; never takes longer than 3 s."""
        atexit.unregister(self._at_exit)
        torch_workers.uninstrument()
        torch_integration.uninstrument()
        manual.use(None)
        self._finish()
        atexit.unregister(self._at_exit)  # where a provider came in between
        if self._at_childs_end is not None:
            self._at_childs_end.cancel()
        HUB.detach()

    def _at_exit(self) -> None:
        self._finish()

    def _finish(self) -> None:
        """Each part by itself: a handler of the program's may raise at any place, torch's does where a worker died."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        sampler = self._sampler
        parts: list[Callable[[], object]] = [
            partial(self._thread.join, timeout=0.5),
            self._tracer.finish,
            self._accounts.stop,
            *([sampler.collect_now] if sampler is not None else []),
            partial(self._fold, last=True),
            self._output.close,
            *([sampler.stop] if sampler is not None else []),
        ]
        for part in parts:
            for _ in range(2):
                with guard("exit"):
                    part()
                    break

    # -- background thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(FOLD_S):
            if self._output.has_new_provider():
                # Python runs the exit's functions last in, first out, and a provider brings one that shuts it down.
                atexit.unregister(self._at_exit)
                atexit.register(self._at_exit)
            if self._sampler is None and self._output.is_listening:
                with guard("sampler"):
                    self._sampler = make_sampler(self._config, self._agent)
                    self._sampler.start()
            if self._sampler is not None:
                self._agent.tick()
            if time.monotonic() - self._folded > FOLD_S / 2:  # an export folds too
                self._fold()

    def _fold(self, *, last: bool = False) -> None:
        """Fold what the training stored since, and end the spans of the steps that were kept."""
        with self._folding, guard("fold"):
            began = time.thread_time_ns()
            self._folded = time.monotonic()
            if self._sampler is not None:
                for at_ns, name, text, attributes in self._sampler.take_events():
                    self._output.event(name, text, attributes, time_ns=at_ns, is_warning=True)
            self._tracer.drain()
            self._accounts.poll(self._tracer.take_fetches())
            self._settling.extend(self._tracer.take_kept())
            until = time.perf_counter_ns() - int(SETTLE_S * 1e9)
            while self._settling and (last or self._settling[0].end_ns < until):
                step = self._settling.popleft()
                window = self._window(step.begin_ns / 1e9, step.end_ns / 1e9)
                if (device_s := self._tracer.device_times.get(step.begin_ns)) is not None:
                    window["gpumon.step.gpu.time"] = device_s
                fetches = [self._accounts.fetch_of(end) for phase, _, end in step.spans if phase == "data.wait"]
                span = None
                for tracer, extra in self._output.tracers():
                    span = emit_step(tracer, step, self._clock, window, extra)
                    for worker_id, fetch in filter(None, fetches):
                        emit_fetch(tracer, span, step.keep_reason, worker_id, fetch, self._clock, extra)
                if span is not None and not step.failed:  # the last one is in our own export, where there is one
                    self._output.exemplify(span, histogram_values(step), self._clock.wall(step.end_ns))
            train = self._tracer.totals.stages.get("train")
            self._run_span.rotate(self._output.tracers, {"gpumon.run.steps": train.steps if train else 0}, force=last)
            self._cpu_ns += time.thread_time_ns() - began

    def _window(self, begin_s: float, end_s: float) -> dict[str, Any]:
        """The readings of the devices while a step ran, of the disk that holds the data set first of all."""
        if self._sampler is None:
            return {}
        between = self._sampler.between
        attributes: dict[str, Any] = {}
        device = next((storage.device for storage in DATASETS.storages() if storage.device), None)
        if device:
            attributes["gpumon.window.disk.device"] = device
            at = {m.SYSTEM_DEVICE: device}
            for name, metric, where in (
                ("await", m.DISK_AWAIT, {**at, m.DISK_IO_DIRECTION: "read"}),
                ("utilization", m.DISK_UTILIZATION, at),
            ):
                if (value := between(metric, begin_s, end_s).get(tuple(sorted(where.items())))) is not None:
                    attributes[f"gpumon.window.disk.{name}"] = value
        for key, value in between(m.PRESSURE_STALL_RATIO, begin_s, end_s).items():
            if ("gpumon.pressure.resource", "io") in key and (m.PRESSURE_KIND, "some") in key:
                attributes["gpumon.window.io.pressure"] = value
        utilization = between(m.GPU_UTILIZATION, begin_s, end_s).items()
        if gpus := [value for key, value in utilization if (m.HW_GPU_TASK, "general") in key]:
            attributes["gpumon.window.gpu.utilization"] = sum(gpus) / len(gpus)
        return attributes

    # -- training thread ------------------------------------------------------------------------------

    def _on_iterator(self, loader: Any, serial: int) -> None:
        """A loader is about to start its workers: the last moment at which its disk is at rest."""
        dataset = getattr(loader, "dataset", None)
        if dataset is not None:
            DATASETS.discover(dataset)

    # -- instruments ----------------------------------------------------------------------------------

    def _observe(self, metric: Metric, reader: int) -> Iterable[tuple[float, Attributes]]:
        # A reader of the application's that collects at its own exit has no fold before it.
        if time.monotonic() - self._folded > FOLD_S and self._folding.acquire(blocking=False):
            try:
                self._tracer.drain()
            finally:
                self._folding.release()
        if (values := self._training.observe(metric, reader)) is not None:
            return values
        if metric is m.OVERHEAD_TIME:
            return [(self._background_cpu_s(), {m.OVERHEAD: "background"})]
        if metric is m.SPANS_DROPPED:
            too_many = float(self._tracer.not_kept), {m.REASON: "too_many_slow_steps"}
            return [*self._output.spans_dropped(), too_many]
        if metric is m.EXPORT_DROPPED:
            return self._output.dropped()
        return self._sampler.observe(metric, reader) if self._sampler is not None else ()

    def _histograms(self) -> Iterator[tuple[Metric, Attributes, Buckets]]:
        yield from self._training.histograms()
        if self._sampler is not None:
            for name, buckets in self._sampler.durations():
                yield m.COLLECTOR_DURATION, {m.COLLECTOR: name}, buckets

    def _background_cpu_s(self) -> float:
        sampled = self._sampler.cpu_ns if self._sampler else 0
        return (self._cpu_ns + sampled + self._accounts.cpu_ns + self._agent.cpu_ns + self._output.cpu_ns) / 1e9


def histogram_values(step: Step) -> list[tuple[Metric, Attributes, float]]:
    """What a step that did not fail added to our histograms."""
    at = {m.STAGE: step.stage}
    values: list[tuple[Metric, Attributes, float]] = [(m.STEP_DURATION, at, (step.end_ns - step.begin_ns) / 1e9)]
    if "data.wait" in step.phase_ns:
        values.append((m.DATA_WAIT_DURATION, at, step.phase_ns["data.wait"] / 1e9))
    return values


def make_sampler(config: Config, agent: NodeAgent | None = None) -> Sampler:
    """All collectors of a training, or the ones that were asked for; *agent* tells what it may not read itself."""
    is_first = ranks()["gpumon.local_rank"] == 0
    factories: Mapping[str, Callable[[Config], Any]] = {
        name: factory
        for name, factory in registered().items()
        if not getattr(factory, "per_node", False) and (is_first or not getattr(factory, "per_host", False))
    }
    names = factories if config.collectors is None else config.collectors
    for name in names:
        if name not in factories:
            logger.warning("no collector %r; there are %s", name, ", ".join(sorted(factories)))
    collectors = {name: factories[name](config) for name in names if name in factories}
    if agent is not None:
        for name in collectors.keys() & SHARED:
            interval_s = config.intervals.get(name, collectors[name].interval_s)
            collectors[name] = Shared(name, collectors[name], agent, interval_s)
    return Sampler(collectors, config.intervals)
