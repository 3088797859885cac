"""Pressure: how long tasks stalled for I/O, CPU and memory, on the machine and in the own cgroup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from gpumon import metrics as m
from gpumon.collectors.base import register
from gpumon.config import Config
from gpumon.errors import NoDataError
from gpumon.metrics import Reading
from gpumon.system.cgroup import Cgroup

_RESOURCES = ("io", "cpu", "memory")
_REFRESH_TICKS = 15


@register("pressure")
class PressureCollector:
    """Pressure stall information.

    Source: /proc/pressure/*, and *.pressure of the own cgroup (version 2).
    Units: µs -> s; avg10 in percent -> 1. The kernel renews the sums about every 2 s.
    """

    interval_s = 2.0
    may_block = False

    def __init__(self, config: Config | None = None, *, root: str | Path = "/", per_node: bool = False) -> None:
        """*per_node*: the machine alone, without the own cgroup."""
        self._per_node = per_node
        self._root = Path(root)
        self._cgroup = Cgroup(root)
        self._own = None if per_node else self._cgroup.pressure_folder()
        self._ticks = 0

    def collect(self) -> Iterable[Reading]:
        self._ticks += 1
        if self._ticks % _REFRESH_TICKS == 0 and not self._per_node:
            self._cgroup.refresh()
            self._own = self._cgroup.pressure_folder()
        nothing = True
        for resource in _RESOURCES:
            files = [("system", self._root / "proc/pressure" / resource)]
            if self._own is not None:
                files.append(("cgroup", self._own / f"{resource}.pressure"))
            for scope, file in files:
                for reading in self._file(file, resource, scope):
                    nothing = False
                    yield reading
        if nothing:
            raise NoDataError("/proc/pressure: not in this kernel, or off (boot with psi=1)")

    @staticmethod
    def _file(file: Path, resource: str, scope: str) -> Iterator[Reading]:
        try:
            text = file.read_text()
        except OSError:  # not there, or "operation not supported" where it is switched off
            return
        for line in text.splitlines():
            kind, *pairs = line.split()
            values = dict(pair.split("=", 1) for pair in pairs)
            if resource == "cpu" and kind == "full" and scope == "system":
                continue  # has no meaning, and is zero
            at = {m.PRESSURE_RESOURCE: resource, m.PRESSURE_KIND: kind, m.PRESSURE_SCOPE: scope}
            yield Reading(m.PRESSURE_STALL_TIME, int(values["total"]) / 1e6, at)
            yield Reading(m.PRESSURE_STALL_RATIO, float(values["avg10"]) / 100, at)
