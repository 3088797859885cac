"""What the agent knows of its node, in the shapes of the API."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gpumon import metrics as m
from gpumon.agent.collect import WINDOW_S, Demand
from gpumon.agent.paths import ClientPaths
from gpumon.metrics import Attributes
from gpumon.sampler import Latest, Sampler
from gpumon.version import __version__


class Node:
    """Answers from memory; thread-safe. `sampler` may be exchanged."""

    def __init__(self, sampler: Sampler, paths: ClientPaths, demand: Demand, exports: Callable[[], bool]) -> None:
        self.sampler = sampler
        self._paths, self._demand = paths, demand
        self._exports = exports
        self._instance = uuid.uuid4().hex
        self._started = time.monotonic()

    def health(self) -> dict[str, Any]:
        exports = [name for name, up, _ in self.sampler.state() if up] if self._exports() else []
        return {
            "version": __version__,
            "instance": self._instance,
            "uptime_s": round(time.monotonic() - self._started, 3),
            "collectors": self._collectors(),
            "exports": exports,
            "network_namespace": _network_namespace(),
        }

    def readings(self, collectors: Sequence[str], devices: Sequence[str]) -> dict[str, Any]:
        """The latest value of every series, of some collectors, or devices, only."""
        wanted = set(devices)
        self._demand.note(collectors)
        return {
            "instance": self._instance,
            "collectors": [each for each in self._collectors() if not collectors or each["name"] in collectors],
            "readings": [
                _reading(each)
                for each in self.sampler.latest(WINDOW_S)
                if (not collectors or each.collector in collectors) and (not wanted or wanted & _names(each.attributes))
            ],
        }

    def devices(self, paths: Sequence[str], pid: int) -> dict[str, Any]:
        by_metric: dict[str, list[Latest]] = {}
        for each in self.sampler.latest(WINDOW_S):
            by_metric.setdefault(each.metric.name, []).append(each)
        return {
            "instance": self._instance,
            "gpus": _gpus(by_metric),
            "disks": [self._disk(each.attributes) for each in by_metric.get(m.DISK_INFO.name, [])],
            "smart": _drives(by_metric),
            "paths": [self._paths.device_of(path, pid) for path in paths],
        }

    def _collectors(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "up": up, **({"reason": reason} if reason else {})}
            for name, up, reason in self.sampler.state()
        ]

    def _disk(self, at: Attributes) -> dict[str, Any]:
        device = str(at[m.SYSTEM_DEVICE])
        parents = [name for name in str(at.get(m.DISK_PARENTS, "")).split(",") if name]
        told = {"model": m.HW_MODEL, "serial_number": m.HW_SERIAL_NUMBER, "type": m.DISK_TYPE}
        return {"device": device, **_told(at, told), "parents": parents}


def _reading(each: Latest) -> dict[str, Any]:
    metric = each.metric
    found: dict[str, Any] = {
        "collector": each.collector,
        "metric": metric.name,
        "kind": metric.kind,
        "unit": metric.unit,
        "attributes": each.attributes,
        "age_s": round(each.age_s, 3),
    }
    if each.value is not None:
        found["value"] = each.value
    if each.terms is not None:
        found["terms"] = {"value": each.terms[0], "per": each.terms[1], "is_ratio": each.is_ratio}
    return found


def _names(at: Attributes) -> set[Any]:
    """What a series' device may be called in `device=`."""
    return {at.get(m.HW_ID), at.get(m.HW_PARENT), *str(at.get(m.SYSTEM_DEVICE, "")).split(",")}


def _told(at: Attributes, names: Mapping[str, str]) -> dict[str, Any]:
    return {key: at[name] for key, name in names.items() if name in at}


def _gpus(by_metric: Mapping[str, Iterable[Latest]]) -> list[dict[str, Any]]:
    """By UUID; the MIG instances with their GPU. A GPU that is lost is among them, as far as it is known."""
    gpus: dict[str, dict[str, Any]] = {}
    for name, found in by_metric.items():
        for each in found:
            at = each.attributes
            if m.GPU_INDEX in at and m.HW_PARENT not in at:
                gpu = gpus.setdefault(str(at[m.HW_ID]), {"id": at[m.HW_ID], "index": at[m.GPU_INDEX], "instances": []})
                if name == m.GPU_INFO.name:
                    told = {"model": m.HW_MODEL, "serial_number": m.HW_SERIAL_NUMBER, "mig": m.GPU_MIG}
                    gpu.update(_told(at, {**told, "driver_version": m.HW_DRIVER_VERSION, "pci": m.GPU_PCI_BUS_ID}))
    for each in by_metric.get(m.GPU_INFO.name, ()):
        if (parent := each.attributes.get(m.HW_PARENT)) in gpus:
            gpus[str(parent)]["instances"].append(each.attributes[m.HW_ID])
    _add_states(by_metric, gpus)
    return sorted(gpus.values(), key=lambda gpu: int(gpu["index"]))


def _drives(by_metric: Mapping[str, Iterable[Latest]]) -> list[dict[str, Any]]:
    """By serial number or WWN."""
    drives: dict[str, dict[str, Any]] = {}
    for each in by_metric.get(m.SMART_INFO.name, ()):
        at = each.attributes
        devices = [name for name in str(at.get(m.SYSTEM_DEVICE, "")).split(",") if name]
        told = {"model": m.HW_MODEL, "serial_number": m.HW_SERIAL_NUMBER, "type": m.PHYSICAL_DISK_TYPE}
        drives[str(at[m.HW_ID])] = {"id": at[m.HW_ID], "devices": devices, **_told(at, told)}
    for each in by_metric.get(m.COLLECTOR_UP.name, ()):
        if each.collector == "smart":  # one that never answered has no facts
            drives.setdefault(str(each.attributes[m.HW_ID]), {"id": each.attributes[m.HW_ID], "devices": []})
    _add_states(by_metric, drives)
    return list(drives.values())


def _add_states(by_metric: Mapping[str, Iterable[Latest]], devices: Mapping[str, dict[str, Any]]) -> None:
    for each in by_metric.get(m.STATUS.name, ()):
        if each.value and (device := devices.get(str(each.attributes[m.HW_ID]))) is not None:
            device["state"] = each.attributes[m.HW_STATE]
    for each in by_metric.get(m.COLLECTOR_UP.name, ()):
        if (device := devices.get(str(each.attributes.get(m.HW_ID)))) is not None and m.REASON in each.attributes:
            device["reason"] = each.attributes[m.REASON]


def _network_namespace() -> str:
    """Tells a process whether its network interfaces are ours."""
    try:
        return os.readlink("/proc/self/ns/net")  # noqa: PTH115
    except OSError:
        return ""
