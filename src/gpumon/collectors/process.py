"""The training's processes: the trainer and its DataLoader workers, with all their descendants."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from gpumon import metrics as m
from gpumon.collectors.base import register
from gpumon.config import Config
from gpumon.errors import NoDataError
from gpumon.metrics import Metric, Reading
from gpumon.system import processes
from gpumon.system.processes import WORKERS, Stat

TRAINER: Final = "trainer"
WORKER: Final = "loader_worker"
_OWED_TICKS: Final = 2
_MAX_THREADS: Final = 256
_CPU: Final = ("user", "system")
_FAULTS: Final = ("minor", "major")
_IO: Final = ("rchar", "read_bytes", "write_bytes")


@dataclass(slots=True)
class _Process:
    """What was counted of a process so far, by counter: its own, and that of ended children."""

    role: str
    parent: int
    own: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    runqueue_s: dict[int, float] = field(default_factory=dict)  # by thread
    owed: dict[str, float] = field(default_factory=dict)
    """What ended children had that was counted already and that will come again in this one's numbers."""
    owed_by: str = ""  # the role of these children
    owed_for: int = 0  # ticks that may still pass until it comes


@register("process")
class ProcessCollector:
    """CPU, I/O, faults and memory of the process tree, by role.

    Source: /proc/PID/{stat,io}, /proc/PID/task/*/{schedstat,children}.
    Units: clock ticks -> s, ns -> s, pages -> By.
    Shape: one reading per metric and role; counters keep what ended processes did, also between two ticks
        (the kernel adds it to their parent's numbers).
    """

    interval_s = 2.0
    may_block = False

    def __init__(
        self,
        config: Config | None = None,
        *,
        proc: str = "/proc",
        root_pid: int | None = None,
        workers: Mapping[int, int] = WORKERS,
    ) -> None:
        self._proc = proc
        self._root_pid = root_pid
        self._workers = workers
        self._known: dict[tuple[int, int], _Process] = {}  # by pid and start
        self._sums: dict[tuple[str, str], float] = {}  # by role and counter

    def collect(self) -> Iterable[Reading]:
        root = self._root_pid or os.getpid()
        if not os.path.exists(f"{self._proc}/{root}/stat"):  # noqa: PTH110
            raise NoDataError("no /proc: only Linux tells what a process did")
        stats: dict[int, Stat] = {}
        for pid in processes.tree(root, self._proc):
            try:
                stats[pid] = processes.read_stat(pid, self._proc)
            except (OSError, ValueError):
                continue
        roles = self._roles(stats)
        self._settle(stats)
        for pid, stat in stats.items():
            self._count(stat, roles[pid])
        yield from self._counters()
        yield from self._gauges(stats, roles)

    def _roles(self, stats: Mapping[int, Stat]) -> dict[int, str]:
        roles: dict[int, str] = {}
        for pid, stat in stats.items():  # parents first
            roles[pid] = WORKER if pid in self._workers else roles.get(stat.parent, TRAINER)
        return roles

    # -- counters -----------------------------------------------------------------------------------

    def _settle(self, stats: Mapping[int, Stat]) -> None:
        """Note what ended processes leave to their parents' numbers."""
        for key, process in list(self._known.items()):
            if key[0] in stats and stats[key[0]].started == key[1]:
                continue
            del self._known[key]
            for (pid, _started), parent in self._known.items():
                if pid == process.parent:
                    for name in process.own:
                        left = process.own[name] + process.ended.get(name, 0.0)
                        parent.owed[name] = parent.owed.get(name, 0.0) + left
                    parent.owed_by = process.role
                    parent.owed_for = _OWED_TICKS
                    break

    def _count(self, stat: Stat, role: str) -> None:
        key = (stat.pid, stat.started)
        process = self._known.get(key)
        if process is None:
            process = self._known[key] = _Process(role, stat.parent)
        if process.role == TRAINER and role == WORKER:
            process.role = role
        for name, own, ended in (
            ("user", stat.user_s, stat.children_user_s),
            ("system", stat.system_s, stat.children_system_s),
            ("minor", stat.minor_faults, stat.children_minor_faults),
            ("major", stat.major_faults, stat.children_major_faults),
        ):
            self._add(process.role, name, own - process.own.get(name, 0.0))
            process.own[name] = own
            by = process.owed_by or process.role
            self._add(by, name, self._pay(process, name, ended - process.ended.get(name, 0.0)))
            process.ended[name] = ended
        try:
            io = processes.read_io(stat.pid, self._proc)
        except (OSError, ValueError):
            io = {}
        for name in _IO:
            if name in io:
                # Own and ended children's in one number. What comes on top of what is owed can be either's;
                # workers read, trainers write.
                reader = process.owed_by if process.owed.get(name) and name != "write_bytes" else ""
                grown = self._pay(process, name, io[name] - process.own.get(name, 0.0))
                self._add(reader or process.role, name, grown)
                process.own[name] = float(io[name])
        self._count_runqueue(stat.pid, process)
        if process.owed_for:
            process.owed_for -= 1
            if not process.owed_for:
                process.owed.clear()  # the child was not waited for: its numbers go nowhere
                process.owed_by = ""

    @staticmethod
    def _pay(process: _Process, name: str, grown: float) -> float:
        """What of a growth is new, and not what ended children had that was counted already."""
        owed = process.owed.get(name, 0.0)
        if owed:
            process.owed[name] = owed - min(owed, max(0.0, grown))
        return grown - owed

    def _count_runqueue(self, pid: int, process: _Process) -> None:
        threads = processes.threads(pid, self._proc)
        for thread in threads[:_MAX_THREADS]:
            try:
                seconds = processes.read_runqueue_s(pid, thread, self._proc)
            except (OSError, ValueError, IndexError):
                continue
            self._add(process.role, "runqueue", seconds - process.runqueue_s.get(thread, 0.0))
            process.runqueue_s[thread] = seconds
        if len(process.runqueue_s) > len(threads):
            for thread in set(process.runqueue_s) - set(threads):
                del process.runqueue_s[thread]

    def _add(self, role: str, name: str, grown: float) -> None:
        self._sums[role, name] = self._sums.get((role, name), 0.0) + max(0.0, grown)

    # -- readings -----------------------------------------------------------------------------------

    def _counters(self) -> Iterator[Reading]:
        for role in (TRAINER, WORKER):
            at = {m.PROCESS_ROLE: role}
            for mode in _CPU:
                yield from self._sum(m.PROCESS_CPU_TIME, role, mode, {**at, m.CPU_MODE: mode})
            for fault in _FAULTS:
                yield from self._sum(m.PROCESS_PAGING_FAULTS, role, fault, {**at, m.SYSTEM_PAGING_FAULT_TYPE: fault})
            yield from self._sum(m.PROCESS_RUNQUEUE_TIME, role, "runqueue", at)
            yield from self._sum(m.PROCESS_READ, role, "rchar", at)
            for direction in ("read", "write"):
                yield from self._sum(
                    m.PROCESS_DISK_IO, role, f"{direction}_bytes", {**at, m.DISK_IO_DIRECTION: direction}
                )

    def _sum(self, metric: Metric, role: str, name: str, at: dict[str, str]) -> Iterator[Reading]:
        if (role, name) in self._sums:
            yield Reading(metric, self._sums[role, name], at)

    @staticmethod
    def _gauges(stats: Mapping[int, Stat], roles: Mapping[int, str]) -> Iterator[Reading]:
        for role in (TRAINER, WORKER):
            of_role = [stat for pid, stat in stats.items() if roles[pid] == role]
            if of_role:
                at = {m.PROCESS_ROLE: role}
                yield Reading(m.PROCESS_COUNT, len(of_role), at)
                yield Reading(m.PROCESS_THREAD_COUNT, sum(stat.threads for stat in of_role), at)
                yield Reading(m.PROCESS_MEMORY_USAGE, sum(stat.resident_bytes for stat in of_role), at)
