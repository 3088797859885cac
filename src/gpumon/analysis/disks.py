"""The disks of a run as evidence: what they did while the training waited for data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gpumon.analysis.rows import Devices, Execute, When, query
from gpumon.rules import thresholds as limit
from gpumon.rules.causes import GROUPS
from gpumon.rules.ceilings import Ceiling, fitting, one_at_a_time_s
from gpumon.rules.evidence import Disk

SHORTEST_WINDOW_S = 0.5
"""Rates of shorter windows (the last export of a run) are no measure of what a disk can give."""

_LIMIT_UNITS = {"gpumon.disk.limit.io": "By/s", "gpumon.disk.limit.operations": "{operation}/s"}


@dataclass
class ReadBytes:
    """Bytes that fetches made devices read, by window and device."""

    deltas: dict[tuple[When, str], float] = field(default_factory=dict)

    def total(self, only: set[When] | None = None) -> float:
        return sum(size for (when, _), size in self.deltas.items() if only is None or when in only)


@dataclass
class Disks:
    """Every disk that was sampled, is known, or was waited for."""

    devices: Devices
    lengths: dict[When, float]
    meanwhile: set[When]
    """The windows that count."""
    accounts: list[dict[str, Any]]
    read_bytes: ReadBytes
    datasets: list[dict[str, Any]]
    infos: dict[str, dict[str, Any]]
    """What is known of them: rows of `gpumon_disks`."""
    limits: dict[str, list[tuple[str, float, str]]]

    def names(self) -> list[str]:
        names = set(self.infos) | {row["device"] for row in self.accounts if row["device"]}
        for metric in ("gpumon.disk.utilization", "gpumon.disk.await"):
            names |= {device for (device, _, _), _ in self.devices.each(metric)}
        return sorted(names)

    def evidence(self) -> dict[str, Disk]:
        return {name: self._disk(name) for name in self.names()}

    def _disk(self, name: str) -> Disk:
        devices, only = self.devices, self.meanwhile
        info = self.infos.get(name, {})
        data: dict[str, Any] = next((row for row in self.datasets if row["device"] == name), {})
        reads, writes = devices.get("system.disk.io", name, "read"), devices.get("system.disk.io", name, "write")
        read_time = devices.get("system.disk.operation_time", name, "read")
        ceilings = self._ceilings(name)
        # A counter that ran before gpumon has no change in its first window: nothing is held against that one.
        known = set(reads.deltas) & only
        return Disk(
            name=name,
            type=info.get("type"),
            holds_dataset=bool(info.get("holds_dataset") or data),
            mount_point=data.get("mount_point") or info.get("mount_point"),
            file_system=data.get("file_system") or info.get("file_system"),
            seconds=sum(self.lengths.get(when, 0.0) for when in known),
            await_s=self._await(name, only),
            queue=devices.get("gpumon.disk.queue.length", name).mean(self.lengths, only),
            read_time_s=read_time.total(known) if known & set(read_time.deltas) else None,
            blocked_s=self._blocked(name, bool(data), known),
            read_bytes=reads.total(known),
            write_bytes=writes.total(known),
            own_read_bytes=self._own_reads(name, known),
            own_write_bytes=self._own_writes(known),
            best_read_bytes_per_s=max(
                (rate for when, rate in reads.values.items() if self.lengths.get(when, 0.0) >= SHORTEST_WINDOW_S),
                default=None,
            ),
            unloaded_s=devices.get("gpumon.disk.unloaded.await", name).last,
            unloaded_queue=devices.get("gpumon.disk.unloaded.queue", name).last or 0.0,
            quiet_s=self._quiet(name),
            limits=self.limits.get(name, ()),
            ceiling=fitting(ceilings, self._readers(), self._request_bytes(name, only)),
            benched_s=one_at_a_time_s(ceilings),
        )

    def _ceilings(self, name: str) -> list[Ceiling]:
        """What `gpumon bench` got from it, as this host knew it last."""
        found = []
        for (device, part, _), series in self.devices.each("gpumon.disk.ceiling.io"):
            operations = self.devices.get("gpumon.disk.ceiling.operations", device, part).last
            pattern, _, parallel = part.partition(".")
            if device == name and series.last and operations and parallel.isdigit():
                found.append(Ceiling(pattern, int(parallel), series.last, operations))
        return found

    def _readers(self) -> int | None:
        workers = self.devices.get("gpumon.loader.workers").last
        return None if workers is None else max(1, round(workers))

    def _request_bytes(self, name: str, only: set[When]) -> float | None:
        return self.devices.ratio("system.disk.io", "system.disk.operations", name, "read", only)

    def _await(self, name: str, only: set[When]) -> float | None:
        """Mean time of a read: by the counters, else by the gauge."""
        mean = self.devices.ratio("system.disk.operation_time", "system.disk.operations", name, "read", only)
        if mean is None:
            mean = self.devices.get("gpumon.disk.await", name, "read").mean(self.lengths, only)
        return mean

    def _quiet(self, name: str) -> float | None:
        """Its await in windows with an almost empty queue, over the whole run; None where too few were."""
        queue = self.devices.get("gpumon.disk.queue.length", name)
        reading = set(self.devices.get("gpumon.disk.await", name, "read").values)
        operations = self.devices.get("system.disk.operations", name, "read").deltas
        reading |= {when for when, count in operations.items() if count > 0}
        quiet = {when for when in reading if queue.values.get(when, limit.QUIET_QUEUE) < limit.QUIET_QUEUE}
        return self._await(name, quiet) if len(quiet) >= limit.QUIET_WINDOWS else None

    def _blocked(self, name: str, holds_dataset: bool, known: set[When]) -> float | None:
        """Seconds that fetches were blocked on its files; faults whose device is unknown belong to the only one."""
        names = {name}
        if holds_dataset and len({row["device"] for row in self.datasets}) == 1:
            names.add("")
        rows = [row for row in self.accounts if row["account"] in GROUPS["disk"] and row["device"] in names]
        if not rows:
            return None
        return sum(float(row["seconds"]) for row in rows if self._same_time((row["instance"], row["end_s"]), known))

    def _own_reads(self, name: str, known: set[When]) -> float | None:
        own = {when: size for (when, device), size in self.read_bytes.deltas.items() if device == name}
        return sum(size for when, size in own.items() if self._same_time(when, known)) if own else None

    def _own_writes(self, known: set[When]) -> float | None:
        written = [series for (_, part, _), series in self.devices.each("process.disk.io") if part == "write"]
        return sum(series.total(known) for series in written) if written else None

    def _same_time(self, when: When, known: set[When]) -> bool:
        """Windows of other processes of this host end at other times: all that count are taken."""
        return when in known or (when in self.meanwhile and when[0] not in {instance for instance, _ in known})


def read_bytes(execute: Execute, instances: set[str]) -> ReadBytes:
    """What the fetches of some processes read."""
    found = ReadBytes()
    rows = execute(
        "select instance, at_s, device, delta from stg_counters where metric = 'gpumon.fetch.read'"
    ).fetchall()
    for instance, at_s, device, delta in rows:
        if instance in instances and delta:
            key = ((instance, at_s), device)
            found.deltas[key] = found.deltas.get(key, 0.0) + delta
    return found


def disk_infos(execute: Execute) -> dict[str, dict[str, Any]]:
    """What is known of the disks, by name."""
    columns = ("model", "type", "holds_dataset", "holds_checkpoints", "parents", "mount_point", "file_system")
    chosen = ", ".join(f"max({column}) as {column}" for column in columns)
    rows = query(execute, f"select device, {chosen} from gpumon_disks group by device")
    return {row["device"]: row for row in rows if row["device"]}


def disk_limits(execute: Execute) -> dict[str, list[tuple[str, float, str]]]:
    """(unit, value, the file that sets it) of the limits on reading, by disk."""
    found: dict[str, list[tuple[str, float, str]]] = defaultdict(list)
    for row in _limit_rows(execute):
        if row["metric"] in _LIMIT_UNITS and row["direction"] in ("read", ""):
            found[row["device"]].append((_LIMIT_UNITS[row["metric"]], row["lowest"], row["source"]))
    return dict(found)


def _limit_rows(execute: Execute) -> Iterable[dict[str, Any]]:
    return query(execute, "select metric, device, direction, source, lowest from gpumon_limits order by metric, source")
