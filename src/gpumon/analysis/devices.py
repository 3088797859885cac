"""The devices of a run, with the mean and the peak of their readings."""

from __future__ import annotations

from typing import Any

from gpumon.analysis.gather import Gathered
from gpumon.analysis.gpus import core_temperature
from gpumon.analysis.rows import Series, When
from gpumon.rules.disk_health import STATES

BUSY_DISK = 0.01
"""Disks that hold no data set and were never busier than this are left out."""


def devices_of(gathered: Gathered) -> list[dict[str, Any]]:
    """Disks (those of the data set first), other storage of the data set, GPUs, the CPU."""
    disks = [_disk(name, gathered) for name in gathered.evidence.disks]
    shown = [disk for disk in disks if disk["holds_dataset"] or disk.get("health", "ok") != "ok" or _is_busy(disk)]
    shown.sort(key=lambda disk: (not disk["holds_dataset"], -_mean(disk, "utilization"), disk["id"]))
    return [*shown, *_other_storage(gathered), *_gpus(gathered), *_cpu(gathered)]


def _disk(name: str, gathered: Gathered) -> dict[str, Any]:
    devices, lengths = gathered.devices, gathered.lengths
    disk, info = gathered.evidence.disks[name], gathered.disks.infos.get(name, {})
    found: dict[str, Any] = {
        "type": "disk",
        "id": name,
        "holds_dataset": disk.holds_dataset,
        "model": info.get("model"),
        "kind": disk.type,
        "file_system": disk.file_system,
        "mount_point": disk.mount_point,
        "disks": info["parents"].split(",") if info.get("parents") else None,
        **_health(name, info, gathered),
    }
    await_s = devices.ratio("system.disk.operation_time", "system.disk.operations", name, "read")
    gauge = devices.get("gpumon.disk.await", name, "read")
    mean = await_s if await_s is not None else gauge.mean(lengths)
    if mean is not None:
        found["await_s"] = {"mean": mean, "peak": _peak(gauge, mean)}
    if disk.baseline is not None:
        found["unloaded_await_s"] = disk.baseline[0]
    if disk.ceiling is not None:
        found["read_ceiling_bytes_per_s"] = disk.ceiling.bytes_per_s
        found["read_ceiling_pattern"] = f"{disk.ceiling.pattern}, {disk.ceiling.parallel} at a time"
    for key, series in (
        ("read_bytes_per_s", devices.get("system.disk.io", name, "read")),
        ("write_bytes_per_s", devices.get("system.disk.io", name, "write")),
        ("queue_length", devices.get("gpumon.disk.queue.length", name)),
        ("utilization", devices.get("gpumon.disk.utilization", name)),
    ):
        if (reading := _reading(series, lengths)) is not None and (reading["peak"] or not key.startswith("write")):
            found[key] = reading
    return {key: value for key, value in found.items() if value is not None}


def _health(name: str, info: dict[str, Any], gathered: Gathered) -> dict[str, Any]:
    """What the physical disks behind a block device say of themselves: the worst state, the highest temperature."""
    layers = {name, *(info.get("parents") or "").split(",")}
    drives = [drive for drive in gathered.evidence.drives if layers & set(drive.devices)]
    found: dict[str, Any] = {
        "health": max((drive.state for drive in drives if drive.state), key=STATES.index, default=None)
    }
    found["holds_checkpoints"] = True if info.get("holds_checkpoints") else None
    heats = [gathered.devices.get("hw.temperature", drive.id) for drive in drives]
    readings = [reading for heat in heats if (reading := _reading(heat, gathered.lengths)) is not None]
    if readings:
        found["temperature_celsius"] = max(readings, key=lambda reading: reading["peak"])
    return found


def _other_storage(gathered: Gathered) -> list[dict[str, Any]]:
    places = {
        (row["kind"], row["mount_point"] or row["path"], row["file_system"])
        for row in gathered.disks.datasets
        if not row["device"] and (row["mount_point"] or row["path"])
    }
    return [
        {"type": "storage", "id": place, "holds_dataset": True, "kind": kind, "file_system": file_system}
        for kind, place, file_system in sorted(places, key=str)
    ]


def _gpus(gathered: Gathered) -> list[dict[str, Any]]:
    devices, lengths = gathered.devices, gathered.lengths
    found = []
    for known in gathered.evidence.gpus:
        gpu: dict[str, Any] = {"type": "gpu", "id": known.id}
        gpu |= {"index": known.index} if known.index is not None else {}
        gpu |= {"model": known.model} if known.model else {}
        for key, metric, *part in (
            ("utilization", "hw.gpu.utilization", "general"),
            ("memory_bytes", "hw.gpu.memory.usage"),
            ("power_w", "hw.power"),
            ("sm_active_fraction", "gpumon.gpu.sm.activity"),
        ):
            if (reading := _reading(devices.get(metric, known.id, *part), lengths)) is not None:
                gpu[key] = reading
        if (heat := _reading(core_temperature(devices, known.id), lengths)) is not None:
            gpu["temperature_celsius"] = heat
        for key, limit in (("memory_limit_bytes", known.memory_limit_bytes), ("power_limit_w", known.power_limit_w)):
            if limit is not None:
                gpu[key] = limit
        if throttled := sorted(reason for reason, seconds in known.throttled_s.items() if seconds > 0):
            gpu["throttled_s"] = round(known.slowed_s(""), 3)
            gpu["throttle_reasons"] = throttled
        if known.is_failed:
            gpu["failed"] = True
        found.append(gpu)
    return found


def _cpu(gathered: Gathered) -> list[dict[str, Any]]:
    devices, lengths = gathered.devices, gathered.lengths
    cpu: dict[str, Any] = {"type": "cpu", "id": "cpu"}
    usable = devices.get("gpumon.cpu.usable").last
    if usable is not None:
        cpu["usable"] = round(usable, 2)
    busy = Series()
    for (_, mode, _), series in devices.each("system.cpu.utilization"):
        if mode not in ("idle", "iowait"):
            for when, value in series.values.items():
                busy.values[when] = busy.values.get(when, 0.0) + value
    if (reading := _reading(busy, lengths)) is not None:
        cpu["utilization"] = reading
    if (busiest := _reading(devices.get("gpumon.cpu.busiest.utilization"), lengths)) is not None:
        cpu["busiest_utilization"] = busiest
    return [cpu] if len(cpu) > 2 else []


def _reading(series: Series, lengths: dict[When, float]) -> dict[str, float] | None:
    mean = series.mean(lengths)
    return None if mean is None else {"mean": mean, "peak": _peak(series, mean)}


def _peak(series: Series, mean: float) -> float:
    return max(series.peak if series.peak is not None else mean, mean)


def _is_busy(disk: dict[str, Any]) -> bool:
    return bool("utilization" in disk and disk["utilization"]["peak"] >= BUSY_DISK)


def _mean(disk: dict[str, Any], key: str) -> float:
    return float(disk[key]["mean"]) if key in disk else 0.0
