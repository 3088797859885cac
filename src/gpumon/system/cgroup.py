"""Limits of the control groups that a process is in, its own and its parents' as far as they are visible.

Version 1, version 2 and both at once. From inside a container a parent's limit is often invisible: absent
does not mean that there is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from gpumon.system.block import BlockDevices
from gpumon.system.storage import parse_mount

_UNLIMITED: Final = 1 << 60  # version 1 says "none" as a number near 2^63
Unit = Literal["bytes", "operations"]


@dataclass(frozen=True)
class Limit:
    """A limit and the file that sets it."""

    value: float
    source: str


@dataclass(frozen=True)
class DiskLimit:
    """Bytes or operations per second that may pass to or from a device."""

    device: str
    direction: Literal["read", "write"]
    unit: Unit
    limit: Limit


@dataclass(frozen=True)
class Throttling:
    """What a CPU quota did so far: periods in which the group ran, was held back, and for how long."""

    periods: int
    throttled_periods: int
    throttled_s: float


@dataclass(frozen=True)
class _Level:
    """One group: where it is read, and what to call that place."""

    folder: Path
    version: int

    def read(self, name: str) -> str:
        return _read(self.folder / name)


class Cgroup:
    """The control groups of a process.

    Source: /proc/PID/cgroup, /proc/PID/mountinfo and the files in the group's folders under *root*.
    """

    def __init__(self, root: str | Path = "/", pid: int | str = "self", devices: BlockDevices | None = None) -> None:
        self._root = Path(root)
        self._pid = pid
        self._devices = devices or BlockDevices(root)
        self._paths: dict[str, str] = {}  # controller, "" for version 2 -> path in its hierarchy
        self._mounts: dict[str, tuple[str, str]] = {}  # controller -> (mount point, path of its root)
        self._levels: dict[str, list[_Level]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look again which groups the process is in."""
        proc = self._root / "proc" / str(self._pid)
        self._paths = {}
        self._levels = {}
        for line in _read(proc / "cgroup").splitlines():
            number, controllers, path = line.split(":", 2)
            for controller in controllers.split(",") if number != "0" else [""]:
                self._paths[controller.removeprefix("name=")] = path
        self._mounts = {}
        for line in _read(proc / "mountinfo").splitlines():
            mount = parse_mount(line)
            if mount is None:
                continue
            if mount.file_system == "cgroup2":
                self._mounts.setdefault("", (mount.mount_point, mount.root))
            elif mount.file_system == "cgroup":
                for option in mount.options.split(","):
                    self._mounts.setdefault(option.removeprefix("name="), (mount.mount_point, mount.root))

    def levels(self, v1: str) -> list[_Level]:
        """The groups from the process's own up to the topmost visible one, for a controller."""
        if v1 not in self._levels:
            self._levels[v1] = self._find_levels(v1)
        return self._levels[v1]

    def _find_levels(self, v1: str) -> list[_Level]:
        for controller, version in ((v1, 1), ("", 2)):
            if controller not in self._mounts or controller not in self._paths:
                continue
            mount_point, mount_root = self._mounts[controller]
            path, top = self._paths[controller], mount_root.rstrip("/")
            if top and (path == top or path.startswith(top + "/")):
                path = path[len(top) :]
            elif top or ".." in path.split("/"):
                path = "/"  # the mount shows the own group, or the own group lies outside of it
            base = self._root / mount_point.lstrip("/")
            parts = [part for part in path.split("/") if part]
            folders = [base.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
            return [_Level(folder, version) for folder in folders if folder.is_dir()]
        return []

    def name_of(self, file: Path) -> str:
        """The path of a limit's file as a user would type it."""
        return "/" + str(file.relative_to(self._root))

    # -- CPU ------------------------------------------------------------------------------------------

    def cpu_quota(self) -> Limit | None:
        """CPUs that the tightest quota allows; None without a visible quota."""
        found = self._tightest_cpu()
        return found[1] if found else None

    def _tightest_cpu(self) -> tuple[_Level, Limit] | None:
        best: tuple[_Level, Limit] | None = None
        for level in self.levels("cpu"):
            if level.version == 1:
                name = "cpu.cfs_quota_us"
                quota, period = level.read(name), level.read("cpu.cfs_period_us")
            else:
                name = "cpu.max"
                quota, _, period = level.read(name).partition(" ")
            if quota.isdigit() and period.isdigit() and int(period) > 0:
                cpus = int(quota) / int(period)
                if best is None or cpus < best[1].value:
                    best = level, Limit(cpus, self.name_of(level.folder / name))
        return best

    def throttling(self) -> Throttling | None:
        """Counters of the group whose quota is the tightest; None without a visible quota.

        A group's counters do not show what a parent's quota does to it.
        """
        found = self._tightest_cpu()
        if found is None:
            return None
        stat = _pairs(found[0].read("cpu.stat"))
        if "nr_periods" not in stat:
            return None
        nanoseconds = stat.get("throttled_time", 1000 * stat.get("throttled_usec", 0))
        return Throttling(stat["nr_periods"], stat.get("nr_throttled", 0), nanoseconds / 1e9)

    def usable_cpus(self) -> float:
        """CPUs that this process may use: its affinity, less where a quota allows less."""
        if hasattr(os, "sched_getaffinity"):
            pid = os.getpid() if self._pid == "self" else int(self._pid)
            try:
                cpus = float(len(os.sched_getaffinity(pid)))
            except OSError:
                cpus = float(os.cpu_count() or 1)
        else:
            cpus = float(os.cpu_count() or 1)
        quota = self.cpu_quota()
        return min(cpus, quota.value) if quota else cpus

    # -- memory ---------------------------------------------------------------------------------------

    def _tightest_memory(self) -> tuple[_Level, Limit] | None:
        best: tuple[_Level, Limit] | None = None
        for level in self.levels("memory"):
            names = ("memory.limit_in_bytes",) if level.version == 1 else ("memory.max", "memory.high")
            for name in names:
                text = level.read(name)
                if text.isdigit() and int(text) < _UNLIMITED and (best is None or int(text) < best[1].value):
                    best = level, Limit(float(text), self.name_of(level.folder / name))
        return best

    def memory_limit(self) -> Limit | None:
        """Bytes that the tightest group may hold, page cache included; None without a visible limit."""
        found = self._tightest_memory()
        return found[1] if found else None

    def memory_limit_hits(self) -> int | None:
        """How often the group with the tightest limit ran into it; None without a visible limit."""
        found = self._tightest_memory()
        if found is None:
            return None
        level = found[0]
        if level.version == 1:
            text = level.read("memory.failcnt")
            return int(text) if text.isdigit() else None
        events = _pairs(level.read("memory.events"))
        return events.get("max", 0) + events.get("high", 0) if events else None

    def memory_refaults(self) -> int | None:
        """File pages of the own group, children included, that were read again after their eviction."""
        for level in self.levels("memory")[:1]:
            stat = _pairs(level.read("memory.stat"))
            names = ("total_workingset_refault_file", "workingset_refault_file", "workingset_refault")
            return next((stat[name] for name in names if name in stat), None)
        return None

    # -- disks and pressure -----------------------------------------------------------------------------

    def disk_limits(self) -> list[DiskLimit]:
        """The tightest limit per device, direction and unit.

        Requests that such a limit holds back wait before the kernel counts them: await does not show them.
        """
        best: dict[tuple[str, str, str], DiskLimit] = {}
        for level in self.levels("blkio"):
            for item in self._disk_limits_v1(level) if level.version == 1 else self._disk_limits_v2(level):
                key = (item.device, item.direction, item.unit)
                if key not in best or item.limit.value < best[key].limit.value:
                    best[key] = item
        return list(best.values())

    def _disk_limits_v1(self, level: _Level) -> Iterator[DiskLimit]:
        units: tuple[tuple[Unit, str], ...] = (("bytes", "bps"), ("operations", "iops"))
        directions: tuple[Literal["read", "write"], ...] = ("read", "write")
        for unit, short in units:
            for direction in directions:
                name = f"blkio.throttle.{direction}_{short}_device"
                for line in level.read(name).splitlines():
                    number, _, text = line.partition(" ")
                    device = self._devices.of_number(number)
                    if device and text.isdigit() and int(text) < _UNLIMITED:
                        source = self.name_of(level.folder / name)
                        yield DiskLimit(device, direction, unit, Limit(float(text), source))

    def _disk_limits_v2(self, level: _Level) -> Iterator[DiskLimit]:
        for line in level.read("io.max").splitlines():
            number, *settings = line.split()
            device = self._devices.of_number(number)
            for setting in settings:
                key, _, text = setting.partition("=")
                if device and text.isdigit() and key[:1] in ("r", "w") and key[1:] in ("bps", "iops"):
                    yield DiskLimit(
                        device,
                        "read" if key[0] == "r" else "write",
                        "bytes" if key[1:] == "bps" else "operations",
                        Limit(float(text), self.name_of(level.folder / "io.max")),
                    )

    def pressure_folder(self) -> Path | None:
        """Where the own group's cpu.pressure, io.pressure, memory.pressure are; None at the very top.

        The topmost group of a machine says what /proc/pressure says.
        """
        if "" not in self._mounts or "" not in self._paths:
            return None
        levels = [level for level in self.levels("\0no such controller") if level.version == 2]
        if not levels or not (levels[0].folder / "cgroup.events").exists():
            return None
        return levels[0].folder


def _pairs(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
