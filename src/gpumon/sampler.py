"""Runs the collectors on their intervals and keeps what they said, in memory.

One daemon thread serves all collectors that answer at once; a collector that may block (a driver, a
process) gets a thread of its own, so that it delays nobody. Readers of the values never touch a device.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gpumon import metrics as m
from gpumon.collectors.base import Collector
from gpumon.errors import CollectorError, NoDataError
from gpumon.metrics import Metric, Reading
from gpumon.tracing.records import Buckets

logger = logging.getLogger(__name__)

STALE_INTERVALS = 3  # a reading older than this many intervals is absent: a stuck collector must not look alive
HISTORY_S = 300.0

Key = tuple[str, tuple[tuple[str, m.AttributeValue], ...]]  # metric name, sorted attributes


@dataclass(slots=True)
class Series:
    """The running state of one series.

    A gauge is kept as Σvalue and Σ1 over its samples, a ratio as its two cumulative terms, so the mean over
    any window is Δvalue ÷ Δper between its two ends, whoever asks and however often.
    """

    key: Key
    metric: Metric
    attributes: m.Attributes
    value: float = 0.0
    per: float = 0.0
    is_ratio: bool = False
    first: tuple[float, float] = (0.0, 0.0)
    updated: float = 0.0
    collector: str = ""


@dataclass(slots=True)
class _Mark:
    """Where a reader's last window of one metric ended."""

    at: float = 0.0
    terms: dict[Key, tuple[float, float]] = field(default_factory=dict)
    means: dict[Key, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Entry:
    name: str
    collector: Collector
    interval_s: float
    due: float = 0.0
    up: bool | None = None
    reason: str = ""
    started: float | None = None  # monotonic time of the call in progress
    durations: Buckets = field(default_factory=Buckets)


class Sampler:
    """Latest values and a short history of every series that the collectors yield."""

    def __init__(self, collectors: Mapping[str, Collector], intervals: Mapping[str, float] | None = None) -> None:
        intervals = intervals or {}
        self._entries = [
            _Entry(name, collector, intervals.get(name, collector.interval_s))
            for name, collector in collectors.items()
        ]
        self._series: dict[Key, Series] = {}
        self._by_metric: dict[str, list[Series]] = {}
        self._history: deque[tuple[float, dict[Key, tuple[float, float]]]] = deque()
        self._marks: dict[tuple[int, str], _Mark] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pid = os.getpid()
        self.cpu_ns = 0  # CPU time of the sampling threads

    # -- collecting ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads; does nothing when they run or in a forked child."""
        if self._threads or os.getpid() != self._pid:
            return
        quick = [entry for entry in self._entries if not entry.collector.may_block]
        groups = [quick] + [[entry] for entry in self._entries if entry.collector.may_block]
        for group in groups:
            if group:
                thread = threading.Thread(
                    target=self._run, args=(group,), name=f"gpumon-{group[0].name}", daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def stop(self) -> None:
        """Ask the threads to end; a collector that hangs is left behind, never waited for."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=0.2)

    def collect_now(self) -> None:
        """Collect from every collector that cannot block: the last values before the end of a run."""
        for entry in self._entries:
            if not entry.collector.may_block:
                self._collect(entry)

    def _run(self, entries: list[_Entry]) -> None:
        while not self._stop.is_set():
            began = time.thread_time_ns()
            now = time.monotonic()
            for entry in entries:
                if entry.due <= now:
                    self._collect(entry)
                    # A missed tick is skipped, not made up for: no burst after a suspended process.
                    entry.due += entry.interval_s
                    if entry.due <= now:
                        entry.due = now + entry.interval_s
            self.cpu_ns += time.thread_time_ns() - began
            self._stop.wait(max(0.01, min(entry.due for entry in entries) - time.monotonic()))

    def _collect(self, entry: _Entry) -> None:
        """Collect once, or note why that failed; one bad collector never stops another."""
        readings: list[Reading] = []
        up, reason = True, ""
        began = time.monotonic()
        entry.started = began
        try:
            for reading in entry.collector.collect():
                readings.append(reading)  # noqa: PERF402 - keeps what came before a failure
        except NoDataError as error:
            up, reason = False, str(error)
        except CollectorError as error:
            up, reason = False, str(error)
        except Exception as error:  # noqa: BLE001 - the one boundary around collectors
            up, reason = False, f"{type(error).__name__}: {error}"
            if entry.up is not False:
                logger.warning("collector %s failed: %s", entry.name, reason)
            if os.environ.get("GPUMON_STRICT") == "1":
                raise
        finally:
            entry.started = None
        entry.up, entry.reason = up, reason
        now = time.monotonic()
        with self._lock:
            entry.durations.add(now - began)
            for reading in readings:
                self._store(entry.name, reading, now)
            if entry.name == self._entries[0].name:
                self._remember(now)

    def _store(self, collector: str, reading: Reading, now: float) -> None:
        key: Key = (reading.metric.name, tuple(sorted(reading.attributes.items())))
        series = self._series.get(key)
        if series is None:
            series = Series(key, reading.metric, reading.attributes, collector=collector, is_ratio=reading.per is not None)
            self._series[key] = series
            self._by_metric.setdefault(reading.metric.name, []).append(series)
            if reading.per is not None:
                series.first = (reading.value, reading.per)
        if reading.per is not None:
            series.value, series.per = reading.value, reading.per
        elif reading.metric.kind == "gauge":
            series.value += reading.value
            series.per += 1.0
        else:
            series.value = reading.value
        series.updated = now

    def _remember(self, now: float) -> None:
        snapshot = {
            key: (series.value, series.per) for key, series in self._series.items() if series.metric.kind == "gauge"
        }
        self._history.append((now, snapshot))
        while self._history and self._history[0][0] < now - HISTORY_S:
            self._history.popleft()

    # -- reading ------------------------------------------------------------------------------------

    def observe(self, metric: Metric, reader: int) -> Iterator[tuple[float, m.Attributes]]:
        """Yield (value, attributes) of every live series of *metric*.

        A gauge is the mean over the time since *reader* (any number that tells readers apart) last asked.
        """
        if metric is m.COLLECTOR_UP:
            yield from self._up()
            return
        with self._lock:
            now = time.monotonic()
            live = [series for series in self._by_metric.get(metric.name, ()) if not self._stale(series, now)]
            if metric.kind != "gauge":
                yield from [(series.value, series.attributes) for series in live]
                return
            mark = self._marks.get((reader, metric.name)) or _Mark()
            terms: dict[Key, tuple[float, float]] = {}
            means: dict[Key, float] = {}
            for series in live:
                terms[series.key] = (series.value, series.per)
                if series.updated <= mark.at:
                    # Exported more often than collected: the last window's mean still stands.
                    mean = mark.means.get(series.key)
                    terms[series.key] = mark.terms.get(series.key, series.first)
                else:
                    mean = _mean(mark.terms.get(series.key, series.first), terms[series.key])
                if mean is not None:
                    means[series.key] = mean
            self._marks[reader, metric.name] = _Mark(now, terms, means)
            if len(self._marks) > 4096:  # readers that came and went
                self._marks = {k: v for k, v in self._marks.items() if v.at > now - 600}
            values = [(means[series.key], series.attributes) for series in live if series.key in means]
        yield from values

    def between(self, metric: Metric, begin_s: float, end_s: float) -> dict[tuple[tuple[str, m.AttributeValue], ...], float]:
        """Mean of *metric* over a span of `time.monotonic()`, by attributes; empty where nothing is known.

        Takes the last snapshot before the span and the first one after it, so a span shorter than the
        collector's interval still has a value.
        """
        with self._lock:
            history = list(self._history)
        before: dict[Key, tuple[float, float]] = {}
        after: dict[Key, tuple[float, float]] = {}
        for at, snapshot in history:
            if at <= begin_s:
                before = snapshot
            after = snapshot
            if at >= end_s:
                break
        means = {}
        for key, end in after.items():
            if key[0] == metric.name:
                mean = _mean(before.get(key, self._series[key].first), end)
                if mean is not None:
                    means[key[1]] = mean
        return means

    def durations(self) -> Iterable[tuple[str, Buckets]]:
        """How long collections took, by collector."""
        return [(entry.name, entry.durations) for entry in self._entries]

    def state(self) -> Iterable[tuple[str, bool | None, str]]:
        """(collector, up, reason); up is None before its first collection ended."""
        return [(entry.name, entry.up, entry.reason) for entry in self._entries]

    def _up(self) -> Iterator[tuple[float, m.Attributes]]:
        now = time.monotonic()
        for entry in self._entries:
            started = entry.started
            if started is not None and now - started > max(10.0, STALE_INTERVALS * entry.interval_s):
                yield 0.0, {m.COLLECTOR: entry.name, m.REASON: "no answer: the call hangs"}
            elif entry.up is not None:
                reason = {} if entry.up else {m.REASON: entry.reason}
                yield float(entry.up), {m.COLLECTOR: entry.name, **reason}

    def _stale(self, series: Series, now: float) -> bool:
        for entry in self._entries:
            if entry.name == series.collector:
                return now - series.updated > STALE_INTERVALS * entry.interval_s + 1.0
        return True


def _mean(begin: tuple[float, float], end: tuple[float, float]) -> float | None:
    per = end[1] - begin[1]
    if per <= 0:
        return None
    return (end[0] - begin[0]) / per
