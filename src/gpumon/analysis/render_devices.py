"""Devices, metrics and accounts in the words of the text report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpumon import units

_ABOUT = ("model", "file_system", "kind", "mount_point")
"""What describes a device, in this order; `holds_dataset` adds "dataset"."""

_SUFFIXES: dict[str, Callable[[float], str]] = {
    "_bytes_per_s": units.rate,
    "_bytes": units.size,
    "_fraction": units.percent,
    "utilization": units.percent,
    "_ratio": units.percent,
    "_per_s": lambda value: f"{units.number(value)}/s",
    "_s": units.duration,
    "_w": lambda value: units.quantity(value, "W"),
    "_celsius": lambda value: units.quantity(value, "Cel"),
}
_LABELS = {
    "await_s": "await",
    "unloaded_await_s": "unloaded await",
    "utilization": "busy",
    "busiest_utilization": "busiest core",
    "read_bytes_per_s": "reads",
    "write_bytes_per_s": "writes",
    "queue_length": "queue",
    "power_w": "",
    "temperature_celsius": "",
}
_MAIN = ("await_s", "utilization", "busy_fraction")
"""The reading that stands first, with its peak."""


@dataclass(frozen=True)
class DeviceRow:
    """One device: what it is, its main reading's mean and peak, and the other readings."""

    name: str
    about: str
    main: str
    peak: str
    rest: tuple[str, ...]


def device_rows(device: Mapping[str, Any]) -> DeviceRow:
    """A device of the report's JSON as a row: a reading is a number, or a mean with its peak."""
    about = [str(device[key]) for key in _ABOUT if device.get(key) and device[key] != device["id"]]
    if device.get("disks"):
        about.append(f"on {', '.join(device['disks'])}")
    if device.get("holds_dataset"):
        about.append("dataset")
    if device.get("holds_checkpoints"):
        about.append("checkpoints")
    if device.get("health") not in (None, "ok"):
        about.append(str(device["health"]).replace("_", " "))
    readings = {key: value for key, value in device.items() if _is_reading(value) and key not in ("index", "rank")}
    limits = {key.replace("_limit_", "_"): readings.pop(key) for key in list(readings) if "_limit_" in key}
    ceilings = {key.replace("_ceiling_", "_"): readings.pop(key) for key in list(readings) if "_ceiling_" in key}
    main = next((key for key in _MAIN if key in readings), next(iter(readings), None))
    rest = []
    for key, value in readings.items():
        if key != main:
            limit = f" of {_amount(key, _mean(limits[key]))}" if key in limits else ""
            benched = f"{_of(key, value, ceilings[key])} (gpumon bench)" if key in ceilings else ""
            rest.append(_shown(key, _mean(value)) + limit + benched)
    return DeviceRow(
        name=_name(device),
        about=", ".join(about),
        main=_shown(main, _mean(readings[main])) if main else "",
        peak=_amount(main, readings[main]["peak"]) if main and _has_peak(readings[main]) else "",
        rest=tuple(rest),
    )


def _name(device: Mapping[str, Any]) -> str:
    """`loop0`, `gpu 0`, `cpu`: a disk as lsblk calls it, all else with what it is."""
    kind, name = device["type"], str(device["id"])
    if "index" in device:
        return f"{kind} {device['index']}"
    return name if kind == "disk" or name.lower().startswith(kind) else f"{kind} {name}"


def _is_reading(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("mean"), int | float)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_peak(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("peak"), int | float)


def _mean(value: Any) -> Any:
    return value["mean"] if isinstance(value, Mapping) else value


def _shown(key: str, value: float) -> str:
    return f"{_label(key)} {_amount(key, value)}".strip()


def _of(key: str, value: Any, ceiling: Any) -> str:
    """` of 48` after "46 MB/s": the unit is said once."""
    given, most = _amount(key, _mean(value)), _amount(key, _mean(ceiling))
    number, _, unit = most.rpartition(" ")
    return f" of {number}" if given.endswith(f" {unit}") else f" of {most}"


def _label(key: str) -> str:
    if key in _LABELS:
        return _LABELS[key]
    for suffix in _SUFFIXES:
        if suffix.startswith("_"):
            key = key.removesuffix(suffix)
    return key.replace("_", " ")


def _amount(key: str, value: float) -> str:
    for suffix, show in _SUFFIXES.items():
        if key.endswith(suffix):
            return show(value)
    return f"{value:.0f}" if float(value).is_integer() else units.quantity(value, "")


def metric_name(name: str) -> str:
    """`gpumon.disk.await` as "disk await", `hw.gpu.utilization` as "gpu busy"."""
    name = name.removeprefix("gpumon.").removeprefix("system.").removeprefix("hw.")
    if name == "data.wait.utilization":
        return "data wait"
    return name.replace(".", " ").replace("_", " ").replace("utilization", "busy")


def account_name(item: Mapping[str, Any]) -> str:
    """An account of fetch time, in words: `blocked.disk` of loop0 is "blocked on reads of loop0"."""
    account = item["account"]
    if account == "runnable":
        return "waiting for a cpu"
    if account == "blocked.disk":
        return f"blocked on reads of {item.get('device') or 'a disk'}"
    if account == "blocked.network_fs":
        return f"blocked on {item.get('file_system') or 'a network file system'}"
    if account == "blocked.socket":
        return "blocked on sockets"
    if account == "blocked.memory":
        return "blocked on memory"
    if account == "blocked.sleep":
        return "sleeping"
    if account == "blocked.other":
        return f"blocked in {item['call']}" if item.get("call") else "blocked elsewhere"
    return str(account)
