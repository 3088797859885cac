"""Rows of views as plain values, for one run: which processes trained, window by window, and its devices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from gpumon.analysis.source import Execute as Execute  # re-exported
from gpumon.rules import thresholds as limit
from gpumon.rules.evidence import share

PHASE_COLUMNS = {
    "data.wait": "wait_s",
    "transfer": "transfer_s",
    "forward": "forward_s",
    "backward": "backward_s",
    "communication": "communication_s",
    "optimizer": "optimizer_s",
    "checkpoint": "checkpoint_s",
    "other": "other_s",
}

When = tuple[str, float]
"""A window: the process' instance and its end."""


@dataclass(frozen=True)
class Process:
    """One process of the run that recorded something."""

    instance: str
    rank: int
    host: str


@dataclass
class Series:
    """One series of a device: per window a gauge's mean or a counter's rate, and a counter's change."""

    values: dict[When, float] = field(default_factory=dict)
    deltas: dict[When, float] = field(default_factory=dict)

    def mean(self, lengths: Mapping[When, float], only: set[When] | None = None) -> float | None:
        """Mean by time."""
        chosen = [when for when in self.values if only is None or when in only]
        total = sum(lengths.get(when, 0.0) for when in chosen)
        if total <= 0:
            return None
        return sum(self.values[when] * lengths.get(when, 0.0) for when in chosen) / total

    def total(self, only: set[When] | None = None) -> float:
        return sum(delta for when, delta in self.deltas.items() if only is None or when in only)

    @property
    def peak(self) -> float | None:
        return max(self.values.values(), default=None)

    @property
    def last(self) -> float | None:
        return self.values[max(self.values, key=lambda when: when[1])] if self.values else None


def query(execute: Execute, sql: str, parameters: Iterable[Any] = ()) -> list[dict[str, Any]]:
    """Rows as dictionaries."""
    result = execute(sql, list(parameters))
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def processes(execute: Execute) -> list[Process]:
    """Who recorded metrics, by rank; a node's agent is not of the run."""
    rows = query(
        execute,
        "select distinct instance, rank, host from gpumon_processes "
        "where run_id <> '' or node = '' order by rank, instance",
    )
    return [Process(row["instance"], row["rank"], row["host"]) for row in rows]


def windows(execute: Execute, instances: Iterable[str]) -> list[dict[str, Any]]:
    """`gpumon_windows` of some processes, in time order."""
    chosen = set(instances)
    rows = query(execute, "select * from gpumon_windows order by instance, end_s")
    return [row for row in rows if row["instance"] in chosen]


def troubled(rows: list[dict[str, Any]]) -> set[When]:
    """The windows in which the training waited more than a healthy one; all of them where none did.

    First-of-epoch steps are left out where others were made. A window in which no step ended belongs to the
    step that was going on: it is judged as the next window that has one.
    """
    found: set[When] = set()
    pending: list[When] = []
    for row in rows:
        when = (row["instance"], row["end_s"])
        if pending and pending[0][0] != when[0]:
            pending = []
        pending.append(when)
        if row["step_s"] <= 0:
            continue
        waited = share(row["wait_s"] - row["first_of_epoch_wait_s"], row["step_s"] - row["first_of_epoch_step_s"])
        if row["steps"] <= row["first_of_epoch_steps"]:
            waited = share(row["wait_s"], row["step_s"])
        if waited >= limit.NO_ALARM_WAIT:
            found.update(pending)
        pending = []
    return found or {(row["instance"], row["end_s"]) for row in rows}


def lengths(rows: list[dict[str, Any]]) -> dict[When, float]:
    """Seconds of every window."""
    return {(row["instance"], row["end_s"]): row["end_s"] - row["begin_s"] for row in rows}


_DEVICE_METRICS = (
    "gpumon.disk.", "system.disk.", "gpumon.cpu.", "system.cpu.",
    "gpumon.memory.", "process.", "gpumon.loader.", "gpumon.gpu.", "hw.",
)  # fmt: skip


class Devices:
    """Every series of the devices that one process sampled."""

    def __init__(self, execute: Execute, instance: str) -> None:
        self._series: dict[tuple[str, str, str, str], Series] = defaultdict(Series)
        wanted = " or ".join(f"metric like '{prefix}%'" for prefix in _DEVICE_METRICS)
        rows = execute(
            "select metric, device, part, role, instance, end_s, value, delta from gpumon_device_windows "
            f"where instance = ? and ({wanted})",
            [instance],
        ).fetchall()
        for metric, device, part, role, process, end_s, value, delta in rows:
            series = self._series[metric, device, part, role]
            if value is not None and isfinite(value):
                series.values[process, end_s] = value
            if delta is not None and isfinite(delta):
                series.deltas[process, end_s] = delta

    def get(self, metric: str, device: str = "", part: str = "", role: str = "") -> Series:
        """A series; an empty one where there is none."""
        return self._series.get((metric, device, part, role)) or Series()

    def each(self, metric: str) -> Iterator[tuple[tuple[str, str, str], Series]]:
        """((device, part, role), series) of every series of a metric."""
        for (name, *at), series in self._series.items():
            if name == metric:
                yield (at[0], at[1], at[2]), series

    def ratio(self, over: str, under: str, device: str, part: str, only: set[When] | None = None) -> float | None:
        """Change of one counter by the change of another, over the same windows."""
        above, below = self.get(over, device, part), self.get(under, device, part)
        both = set(above.deltas) & set(below.deltas)
        chosen = both if only is None else both & only
        whole = below.total(chosen)
        return above.total(chosen) / whole if whole > 0 else None
