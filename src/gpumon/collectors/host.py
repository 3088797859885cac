"""The host: CPU, memory and network, and what of them the cgroup allows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from gpumon import metrics as m
from gpumon.collectors.base import register
from gpumon.config import Config
from gpumon.errors import NoDataError
from gpumon.metrics import Reading
from gpumon.system.cgroup import Cgroup
from gpumon.system.counters import Monotonic

_REFRESH_TICKS: Final = 15
# Columns of /proc/stat; guest time is part of user and nice already.
_MODES: Final = ("user", "nice", "system", "idle", "iowait", "interrupt", "interrupt", "steal")
_NO_NETWORK: Final = re.compile(
    r"lo|veth.*|docker.*|br-.*|virbr.*|cali.*|cni.*|flannel.*|dummy.*|ifb.*|tunl.*|ip6tnl.*|sit.*"
)


@register("host")
class HostCollector:
    """CPU, memory and network of the machine; quota and limits of the own cgroup.

    Source: /proc/stat, /proc/meminfo, /proc/net/dev, cgroup files.
    Units: clock ticks -> share of all, µs and ns -> s, kB -> By.
    """

    interval_s = 2.0
    may_block = False

    def __init__(self, config: Config | None = None, *, root: str | Path = "/", per_node: bool = False) -> None:
        """*per_node*: the machine alone, without what the own cgroup is allowed and how it fares."""
        self._per_node = per_node
        self._proc = Path(root, "proc")
        self._cgroup = Cgroup(root)
        self._counters = Monotonic()
        self._cores: dict[str, tuple[int, int]] = {}
        self._sources: dict[str, tuple[str, float]] = {}
        self._ticks = 0

    def collect(self) -> Iterable[Reading]:
        if not (self._proc / "stat").exists():
            raise NoDataError("no /proc/stat: only Linux tells this")
        yield from self._cpu()
        if not self._per_node:
            self._ticks += 1
            if self._ticks % _REFRESH_TICKS == 0:
                self._cgroup.refresh()
            yield from self._cpu_limits()
            yield from self._memory_limits()
        yield from self._memory()
        yield from self._network()

    def _cpu(self) -> Iterator[Reading]:
        busiest = None
        for line in _lines(self._proc / "stat"):
            if not line.startswith("cpu"):
                break
            name, *texts = line.split()
            ticks = list(map(int, texts[: len(_MODES)]))
            if name == "cpu":
                yield from self._modes(ticks)
                continue
            total, idle = sum(ticks), sum(ticks[3:5])
            before = self._cores.get(name)
            self._cores[name] = (total, idle)
            if before is not None and total > before[0]:
                busy = 1 - max(0, idle - before[1]) / (total - before[0])
                busiest = max(busiest or 0.0, min(1.0, busy))
        if busiest is not None:
            yield Reading(m.CPU_BUSIEST, busiest)

    def _modes(self, ticks: list[int]) -> Iterator[Reading]:
        by_mode: dict[str, float] = {}
        for column, (mode, value) in enumerate(zip(_MODES, ticks, strict=False)):
            # iowait and idle may go back.
            by_mode[mode] = by_mode.get(mode, 0.0) + self._counters.update(("cpu", column), value)
        total = sum(by_mode.values())
        for mode, value_ticks in by_mode.items():
            yield Reading(m.CPU_UTILIZATION, value_ticks, {m.CPU_MODE: mode}, per=total)

    def _cpu_limits(self) -> Iterator[Reading]:
        yield Reading(m.CPU_USABLE, self._cgroup.usable_cpus())
        quota = self._cgroup.cpu_quota()
        throttling = self._cgroup.throttling()
        if quota is not None:
            yield Reading(m.CPU_QUOTA, quota.value, {m.LIMIT_SOURCE: quota.source})
        if quota is not None and throttling is not None:
            for metric, value in (
                (m.CPU_PERIODS, throttling.periods),
                (m.CPU_THROTTLED_PERIODS, throttling.throttled_periods),
                (m.CPU_THROTTLED_TIME, throttling.throttled_s),
            ):
                yield Reading(metric, self._grown(metric.name, quota.source, value))

    def _memory(self) -> Iterator[Reading]:
        info = {}
        for line in _lines(self._proc / "meminfo"):
            key, _, rest = line.partition(":")
            info[key] = int(rest.split()[0]) * 1024
        if "MemTotal" in info:
            cached = info.get("Cached", 0) + info.get("SReclaimable", 0)
            free, buffers = info.get("MemFree", 0), info.get("Buffers", 0)
            states = {"free": free, "cached": cached, "buffers": buffers}
            states["used"] = max(0, info["MemTotal"] - sum(states.values()))
            for state, value in states.items():
                yield Reading(m.MEMORY_USAGE, value, {m.SYSTEM_MEMORY_STATE: state})
        if "MemAvailable" in info:
            yield Reading(m.MEMORY_AVAILABLE, info["MemAvailable"])

    def _memory_limits(self) -> Iterator[Reading]:
        limit, hits = self._cgroup.memory_limit(), self._cgroup.memory_limit_hits()
        refaults = self._cgroup.memory_refaults()
        if limit is not None:
            yield Reading(m.MEMORY_LIMIT, limit.value)
            if hits is not None:
                yield Reading(m.MEMORY_LIMIT_HITS, self._grown("hits", limit.source, hits))
        if refaults is not None:
            yield Reading(m.MEMORY_REFAULTS, self._counters.update("refaults", refaults))

    def _grown(self, what: str, source: str, value: float) -> float:
        """A counter of the group with the tightest limit; another group may be that from now on."""
        before = self._sources.get(what)
        self._sources[what] = (source, value)
        if before is None:
            self._counters.add(what, value)
        elif before[0] == source:
            self._counters.add(what, max(0.0, value - before[1]))
        return self._counters.value(what) or 0.0

    def _network(self) -> Iterator[Reading]:
        for line in _lines(self._proc / "net/dev")[2:]:
            name, _, rest = line.partition(":")
            name, fields = name.strip(), rest.split()
            if _NO_NETWORK.fullmatch(name) or len(fields) < 9:
                continue
            for direction, value in (("receive", int(fields[0])), ("transmit", int(fields[8]))):
                at = {m.NETWORK_INTERFACE_NAME: name, m.NETWORK_IO_DIRECTION: direction}
                yield Reading(m.NETWORK_IO, self._counters.update(("net", name, direction), value), at)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
