"""Runs the collectors on their intervals and keeps what they said, in memory.

One daemon thread serves all collectors that answer at once; a collector that may block (a driver, a
process) gets a thread of its own, so that it delays nobody. Readers of the values never touch a device.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from gpumon import metrics as m
from gpumon.buckets import Buckets
from gpumon.collectors.base import Collector
from gpumon.errors import CollectorError, NoDataError
from gpumon.metrics import Metric, Reading

logger = logging.getLogger(__name__)

STALE_INTERVALS = 3  # a reading older than this many intervals is absent: a stuck collector must not look alive
HANG_S = 10.0
SOON_S = 2.0  # a collector that wants a call within so long waits for something
LAST_S = 0.7  # what the end of a run waits for a last reading of a collector that may block
HISTORY_S = 120.0
MAX_READERS = 8  # per series; the one that has not asked for longest makes room

Labels = tuple[tuple[str, m.AttributeValue], ...]
"""The attributes of a series, sorted."""


class _Terms(NamedTuple):
    """A gauge's running sums at one moment.

    A gauge is kept as Σvalue and Σ1 over its samples, a ratio as its two cumulative terms, so the mean over
    any window is Δvalue ÷ Δper between its two ends, whoever asks and however often.
    """

    at: float  # time.monotonic()
    value: float
    per: float


_NO_HISTORY: Final[deque[_Terms]] = deque(maxlen=0)
"""Of all that are no means: even an empty one takes 600 bytes."""


@dataclass(slots=True)
class _Mark:
    """The end of a reader's last window, and the mean over that window."""

    terms: _Terms
    mean: float | None


class Latest(NamedTuple):
    """What is known of a series now, for those who hand it on."""

    collector: str
    metric: Metric
    attributes: m.Attributes
    value: float | None
    """A gauge's mean over the last few seconds, None where a ratio has none; of any other kind the last value."""
    terms: tuple[float, float] | None
    """A gauge's cumulative terms: its mean over any window is Δfirst ÷ Δsecond. None of what is no mean."""
    is_ratio: bool  # the terms are two counters of the source's, not a sum and a number of samples
    age_s: float


@dataclass(slots=True)
class _Series:
    metric: Metric
    attributes: m.Attributes
    entry: _Entry
    now: _Terms
    is_mean: bool
    is_ratio: bool
    base: float = 0.0  # what a counter had counted before its source began anew
    history: deque[_Terms] = field(default_factory=lambda: _NO_HISTORY)
    marks: dict[int, _Mark] = field(default_factory=dict)

    @property
    def is_description(self) -> bool:
        """Its attributes tell what is so now: facts of a device, or why it cannot be read."""
        return self.metric is m.COLLECTOR_UP or self.metric.name.endswith(".info")

    def is_stale(self, now: float) -> bool:
        if self.is_description and self.now.at < self.entry.ended:
            return True  # a description that changed: the old one must not stand beside the new one
        return now - self.now.at > STALE_INTERVALS * self.entry.interval_s + 1.0


@dataclass(slots=True)
class _Entry:
    name: str
    collector: Collector
    interval_s: float
    due: float = 0.0
    up: bool | None = None
    reason: str = ""
    started: float | None = None  # when the call in progress began
    ended: float = 0.0  # when the last one ended
    durations: Buckets = field(default_factory=Buckets)

    @property
    def tick_s(self) -> float:
        """Until the next call: a collector may ask for one before its interval is over (`again_s`)."""
        return min(self.interval_s, getattr(self.collector, "again_s", self.interval_s))


class Sampler:
    """Latest values, and a short history of every gauge, of all series that the collectors yield."""

    def __init__(
        self,
        collectors: Mapping[str, Collector],
        intervals: Mapping[str, float] | None = None,
        *,
        hang_s: float = HANG_S,
        history_s: float = HISTORY_S,
    ) -> None:
        """*history_s*: how far back `between` and `latest` see; it costs memory."""
        intervals = intervals or {}
        self._entries = [
            _Entry(name, collector, intervals.get(name, collector.interval_s)) for name, collector in collectors.items()
        ]
        self._hang_s, self._history_s = hang_s, history_s
        self._series: dict[str, dict[Labels, _Series]] = {}  # by metric name
        self._same: dict[tuple[str, int], _Series] = {}
        """By metric name and identity of the attributes, which the series keeps alive: sorting them costs more."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._groups: list[_Group] = []
        self._pid = os.getpid()

    # -- collecting -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads; does nothing when they run, or in a forked child."""
        if self._groups or os.getpid() != self._pid:
            return
        quick = [entry for entry in self._entries if not entry.collector.may_block]
        alone = [[entry] for entry in self._entries if entry.collector.may_block]
        self._groups = [_Group(self, entries) for entries in [quick, *alone] if entries]
        for group in self._groups:
            group.thread.start()

    def stop(self) -> None:
        """Ask the threads to end; a collector that hangs is left behind, never waited for."""
        self._stop.set()
        for group in self._groups:
            group.wake.set()
        deadline = time.monotonic() + 0.2
        for group in self._groups:
            group.thread.join(max(0.0, deadline - time.monotonic()))
        for entry in self._entries:
            if (close := getattr(entry.collector, "close", None)) is not None:
                close()

    def collect_now(self, timeout_s: float = 0.3) -> None:
        """Let every collector that cannot block collect once more: the last values of a run.

        Of those that may, the ones that have a `before_last`, which readies them for it; they get `LAST_S`.
        """
        asked: list[tuple[_Group, float]] = []
        now = time.monotonic()
        for group in self._groups:
            collector = group.entries[0].collector
            if collector.may_block and not getattr(collector, "before_last", bool)():
                continue
            asked.append((group, now + (LAST_S if collector.may_block else timeout_s)))
            group.done.clear()
            group.is_asked = True
            group.wake.set()
        for group, until in asked:
            group.done.wait(max(0.0, until - time.monotonic()))

    @property
    def cpu_ns(self) -> int:
        """CPU time of the sampling threads, and of threads of collectors that have some of their own."""
        own = sum(getattr(entry.collector, "cpu_ns", 0) for entry in self._entries)
        return own + sum(group.cpu_ns for group in self._groups)

    def _collect(self, entry: _Entry) -> None:
        """Collect once, or note why that failed; one bad collector never stops another."""
        readings: list[Reading] = []
        failure: Exception | None = None
        began = time.monotonic()
        entry.started = began
        try:
            for reading in entry.collector.collect():
                readings.append(reading)  # noqa: PERF402 - keeps what came before a failure
        except (NoDataError, CollectorError) as error:
            up, reason = False, str(error)
        except Exception as error:  # noqa: BLE001 - the one boundary around collectors
            up, reason, failure = False, f"{type(error).__name__}: {error}", error
            if entry.up is not False:
                logger.warning("collector %s failed: %s", entry.name, reason)
        else:
            up, reason = True, ""
        now = time.monotonic()
        with self._lock:
            entry.up, entry.reason, entry.ended, entry.started = up, reason, now, None
            entry.durations.add(now - began)
            for reading in readings:
                if math.isfinite(reading.value):
                    self._store(entry, reading, now)
        if failure is not None and os.environ.get("GPUMON_STRICT") == "1":
            raise failure

    def _store(self, entry: _Entry, reading: Reading, now: float) -> None:
        metric, value, attributes, per = reading
        series = self._same.get((metric.name, id(attributes))) or self._series_of(entry, reading, now)
        if series.is_mean:
            if per is None:
                last = series.now
                series.now = _Terms(now, last.value + value, last.per + 1.0)
            else:
                series.now = _Terms(now, value, per)
            history = series.history
            history.append(series.now)
            while len(history) > 2 and history[1].at < now - self._history_s:
                history.popleft()
        elif metric.kind == "counter":
            series.now = _Terms(now, self._counted(series, value), 0.0)
        else:
            series.now = _Terms(now, value, 0.0)

    def _series_of(self, entry: _Entry, reading: Reading, now: float) -> _Series:
        labels: Labels = tuple(sorted(reading.attributes.items()))
        by_labels = self._series.setdefault(reading.metric.name, {})
        series = by_labels.get(labels)
        if series is None:
            # A ratio's first window begins at its first terms, a gauge's before its first sample.
            first = _Terms(now, 0.0, 0.0) if reading.per is None else _Terms(now, reading.value, reading.per)
            is_mean = reading.metric.kind == "gauge" and not _is_state(reading.metric)
            series = _Series(reading.metric, reading.attributes, entry, first, is_mean, reading.per is not None)
            if series.is_description:  # those before it are done with: a reason may change with every collection
                old = [labels for labels, one in by_labels.items() if one.entry is entry and one.now.at < now]
                self._drop(by_labels, old)
            by_labels[labels] = series
            if is_mean:
                series.history = deque((first,))
            self._same[reading.metric.name, id(reading.attributes)] = series
        elif (reading.metric.name, id(series.attributes)) not in self._same:  # of a sampler before this one
            series.attributes = reading.attributes
            self._same[reading.metric.name, id(reading.attributes)] = series
        return series

    def _counted(self, series: _Series, value: float) -> float:
        """A counter's next value: it never falls, which the SDK would export as a negative delta.

        Back near zero the source began anew (a disk that was plugged again, a 32-bit field that ran over),
        and the count goes on; a little less than before is a source that lost a part.
        """
        last = series.now.value
        if value + series.base < last and value < (last - series.base) / 2:
            series.base = last
        return max(last, value + series.base)

    # -- reading --------------------------------------------------------------------------------------

    def observe(
        self, metric: Metric, reader: int, *, slower_than_s: float = math.inf
    ) -> Iterator[tuple[float, m.Attributes]]:
        """Yield (value, attributes) of every live series of *metric*.

        A gauge is the mean over the time since *reader* (any number that tells readers apart) last asked;
        the last window's mean where it asks more often than the collector collects. *slower_than_s*: leave out
        what is read more seldom.
        """
        if metric is m.COLLECTOR_UP:
            yield from self._up()
            return
        if metric.name not in self._series:
            return
        now = time.monotonic()
        with self._lock:
            live = [
                series
                for series in self._series.get(metric.name, {}).values()
                if series.entry.interval_s <= slower_than_s and not series.is_stale(now)
            ]
            if metric.kind == "gauge" and not metric.is_state:
                values = [(_window_mean(series, reader), series.attributes) for series in live]
            else:
                values = [(series.now.value, series.attributes) for series in live]
        for value, attributes in values:
            if value is not None:
                yield value, attributes

    def between(self, metric: Metric, begin_s: float, end_s: float) -> dict[Labels, float]:
        """Mean of the gauge *metric* over a span of `time.monotonic()`; without what is not known.

        Takes the last reading before the span and the first one after it, so a span shorter than the
        collector's interval still has a value.
        """
        means = {}
        with self._lock:
            for labels, series in self._series.get(metric.name, {}).items():
                before = after = series.history[0] if series.history else series.now
                for terms in series.history:
                    if terms.at <= begin_s:
                        before = terms
                    after = terms
                    if terms.at >= end_s:
                        break
                if (mean := _mean(before, after)) is not None:
                    means[labels] = mean
        return means

    def latest(self, window_s: float) -> list[Latest]:
        """Every live series, gauges as means over the last *window_s* or, where that is longer, the last interval."""
        now = time.monotonic()
        with self._lock:
            return [
                _latest(series, now, window_s)
                for by_labels in self._series.values()
                for series in by_labels.values()
                if not series.is_stale(now)
            ]

    def forget(self, age_s: float) -> None:
        """Drop series that nobody has read for so long: devices that are gone, reasons that no longer hold."""
        since = time.monotonic() - age_s
        with self._lock:
            for by_labels in self._series.values():
                self._drop(by_labels, [labels for labels, series in by_labels.items() if series.now.at < since])

    def _drop(self, by_labels: dict[Labels, _Series], gone: Iterable[Labels]) -> None:
        for labels in gone:
            series = by_labels.pop(labels)
            self._same.pop((series.metric.name, id(series.attributes)), None)

    def succeed(self, before: Sampler) -> None:
        """Go on where a stopped sampler ended: no counter falls, no gauge loses its window. For before `start`."""
        entries = {entry.name: entry for entry in self._entries}
        with before._lock:
            for name, by_labels in before._series.items():
                for labels, series in by_labels.items():
                    if (entry := entries.get(series.entry.name)) is None:
                        continue
                    # A call that still hangs there may yet store something: in its own copy.
                    copy = replace(series, entry=entry, history=series.history.copy(), marks=dict(series.marks))
                    self._series.setdefault(name, {})[labels] = copy

    def take_events(self) -> list[tuple[int, str, str, m.Attributes]]:
        """What collectors saw happen since the last call: (time in ns since 1970, name, text, attributes)."""
        takers = [getattr(entry.collector, "take_events", None) for entry in self._entries]
        return [event for take in takers if take is not None for event in take()]

    def unfinished(self) -> list[str]:
        """Collectors that want to be called again at once: a part of their devices has not answered yet."""
        return [entry.name for entry in self._entries if entry.tick_s < min(entry.interval_s, SOON_S)]

    def durations(self) -> Iterable[tuple[str, Buckets]]:
        """How long collections took, by collector."""
        return [(entry.name, entry.durations) for entry in self._entries]

    def state(self) -> Iterable[tuple[str, bool | None, str]]:
        """(collector, up, reason); up is None before its first collection ended."""
        return [self._state(entry) for entry in self._entries]

    def _up(self) -> Iterator[tuple[float, m.Attributes]]:
        """Of each collector, and of each device of which its collector says so (`hw.id`)."""
        for name, up, reason in self.state():
            if up is not None:
                yield float(up), {m.COLLECTOR: name, **({m.REASON: reason} if reason else {})}
        now = time.monotonic()
        with self._lock:
            devices = [one for one in self._series.get(m.COLLECTOR_UP.name, {}).values() if not one.is_stale(now)]
            found = [(one.now.value, {m.COLLECTOR: one.entry.name, **one.attributes}) for one in devices]
        yield from found

    def _state(self, entry: _Entry) -> tuple[str, bool | None, str]:
        limit_s = max(self._hang_s, STALE_INTERVALS * entry.interval_s)
        now = time.monotonic()
        started = entry.started
        if started is not None:
            if now - started > limit_s:
                return entry.name, False, "no answer: the call hangs"
        elif entry.up and now - entry.ended > limit_s:
            return entry.name, False, "not collected: another collector hangs"
        return entry.name, entry.up, entry.reason


class _Group:
    """Collectors that share a thread."""

    def __init__(self, sampler: Sampler, entries: list[_Entry]) -> None:
        self.entries = entries
        self.cpu_ns = 0
        self.is_asked = False  # `collect_now` waits for a round
        self.wake, self.done = threading.Event(), threading.Event()
        self._sampler = sampler
        self.thread = threading.Thread(target=self._run, name=f"gpumon-{entries[0].name}", daemon=True)

    def _run(self) -> None:
        while not self._sampler._stop.is_set():
            is_asked, self.is_asked = self.is_asked, False
            now = time.monotonic()
            for entry in self.entries:
                if is_asked or entry.due <= now:
                    self._sampler._collect(entry)
                if entry.due <= now:
                    # A missed tick is skipped, not made up for: no burst after a suspended process.
                    following = entry.due + entry.tick_s
                    entry.due = following if following > now else now + entry.tick_s
            self.cpu_ns = time.thread_time_ns()
            if is_asked:
                self.done.set()
            self.wake.wait(max(0.01, min(entry.due for entry in self.entries) - time.monotonic()))
            self.wake.clear()


def _is_state(metric: Metric) -> bool:
    return metric.is_state or metric is m.COLLECTOR_UP


def _latest(series: _Series, now: float, window_s: float) -> Latest:
    value: float | None = series.now.value
    terms = None
    if series.is_mean:
        begin = series.history[0]
        for begin in reversed(series.history):
            if begin.at <= series.now.at - window_s:
                break
        value, terms = _mean(begin, series.now), (series.now.value, series.now.per)
    age_s = now - series.now.at
    return Latest(series.entry.name, series.metric, series.attributes, value, terms, series.is_ratio, age_s)


def _window_mean(series: _Series, reader: int) -> float | None:
    mark = series.marks.pop(reader, None)
    if mark is None:
        if len(series.marks) >= MAX_READERS:
            del series.marks[next(iter(series.marks))]
        mark = _Mark(series.now, _mean(series.history[0], series.now))
    elif series.now.at > mark.terms.at:
        mark = _Mark(series.now, _mean(mark.terms, series.now))
    series.marks[reader] = mark  # last in order: asked most recently
    return mark.mean


def _mean(begin: _Terms, end: _Terms) -> float | None:
    per = end.per - begin.per
    if per <= 0:
        return None
    return (end.value - begin.value) / per
