"""The disks: what iostat shows, from the same counters."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from gpumon import metrics as m
from gpumon.collectors.base import register
from gpumon.config import Config
from gpumon.errors import CollectorError, NoDataError
from gpumon.metrics import AttributeValue, Reading
from gpumon.system.block import BlockDevices
from gpumon.system.cgroup import Cgroup
from gpumon.system.counters import Monotonic
from gpumon.system.datasets import DATASETS, Datasets

_REFRESH_S: Final = 10.0  # of what disks say of themselves, and of limits
_TICK_S: Final = 0.02
_WRAPPING: Final = frozenset(
    ("read.ms", "write.ms", "discard.ms", "flush.ms", "busy.ms", "queue.ms")
)  # 32 bit in some kernels
_SECTOR: Final = 512  # bytes, whatever the disk's own sectors are
# Neither whole disks nor anything real; they are shown where a data set lies on them.
_NO_DISK: Final = re.compile(r"(ram|zram|loop|fd|sr|dm-|md|mtdblock|nbd)\d*|nvme\d+c\d+n\d+")
_PARTITION: Final = re.compile(r"((h|s|v|xv)d[a-z]+\d+|(nvme\d+n|mmcblk|md|nbd|loop)\d+p\d+)$")


@dataclass(slots=True)
class _Raw:
    """A device's counters since boot; None where the system does not tell."""

    reads: int
    reads_merged: int | None
    read_bytes: int
    read_ms: int
    writes: int
    writes_merged: int | None
    written_bytes: int
    write_ms: int
    in_flight: int | None = None
    busy_ms: int | None = None
    queue_ms: int | None = None
    discards: tuple[int, int, int, int] | None = None  # operations, merged, bytes, ms
    flushes: tuple[int, int] | None = None  # operations, ms


@register("disk")
class DiskCollector:
    """One read of all disks' counters.

    Source: /proc/diskstats, psutil where there is none; /sys/class/block; the cgroup's throttle files.
    Units: sectors of 512 bytes -> By, ms -> s.
    Shape: the readings of each whole disk, and of every device that a data set's data passes (loop, dm, md).
    """

    interval_s = 1.0
    may_block = False

    def __init__(
        self,
        config: Config | None = None,
        *,
        root: str | Path = "/",
        datasets: Datasets = DATASETS,
        only: Sequence[str] = (),
        discards_and_flushes: bool = False,
    ) -> None:
        """*only*: patterns (`sd*`) of the devices to read instead, partitions and loops included."""
        self._only = tuple(only)
        self._discards_and_flushes = discards_and_flushes
        self._root = Path(root)
        self._stats = self._root / "proc/diskstats"
        self._datasets = datasets
        self._devices = BlockDevices(root)
        self._cgroup = Cgroup(root, devices=self._devices)
        self._counters = Monotonic()
        self._last: dict[str, _Raw] = {}
        self._busy: dict[str, tuple[float, float, float]] = {}  # device -> (shown, seen, excess), see _busy_s
        self._now = 0.0
        self._refreshed: tuple[float, int] = (-_REFRESH_S, -1)
        self._is_disk: dict[str, bool] = {}
        self._with_data: set[str] = set()
        self._slow_changing: list[Reading] = []

    def collect(self) -> Iterable[Reading]:
        before, self._now = self._now, time.monotonic()
        refresh = self._now - self._refreshed[0] >= _REFRESH_S or self._refreshed[1] != self._datasets.version
        if refresh:
            self._with_data = self._datasets.devices()
            self._is_disk.clear()
        raw = self._read()
        if refresh:
            self._refresh(list(raw))
        for name, counters in raw.items():
            yield from self._device(name, counters, self._now - before if before else 0.0)
        yield from self._slow_changing
        for name, (seconds, queue) in list(self._datasets.unloaded.items()):
            if name in raw:
                yield Reading(m.DISK_UNLOADED_AWAIT, seconds, {m.SYSTEM_DEVICE: name})
                yield Reading(m.DISK_UNLOADED_QUEUE, queue, {m.SYSTEM_DEVICE: name})

    # -- which devices ------------------------------------------------------------------------------

    def _wanted(self, name: str) -> bool:
        if self._only:
            return any(fnmatchcase(name, pattern) for pattern in self._only)
        if name in self._with_data:
            return True
        if name not in self._is_disk:
            if self._devices.exists(name):
                partition = self._devices.is_partition(name)
                empty = self._devices.size_bytes(name) == 0
                self._is_disk[name] = not (partition or empty or _NO_DISK.fullmatch(name))
            else:
                self._is_disk[name] = not (_PARTITION.match(name) or _NO_DISK.fullmatch(name))
        return self._is_disk[name]

    def _refresh(self, names: list[str]) -> None:
        self._cgroup.refresh()
        self._refreshed = (self._now, self._datasets.version)
        self._slow_changing = [self._info(name) for name in names]
        for item in self._cgroup.disk_limits():
            metric = m.DISK_LIMIT_IO if item.unit == "bytes" else m.DISK_LIMIT_OPERATIONS
            at = {
                m.SYSTEM_DEVICE: item.device,
                m.DISK_IO_DIRECTION: item.direction,
                m.LIMIT_SOURCE: item.limit.source,
            }
            self._slow_changing.append(Reading(metric, item.limit.value, at))

    def _info(self, name: str) -> Reading:
        facts = self._devices.facts(name)
        at: dict[str, AttributeValue] = {
            m.SYSTEM_DEVICE: name,
            m.DISK_HOLDS_DATASET: name in self._with_data,
        }
        storages = self._datasets.storages()
        mounted = next((storage for storage in storages if storage.device == name), None)
        parents = self._devices.below(name)
        if name.startswith("loop"):  # its file lies on a disk, which sysfs does not tell
            layers = next((storage.layers for storage in storages if name in storage.layers), ())
            parents = list(layers[layers.index(name) + 1 :][:1]) if layers else []
        told = {
            m.HW_MODEL: facts.model,
            m.HW_SERIAL_NUMBER: facts.serial_number,
            m.DISK_TYPE: facts.type,
            m.DISK_PARENTS: ",".join(parents),
            m.SYSTEM_FILESYSTEM_MOUNTPOINT: mounted.mount_point if mounted else "",
            m.SYSTEM_FILESYSTEM_TYPE: mounted.file_system if mounted else "",
        }
        at.update({key: value for key, value in told.items() if value})
        return Reading(m.DISK_INFO, 1.0, at)

    # -- what they did ------------------------------------------------------------------------------

    def _device(self, name: str, raw: _Raw, elapsed_s: float) -> Iterator[Reading]:
        last = self._last.get(name)
        self._last[name] = raw
        # Operations never go back on one and the same device: then another one has the name now.
        restarted = last is not None and (raw.reads < last.reads or raw.writes < last.writes)

        def count(what: str, value: int) -> float:
            return self._counters.update((name, what), value, restarted=restarted, wraps=what in _WRAPPING)

        for direction, operations, merged, size, time_ms in (
            ("read", raw.reads, raw.reads_merged, raw.read_bytes, raw.read_ms),
            ("write", raw.writes, raw.writes_merged, raw.written_bytes, raw.write_ms),
        ):
            at = {m.SYSTEM_DEVICE: name, m.DISK_IO_DIRECTION: direction}
            number = count(f"{direction}.operations", operations)
            size_by = count(f"{direction}.bytes", size)
            time_s = count(f"{direction}.ms", time_ms) / 1e3
            yield Reading(m.DISK_OPERATIONS, number, at)
            yield Reading(m.DISK_IO, size_by, at)
            yield Reading(m.DISK_OPERATION_TIME, time_s, at)
            yield Reading(m.DISK_AWAIT, time_s, at, per=number)
            yield Reading(m.DISK_REQUEST_SIZE, size_by, at, per=number)
            if merged is not None:
                yield Reading(m.DISK_MERGED, count(f"{direction}.merged", merged), at)
        if self._discards_and_flushes:
            yield from _discards_and_flushes(name, raw, count)
        at = {m.SYSTEM_DEVICE: name}
        if raw.in_flight is not None:
            yield Reading(m.DISK_IN_FLIGHT, raw.in_flight, at)
        if raw.busy_ms is not None:
            busy_s = count("busy.ms", raw.busy_ms) / 1e3
            yield Reading(m.DISK_IO_TIME, busy_s, at)
            yield Reading(m.DISK_UTILIZATION, self._busy_s(name, busy_s, elapsed_s), at, per=self._now)
        if raw.queue_ms is not None:
            yield Reading(m.DISK_QUEUE_LENGTH, count("queue.ms", raw.queue_ms) / 1e3, at, per=self._now)

    def _busy_s(self, name: str, busy_s: float, elapsed_s: float) -> float:
        """Busy time that does not outrun the clock: the kernel counts ticks, for some drivers too many."""
        shown, seen, excess = self._busy.get(name, (0.0, busy_s, 0.0))
        growth = busy_s - seen + excess
        # What one tick counted too much belongs to the next window, but never more than a few milliseconds.
        counted = min(growth, elapsed_s)
        self._busy[name] = (shown + counted, busy_s, min(growth - counted, _TICK_S))
        return shown + counted

    # -- the sources --------------------------------------------------------------------------------

    def _read(self) -> dict[str, _Raw]:
        try:
            text = self._stats.read_text()
        except FileNotFoundError:
            return self._read_psutil()
        except OSError as error:
            raise CollectorError(f"{self._stats}: {error.strerror}") from error
        found = {}
        for line in text.splitlines():
            fields = line.split()
            if len(fields) >= 14 and self._wanted(fields[2]):
                found[fields[2]] = _parse(fields[3:])
        return found

    def _read_psutil(self) -> dict[str, _Raw]:
        """Without requests in flight and queue, which only Linux counts."""
        import psutil

        found = {}
        for name, disk in (psutil.disk_io_counters(perdisk=True, nowrap=False) or {}).items():
            if self._wanted(name):
                found[name] = _Raw(
                    reads=disk.read_count,
                    reads_merged=getattr(disk, "read_merged_count", None),
                    read_bytes=disk.read_bytes,
                    read_ms=getattr(disk, "read_time", 0),
                    writes=disk.write_count,
                    writes_merged=getattr(disk, "write_merged_count", None),
                    written_bytes=disk.write_bytes,
                    write_ms=getattr(disk, "write_time", 0),
                    busy_ms=getattr(disk, "busy_time", None),
                )
        if not found:
            raise NoDataError("no counters of disks on this system")
        return found


def _discards_and_flushes(name: str, raw: _Raw, count: Callable[[str, int], float]) -> Iterator[Reading]:
    at = {m.SYSTEM_DEVICE: name}
    if raw.discards is not None:
        operations, merged, size, time_ms = raw.discards
        yield Reading(m.DISK_DISCARD_OPERATIONS, count("discard.operations", operations), at)
        yield Reading(m.DISK_DISCARD_MERGED, count("discard.merged", merged), at)
        yield Reading(m.DISK_DISCARD_IO, count("discard.bytes", size), at)
        yield Reading(m.DISK_DISCARD_TIME, count("discard.ms", time_ms) / 1e3, at)
    if raw.flushes is not None:
        operations, time_ms = raw.flushes
        yield Reading(m.DISK_FLUSH_OPERATIONS, count("flush.operations", operations), at)
        yield Reading(m.DISK_FLUSH_TIME, count("flush.ms", time_ms) / 1e3, at)


def _parse(fields: list[str]) -> _Raw:
    """The numbers of a line of /proc/diskstats, after the device's name; Linux 4.18 added discards, 5.5 flushes."""
    numbers = list(map(int, fields[:17]))
    return _Raw(
        reads=numbers[0],
        reads_merged=numbers[1],
        read_bytes=numbers[2] * _SECTOR,
        read_ms=numbers[3],
        writes=numbers[4],
        writes_merged=numbers[5],
        written_bytes=numbers[6] * _SECTOR,
        write_ms=numbers[7],
        in_flight=numbers[8],
        busy_ms=numbers[9],
        queue_ms=numbers[10],
        discards=(numbers[11], numbers[12], numbers[13] * _SECTOR, numbers[14]) if len(numbers) >= 15 else None,
        flushes=(numbers[15], numbers[16]) if len(numbers) >= 17 else None,
    )
