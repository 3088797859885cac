"""One disk's counters as the kernel gives them, summed up, and the readings that they make: what iostat shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gpumon import metrics as m
from gpumon.metrics import Attributes, Reading

Row = tuple[int | None, ...]
"""A line of /proc/diskstats after the name; None where a system does not count (no kernel before 4.18: discards)."""

COLUMNS: Final = 17
_READS, _READS_MERGED, _READ_SECTORS, _READ_MS, _WRITES, _WRITES_MERGED, _WRITE_SECTORS, _WRITE_MS = range(8)
_IN_FLIGHT, _BUSY_MS, _QUEUE_MS = 8, 9, 10
_DISCARDS, _DISCARDS_MERGED, _DISCARD_SECTORS, _DISCARD_MS, _FLUSHES, _FLUSH_MS = range(11, 17)
_32_BIT: Final = frozenset((_READ_MS, _WRITE_MS, _BUSY_MS, _QUEUE_MS, _DISCARD_MS, _FLUSH_MS))  # in some kernels
_WRAP: Final = 1 << 32
_SECTOR: Final = 512  # bytes, whatever the disk's own sectors are
_TICK_S: Final = 0.02


def parse(fields: Sequence[str]) -> Row:
    """The numbers of a line of /proc/diskstats, after the device's name; Linux 4.18 added discards, 5.5 flushes."""
    numbers = tuple(map(int, fields[:COLUMNS]))
    if len(numbers) == COLUMNS:
        return numbers
    known = 15 if len(numbers) >= 15 else 11
    return (*numbers[:known], *(None,) * (COLUMNS - known))


class DiskCounters:
    """Of one device, from its first row on.

    Units: sectors of 512 bytes -> By, ms -> s. What is counted never falls, whatever the kernel's counters do.
    """

    __slots__ = ("_all", "_busy", "_device", "_directions", "_has", "_last", "_steady", "_sums")

    def __init__(self, name: str, *, discards_and_flushes: bool = False) -> None:
        # Made once: who keeps readings by their attributes knows these again at once.
        self._device: Attributes = {m.SYSTEM_DEVICE: name}
        self._directions = [{m.SYSTEM_DEVICE: name, m.DISK_IO_DIRECTION: way} for way in ("read", "write")]
        self._all = discards_and_flushes
        self._last: Row = ()
        self._sums: list[float] = []
        self._busy: tuple[float, float, float] | None = None  # (shown, seen, excess), see _busy_s
        self._steady: list[Reading] = []  # the readings that stay the same while the disk is idle

    def read(self, row: Row, now: float, elapsed_s: float) -> list[Reading]:
        """The readings of a row, *elapsed_s* after the last one."""
        if row != self._last:
            self._count(row)
            self._last = row
            self._steady = self._counted()
        readings = list(self._steady)
        if row[_BUSY_MS] is not None:
            busy_s = self._busy_s(self._sums[_BUSY_MS] / 1e3, elapsed_s)
            readings.append(Reading(m.DISK_UTILIZATION, busy_s, self._device, now))
        if row[_QUEUE_MS] is not None:
            readings.append(Reading(m.DISK_QUEUE_LENGTH, self._sums[_QUEUE_MS] / 1e3, self._device, now))
        return readings

    def _count(self, row: Row) -> None:
        last, sums = self._last, self._sums
        if not last:
            self._sums = [float(value or 0) for value in row]
            return
        # Operations never go back on one and the same device: then another one has the name now.
        restarted = row[_READS] < last[_READS] or row[_WRITES] < last[_WRITES]  # type: ignore[operator]
        for column, value in enumerate(row):
            before = last[column]
            if value == before or value is None:
                continue
            growth = value - (before or 0)
            if growth > 0:
                sums[column] += growth
            elif column in _32_BIT and _WRAP // 2 < value - growth < _WRAP and value < _WRAP // 2:
                sums[column] += growth + _WRAP
            elif restarted:
                sums[column] += value

    def _counted(self) -> list[Reading]:
        row, sums, readings = self._last, self._sums, []
        for first, at in ((_READS, self._directions[0]), (_WRITES, self._directions[1])):
            number, merged, sectors, time_ms = sums[first : first + 4]
            size, time_s = sectors * _SECTOR, time_ms / 1e3
            readings += [
                Reading(m.DISK_OPERATIONS, number, at),
                Reading(m.DISK_IO, size, at),
                Reading(m.DISK_OPERATION_TIME, time_s, at),
                Reading(m.DISK_AWAIT, time_s, at, number),
                Reading(m.DISK_REQUEST_SIZE, size, at, number),
            ]
            if row[first + 1] is not None:
                readings.append(Reading(m.DISK_MERGED, merged, at))
        device = self._device
        if self._all and row[_DISCARDS] is not None:
            readings += [
                Reading(m.DISK_DISCARD_OPERATIONS, sums[_DISCARDS], device),
                Reading(m.DISK_DISCARD_MERGED, sums[_DISCARDS_MERGED], device),
                Reading(m.DISK_DISCARD_IO, sums[_DISCARD_SECTORS] * _SECTOR, device),
                Reading(m.DISK_DISCARD_TIME, sums[_DISCARD_MS] / 1e3, device),
            ]
        if self._all and row[_FLUSHES] is not None:
            readings.append(Reading(m.DISK_FLUSH_OPERATIONS, sums[_FLUSHES], device))
            readings.append(Reading(m.DISK_FLUSH_TIME, sums[_FLUSH_MS] / 1e3, device))
        if (in_flight := row[_IN_FLIGHT]) is not None:
            readings.append(Reading(m.DISK_IN_FLIGHT, in_flight, device))
        if row[_BUSY_MS] is not None:
            readings.append(Reading(m.DISK_IO_TIME, sums[_BUSY_MS] / 1e3, device))
        return readings

    def _busy_s(self, busy_s: float, elapsed_s: float) -> float:
        """Busy time that does not outrun the clock: the kernel counts ticks, for some drivers too many."""
        shown, seen, excess = self._busy or (0.0, busy_s, 0.0)
        growth = busy_s - seen + excess
        # What one tick counted too much belongs to the next window, but never more than a few milliseconds.
        counted = min(growth, elapsed_s)
        self._busy = (shown + counted, busy_s, min(growth - counted, _TICK_S))
        return shown + counted
