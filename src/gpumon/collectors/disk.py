"""The disks: what iostat shows, from the same counters."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from gpumon import metrics as m
from gpumon.collectors.base import register
from gpumon.config import Config
from gpumon.errors import CollectorError, NoDataError
from gpumon.metrics import AttributeValue, Reading
from gpumon.system.block import BlockDevices
from gpumon.system.ceilings import Ceilings
from gpumon.system.cgroup import Cgroup
from gpumon.system.datasets import CHECKPOINTS, DATASETS, Datasets
from gpumon.system.disk_counters import DiskCounters, Row, parse

_REFRESH_S: Final = 10.0  # of limits
_LOOK_S: Final = 60.0  # at what disks say of themselves: ten files of each
_SECTOR: Final = 512  # bytes
# Neither whole disks nor anything real; they are shown where a data set lies on them.
_NO_DISK: Final = re.compile(r"(ram|zram|loop|fd|sr|dm-|md|mtdblock|nbd)\d*|nvme\d+c\d+n\d+")
_LAYER: Final = re.compile(r"(loop|dm-|md|nbd)\d+")
_PARTITION: Final = re.compile(r"((h|s|v|xv)d[a-z]+\d+|(nvme\d+n|mmcblk|md|nbd|loop)\d+p\d+)$")


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
        checkpoints: Datasets = CHECKPOINTS,
        only: Sequence[str] = (),
        per_node: bool = False,
        discards_and_flushes: bool = False,
    ) -> None:
        """*only*: patterns (`sd*`) of the devices to read instead, partitions and loops included.

        *per_node*: the machine rather than this process: dm, md and loop devices that are in use too, whosever
        data lies on them, and no limits of a cgroup.
        """
        self._only = tuple(only)
        self._per_node = per_node
        self._discards_and_flushes = discards_and_flushes
        self._root = Path(root)
        self._stats = self._root / "proc/diskstats"
        self._datasets = datasets
        self._checkpoints = checkpoints
        self._devices = BlockDevices(root)
        self._ceilings = Ceilings(root)
        self._cgroup = Cgroup(root, devices=self._devices)
        self._counters: dict[str, DiskCounters] = {}
        self._now = 0.0
        self._refreshed = -_REFRESH_S
        self._looked: tuple[float, int] = (-_LOOK_S, -1)
        self._names: Collection[str] = ()
        self._is_disk: dict[tuple[str, bool], bool] = {}
        self._with_data: set[str] = set()
        self._with_checkpoints: set[str] = set()
        self._facts: list[Reading] = []
        self._limits: list[Reading] = []

    def collect(self) -> Iterable[Reading]:
        before, self._now = self._now, time.monotonic()
        version = self._datasets.version + self._checkpoints.version
        look = self._now - self._looked[0] >= _LOOK_S or self._looked[1] != version
        if look:
            self._with_data = self._datasets.devices()
            self._with_checkpoints = self._checkpoints.devices()
            self._is_disk.clear()
        raw = self._read()
        if look or raw.keys() != self._names:
            self._looked, self._names = (self._now, version), raw.keys()
            self._facts = [reading for name in raw for reading in self._about(name)]
        if self._now - self._refreshed >= _REFRESH_S and not self._per_node:
            self._refreshed = self._now
            self._limits = list(self._cgroup_limits())
        elapsed_s = self._now - before if before else 0.0
        for name, row in raw.items():
            counters = self._counters.get(name)
            if counters is None:
                counters = DiskCounters(name, discards_and_flushes=self._discards_and_flushes)
                self._counters[name] = counters
            yield from counters.read(row, self._now, elapsed_s)
        yield from self._facts
        yield from self._limits
        for name, (seconds, queue) in list(self._datasets.unloaded.items()):
            if name in raw:
                yield Reading(m.DISK_UNLOADED_AWAIT, seconds, {m.SYSTEM_DEVICE: name})
                yield Reading(m.DISK_UNLOADED_QUEUE, queue, {m.SYSTEM_DEVICE: name})

    # -- which devices ------------------------------------------------------------------------------

    def _wanted(self, name: str, is_untouched: bool = False) -> bool:
        """*is_untouched*: nothing was ever read from it, as from a loop device without a file."""
        if self._only:
            return any(fnmatchcase(name, pattern) for pattern in self._only)
        if name in self._with_data or name in self._with_checkpoints:
            return True
        known = self._is_disk.get((name, is_untouched))
        if known is None:
            known = self._is_disk[name, is_untouched] = self._is_whole(name)
        return known

    def _is_whole(self, name: str) -> bool:
        if not self._devices.exists(name):
            return not (_PARTITION.match(name) or _NO_DISK.fullmatch(name))
        if self._devices.is_partition(name) or self._devices.size_bytes(name) == 0:
            return False
        return not _NO_DISK.fullmatch(name) or (self._per_node and bool(_LAYER.fullmatch(name)))

    def _cgroup_limits(self) -> Iterator[Reading]:
        self._cgroup.refresh()
        for item in self._cgroup.disk_limits():
            metric = m.DISK_LIMIT_IO if item.unit == "bytes" else m.DISK_LIMIT_OPERATIONS
            at = {
                m.SYSTEM_DEVICE: item.device,
                m.DISK_IO_DIRECTION: item.direction,
                m.LIMIT_SOURCE: item.limit.source,
            }
            yield Reading(metric, item.limit.value, at)

    def _about(self, name: str) -> Iterator[Reading]:
        """What is known of a disk, and what it gave when it was measured."""
        yield self._info(name)
        for ceiling in self._ceilings.of(name):
            ways: m.Attributes = {
                m.SYSTEM_DEVICE: name,
                m.BENCH_PATTERN: ceiling.pattern,
                m.BENCH_PARALLEL: ceiling.parallel,
            }
            yield Reading(m.DISK_CEILING_IO, ceiling.bytes_per_s, ways)
            yield Reading(m.DISK_CEILING_OPERATIONS, ceiling.operations_per_s, ways)

    def _info(self, name: str) -> Reading:
        facts = self._devices.facts(name)
        at: dict[str, AttributeValue] = {
            m.SYSTEM_DEVICE: name,
            m.DISK_HOLDS_DATASET: name in self._with_data,
        }
        if name in self._with_checkpoints:
            at[m.DISK_HOLDS_CHECKPOINTS] = True
        storages = [*self._datasets.storages(), *self._checkpoints.storages()]
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

    # -- the sources --------------------------------------------------------------------------------

    def _read(self) -> dict[str, Row]:
        try:
            text = self._stats.read_text()
        except FileNotFoundError:
            return self._read_psutil()
        except OSError as error:
            raise CollectorError(f"{self._stats}: {error.strerror}") from error
        found = {}
        for line in text.splitlines():
            fields = line.split()
            if len(fields) >= 14 and self._wanted(fields[2], fields[3] == "0"):
                found[fields[2]] = parse(fields[3:])
        return found

    def _read_psutil(self) -> dict[str, Row]:
        """Without requests in flight and queue, which only Linux counts."""
        import psutil

        try:
            disks = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        except (NotImplementedError, RuntimeError, OSError) as error:
            raise NoDataError(f"no counters of disks here: {error}") from error
        found: dict[str, Row] = {}
        for name, disk in disks.items():
            if self._wanted(name):
                found[name] = (
                    disk.read_count,
                    getattr(disk, "read_merged_count", None),
                    disk.read_bytes // _SECTOR,
                    getattr(disk, "read_time", 0),
                    disk.write_count,
                    getattr(disk, "write_merged_count", None),
                    disk.write_bytes // _SECTOR,
                    getattr(disk, "write_time", 0),
                    None,
                    getattr(disk, "busy_time", None),
                    *(None,) * 7,
                )
        if not found:
            raise NoDataError("no counters of disks on this system")
        return found
