"""The training's sums as metrics: what the instruments report of steps, fetches and loaders.

Everything here only reads memory; a counter may be asked for at any time, by any number of readers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gpumon import metrics as m
from gpumon.metrics import Attributes, Metric
from gpumon.tracing.records import Buckets, StageTotals

if TYPE_CHECKING:
    from gpumon.tracing.accounts import FetchAccounts
    from gpumon.tracing.steps import StepTracer

Values = Iterator[tuple[float, Attributes]]

_STAGE_VALUES: dict[Metric, Callable[[StageTotals], float]] = {
    m.STEP_COUNT: lambda stage: stage.steps,
    m.SAMPLE_COUNT: lambda stage: stage.samples,
    m.EPOCH_COUNT: lambda stage: stage.epochs,
    m.STEP_FAILURES: lambda stage: stage.failures,
    m.STEP_SKIPPED: lambda stage: stage.skipped,
    m.STEP_ASSUMED: lambda stage: stage.assumed,
    m.STEP_TIME: lambda stage: stage.step_ns / 1e9,
    m.FIRST_OF_EPOCH_COUNT: lambda stage: stage.first_of_epoch,
    m.FIRST_OF_EPOCH_WAIT_TIME: lambda stage: stage.first_of_epoch_wait_ns / 1e9,
    m.FIRST_OF_EPOCH_STEP_TIME: lambda stage: stage.first_of_epoch_step_ns / 1e9,
}


class TrainingReadings:
    """Values of the training block and the fetch block of the catalogue."""

    def __init__(self, tracer: StepTracer, accounts: FetchAccounts) -> None:
        self._tracer = tracer
        self._fetches = accounts.totals
        self._waits: dict[tuple[int, str], tuple[int, int]] = {}  # (reader, stage) -> wait, step ns
        self._reader_seen: dict[int, float] = {}
        self._others: dict[Metric, Callable[[], Values]] = {
            m.PHASE_TIME: self._phase_time,
            m.STEP_GPU_COUNT: lambda: self._device(lambda stage: stage.gpu_steps),
            m.STEP_GPU_TIME: lambda: self._device(lambda stage: stage.gpu_s),
            m.PHASE_GPU_TIME: self._device_phases,
            m.ALLOCATOR_MEMORY_USAGE: self._device_memory,
            m.BACKGROUND_FETCH_COUNT: self._background_fetches,
            m.LOADER_STARTUP_TIME: self._loader_startup,
            m.FETCH_COUNT: self._fetch_count,
            m.FETCH_TIME: self._fetch_time,
            m.FETCH_READ: self._fetch_read,
            m.FETCH_LOST: self._fetch_lost,
            m.HANDOVER_TIME: self._handover,
            m.LOADER_WORKERS: lambda: self._loader("workers"),
            m.LOADER_PREFETCH: lambda: self._loader("prefetch"),
            m.LOADER_BATCH_SIZE: lambda: self._loader("batch_size"),
            m.LOADER_PERSISTENT: lambda: self._loader("persistent"),
        }

    def observe(self, metric: Metric, reader: int) -> Values | None:
        """Values of *metric*; None where it is not one of the training's."""
        if (value := _STAGE_VALUES.get(metric)) is not None:
            return self._per_stage(value)
        if metric is m.DATA_WAIT_UTILIZATION:
            return self._wait_share(reader)
        other = self._others.get(metric)
        return other() if other else None

    def histograms(self) -> Iterator[tuple[Metric, Attributes, Buckets]]:
        for name, stage in list(self._tracer.totals.stages.items()):
            yield m.STEP_DURATION, {m.STAGE: name}, stage.durations
            yield m.DATA_WAIT_DURATION, {m.STAGE: name}, stage.waits
        yield m.FETCH_READY_AGE, {}, self._fetches.ready_age

    def _per_stage(self, value: Callable[[StageTotals], float]) -> Values:
        for name, stage in list(self._tracer.totals.stages.items()):
            yield value(stage), {m.STAGE: name}

    def _phase_time(self) -> Values:
        for name, stage in list(self._tracer.totals.stages.items()):
            for phase, ns in list(stage.phase_ns.items()):
                yield ns / 1e9, {m.STAGE: name, m.PHASE: phase}

    def _device(self, value: Callable[[StageTotals], float]) -> Values:
        for name, stage in list(self._tracer.totals.stages.items()):
            if stage.gpu_steps:
                yield value(stage), {m.STAGE: name}

    def _device_phases(self) -> Values:
        for name, stage in list(self._tracer.totals.stages.items()):
            for phase, seconds in list(stage.gpu_phase_s.items()):
                yield seconds, {m.STAGE: name, m.PHASE: phase}

    def _device_memory(self) -> Values:
        for device, states in list(self._tracer.device_memory.items()):
            for state, size in states.items():
                yield size, {m.DEVICE_INDEX: device, m.ALLOCATOR_STATE: state}

    def _wait_share(self, reader: int) -> Values:
        now = time.monotonic()
        self._reader_seen[reader] = now
        if len(self._reader_seen) > 64:  # readers that came and went
            gone = {key for key, seen in self._reader_seen.items() if seen < now - 600}
            self._reader_seen = {key: seen for key, seen in self._reader_seen.items() if key not in gone}
            self._waits = {key: value for key, value in self._waits.items() if key[0] not in gone}
        for name, stage in list(self._tracer.totals.stages.items()):
            if "data.wait" not in stage.phase_ns:
                continue
            wait, total = stage.phase_ns["data.wait"], stage.step_ns
            wait_before, total_before = self._waits.get((reader, name), (0, 0))
            if total > total_before:
                self._waits[reader, name] = (wait, total)
                yield (wait - wait_before) / (total - total_before), {m.STAGE: name}

    def _background_fetches(self) -> Values:
        if count := self._tracer.totals.background_fetches:
            yield count, {}

    def _loader_startup(self) -> Values:
        if ns := self._tracer.totals.loader_startup_ns:
            yield ns / 1e9, {}

    def _fetch_count(self) -> Values:
        for worker, count in list(self._fetches.count.items()):
            yield count, {m.WORKER_ID: worker}

    def _fetch_time(self) -> Values:
        for (account, device, worker, call, file_system), seconds in list(self._fetches.time_s.items()):
            attributes: dict[str, m.AttributeValue] = {m.FETCH_ACCOUNT: account, m.WORKER_ID: worker}
            more = {m.SYSTEM_DEVICE: device, m.FETCH_CALL: call, m.FETCH_FILE_SYSTEM: file_system}
            attributes |= {key: value for key, value in more.items() if value}
            yield seconds, attributes

    def _fetch_read(self) -> Values:
        for device, count in list(self._fetches.read_bytes.items()):
            yield count, {m.SYSTEM_DEVICE: device} if device else {}

    def _fetch_lost(self) -> Values:
        if self._fetches.lost:
            yield self._fetches.lost, {}

    def _handover(self) -> Values:
        if self._fetches.count:
            yield self._fetches.handover_s, {}

    def _loader(self, name: str) -> Values:
        value = getattr(self._tracer.loader, name, None)
        if value is not None:
            yield float(value), {}
