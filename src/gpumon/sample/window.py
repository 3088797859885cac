"""What each device said between two ticks, from the same collectors as everything else."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from gpumon import metrics as m
from gpumon.collectors.base import Collector
from gpumon.errors import CollectorError, NoDataError
from gpumon.metrics import AttributeValue, Reading

PATIENCE_S: Final = 1.0  # what a driver that hangs may hold up a tick, once
_IDENTITY: Final = frozenset((m.SYSTEM_DEVICE, m.HW_ID, m.HW_TYPE, m.GPU_INDEX, m.HW_PARENT))

Parts = frozenset[str]
"""The attribute values that tell a device's series of one metric apart: {"read"}, {"general"}."""


@dataclass(slots=True)
class Look:
    """The readings of one device from one collection."""

    at: float  # time.monotonic()
    uuid: str | None = None  # of a GPU
    index: int | None = None
    series: dict[str, dict[Parts, Reading]] = field(default_factory=dict)  # by metric name

    def find(self, name: str, parts: Iterable[str]) -> Reading | None:
        """The one series of a metric with these attribute values; None where there is none, or several."""
        wanted = frozenset(parts)
        series = self.series.get(name, {})
        found = [reading for key, reading in series.items() if wanted <= key]
        return found[0] if len(found) == 1 else None


@dataclass(slots=True)
class Window:
    """One device over one window. `looks` are oldest first; the first one ended the window before."""

    device: str  # "gpu0", "nvme0n1"
    type: str  # "gpu", "disk"
    looks: list[Look]
    at_s: float = 0.0  # the tick, seconds since 1970
    is_first: bool = False  # the device was not there when the window began

    def latest(self, name: str, *parts: str) -> float | None:
        """The value at the window's end."""
        reading = self.looks[-1].find(name, parts)
        return None if reading is None else reading.value

    def attribute(self, name: str, key: str) -> AttributeValue | None:
        """What a metric's attributes say at the window's end; for `*.info`."""
        for reading in self.looks[-1].series.get(name, {}).values():
            if reading.attributes.get(key) not in (None, ""):
                return reading.attributes[key]
        return None

    def mean(self, name: str, *parts: str) -> float | None:
        """A gauge's mean over the window: Δvalue ÷ Δper where it has both; absent where Δper is 0."""
        last = self.looks[-1].find(name, parts)
        if last is None:
            return None
        if last.per is None:
            during = self.looks if self.is_first else self.looks[1:]
            found = [reading.value for look in during if (reading := look.find(name, parts)) is not None]
            return math.fsum(found) / len(found) if found else None
        first = self.looks[0].find(name, parts)
        if first is None or first.per is None or last.per <= first.per:
            return None
        return (last.value - first.value) / (last.per - first.per)

    def growth(self, name: str, *parts: str) -> float | None:
        """What a counter counted in the window."""
        first, last = self.looks[0].find(name, parts), self.looks[-1].find(name, parts)
        if first is None or last is None or self.is_first:
            return None
        return last.value - first.value

    def rate(self, name: str, *parts: str) -> float | None:
        """A counter's growth per second of the clock, whatever the interval was to be."""
        growth, seconds = self.growth(name, *parts), self.looks[-1].at - self.looks[0].at
        return None if growth is None or seconds <= 0 else growth / seconds


class Source:
    """A collector, and the looks at its devices since the last tick.

    A collector that may block has a thread of its own: disks go on while a GPU's driver hangs.
    """

    def __init__(self, type: str, collector: Collector, only: Sequence[str] = ()) -> None:
        """*only*: patterns of names and UUIDs; all devices where there are none."""
        self.type = type
        self._only = tuple(only)
        self.reason = ""
        """Why the last look saw nothing, or not everything."""
        self._collector = collector
        self._names: dict[str, str] = {}  # by UUID
        self._looks: list[dict[str, Look]] = []
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[dict[str, Look]] = queue.SimpleQueue()
        self._waiting = False  # for an answer
        if collector.may_block:
            threading.Thread(target=self._serve, name=f"gpumon-sample-{type}", daemon=True).start()

    def look(self, patience_s: float = PATIENCE_S) -> None:
        """Collect once. An answer that comes late counts at the next look, with the time that it is from."""
        if not self._collector.may_block:
            self._looks.append(self._collect())
            return
        if self._waiting:
            patience_s = 0.0  # it had its time
            if not self._take(0.0):
                return
        self._asked.put(None)
        self._waiting = True
        if not self._take(patience_s):
            self.reason = f"no answer for {patience_s:g} s"

    def _take(self, patience_s: float) -> bool:
        try:
            self._looks.append(self._answers.get(timeout=patience_s) if patience_s else self._answers.get_nowait())
        except queue.Empty:
            return False
        self._waiting = False
        return True

    def devices(self) -> list[str]:
        """The devices of the last look, in the order of their names."""
        return sorted(self._looks[-1], key=_natural) if self._looks else []

    def last(self, device: str) -> Look:
        return self._looks[-1][device]

    def windows(self, at_s: float) -> list[Window]:
        """One window per device that the last look has seen; none without a look since they were last asked for."""
        if len(self._looks) < 2:
            return []
        windows = []
        for device in self.devices():
            looks = [seen[device] for seen in self._looks if device in seen]
            windows.append(Window(device, self.type, looks, at_s, device not in self._looks[0]))
        del self._looks[:-1]
        return windows

    def _serve(self) -> None:
        while True:
            self._asked.get()
            self._answers.put(self._collect())

    def _collect(self) -> dict[str, Look]:
        """One look per device; what came before a failure counts."""
        at = time.monotonic()
        readings: list[Reading] = []
        self.reason = ""
        try:
            for reading in self._collector.collect():
                readings.append(reading)  # noqa: PERF402 - keeps what came before a failure
        except (NoDataError, CollectorError) as error:
            self.reason = str(error)
        except Exception as error:
            self.reason = f"{type(error).__name__}: {error}"
            if os.environ.get("GPUMON_STRICT") == "1":
                raise
        return self._by_device(readings, at)

    def _by_device(self, readings: list[Reading], at: float) -> dict[str, Look]:
        looks: dict[str, Look] = {}
        for reading in readings:
            name = self._name(reading)
            if name and self._is_wanted(name, reading) and math.isfinite(reading.value):
                look = looks.setdefault(name, Look(at))
                look.uuid = _hardware(reading)[0] or None
                if m.GPU_INDEX in reading.attributes:
                    look.index = int(reading.attributes[m.GPU_INDEX])
                look.series.setdefault(reading.metric.name, {})[_parts(reading)] = reading
        return looks

    def _is_wanted(self, name: str, reading: Reading) -> bool:
        names = (name, _hardware(reading)[0])
        return not self._only or any(fnmatchcase(text, pattern) for text in names for pattern in self._only)

    def _name(self, reading: Reading) -> str:
        """What people call a device: `sda`, `gpu0`; an instance on a GPU has its UUID only."""
        if m.SYSTEM_DEVICE in reading.attributes:
            return str(reading.attributes[m.SYSTEM_DEVICE])
        uuid, part = _hardware(reading)
        index = reading.attributes.get(m.GPU_INDEX)
        is_instance = m.HW_PARENT in reading.attributes and not part
        if index is not None and not is_instance:
            self._names[uuid] = f"gpu{index}"
        return self._names.get(uuid, uuid)


def _hardware(reading: Reading) -> tuple[str, str]:
    """A GPU's UUID, or that of an instance on it, and the part of it: `GPU-…/memory` is the memory of `GPU-…`."""
    identity, parent = str(reading.attributes.get(m.HW_ID, "")), str(reading.attributes.get(m.HW_PARENT, ""))
    if parent and identity.startswith(parent + "/"):
        return parent, identity[len(parent) + 1 :]
    return identity, ""


def _parts(reading: Reading) -> Parts:
    values = {str(value) for key, value in reading.attributes.items() if key not in _IDENTITY}
    part = _hardware(reading)[1]
    return frozenset(values | {part} if part else values)


def _natural(name: str) -> tuple[str, int, str]:
    """gpu2 before gpu10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0), name
