"""The GPUs of a run, over its training, as rules judge them."""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Any

from gpumon.analysis.rows import Devices, Execute, Series, When, query
from gpumon.rules import thresholds as limit
from gpumon.rules.evidence import Gpu, share


def gpus_of(execute: Execute, devices: Devices, lengths: dict[When, float], rows: list[dict[str, Any]]) -> list[Gpu]:
    """Every GPU that the process of *devices* sampled, by index; *rows*: its windows, in time order."""
    training = _training(rows)
    facts = "select device, max(gpu_index) as gpu_index, max(model) as model from gpumon_gpus group by device"
    known = {row["device"]: row for row in query(execute, facts)}
    xids = _xids(execute)
    ids = {device for (device, part, _), _ in devices.each("hw.gpu.utilization") if part in ("general", "")}
    ids |= {device for (device, part, _), _ in devices.each("hw.status") if device in known or device in xids}
    found = [_gpu(name, known.get(name, {}), devices, lengths, rows, training, xids.get(name, ())) for name in ids]
    return sorted(found, key=lambda gpu: (gpu.index is None, gpu.index, gpu.id))


def busy_of(gpus: list[Gpu]) -> float | None:
    """Mean over the GPUs that were used."""
    used = [gpu.busy for gpu in gpus if gpu.busy is not None and gpu.busy_s > 0]
    return sum(used) / len(used) if used else None


def _gpu(
    name: str,
    known: dict[str, Any],
    devices: Devices,
    lengths: dict[When, float],
    rows: list[dict[str, Any]],
    training: list[When],
    xids: tuple[int, ...],
) -> Gpu:
    busy = devices.get("hw.gpu.utilization", name, "general")
    if not busy.values:
        busy = devices.get("hw.gpu.utilization", name)
    used = {when for when in training if busy.values.get(when, 0.0) >= limit.USED_GPU}
    loaded = {when for when in training if busy.values.get(when, 0.0) >= limit.LOADED_LINK}
    throttled = {
        part: series for (device, part, _), series in devices.each("gpumon.gpu.throttle.time") if device == name
    }
    slowed = {when for series in throttled.values() for when, delta in series.deltas.items() if delta > 0} & used
    # A counter says nothing of the first window that it is seen in.
    free = {when for series in throttled.values() for when in series.deltas} & used - slowed
    clock = devices.get("gpumon.gpu.clock.frequency", name, "sm")
    core = core_temperature(devices, name)
    usage, size = devices.get("hw.gpu.memory.usage", name), devices.get("hw.gpu.memory.limit", name).last
    failed = devices.get("hw.status", name, "failed")
    slowdown = [
        series.last
        for (device, _, _), series in devices.each("hw.temperature.limit")
        if device.startswith(name) and series.last
    ]
    number = known.get("gpu_index")
    return Gpu(
        id=name,
        index=int(number) if number is not None and str(number).isdigit() else None,
        model=known.get("model") or "",
        busy=busy.mean(lengths, set(training)),
        busy_s=sum(lengths.get(when, 0.0) for when in used),
        throttled_s={reason: series.total(used) for reason, series in throttled.items()},
        temperature_c=core.mean(lengths, slowed or used),
        hottest_c=core.peak,
        hot_s=_hot_s(core, lengths),
        slowdown_c=min((value for value in slowdown if value is not None), default=None),
        clock_hz=clock.mean(lengths, slowed or used),
        best_clock_hz=max((value for when, value in clock.values.items() if when in free), default=None),
        power_w=devices.get("hw.power", name).mean(lengths, slowed or used),
        power_limit_w=devices.get("gpumon.gpu.power.limit", name).last,
        link_width=_link(devices, name, "width", loaded),
        link_generation=_link(devices, name, "generation", loaded),
        memory_peak=share(usage.peak, size) if usage.peak is not None and size else None,
        memory_limit_bytes=size,
        memory_grew=_growth(usage, size, rows, training),
        uncorrected_errors=devices.get("hw.errors", name, "uncorrected").total(),
        xids=xids,
        remap=tuple(
            state for state in ("pending", "failed") if devices.get("gpumon.gpu.remapped_rows", name, state).peak
        ),
        is_failed=bool(failed.peak),
    )


def _training(rows: list[dict[str, Any]]) -> list[When]:
    """The windows from the first in which a step ended to the last."""
    stepping = [number for number, row in enumerate(rows) if row["steps"] > 0]
    if not stepping:
        return []
    return [(row["instance"], row["end_s"]) for row in rows[stepping[0] : stepping[-1] + 1]]


def core_temperature(devices: Devices, name: str) -> Series:
    """Degrees Celsius of the GPU *name* itself."""
    series = devices.get("hw.temperature", f"{name}/core")
    return series if series.values else devices.get("hw.temperature", name)


def _hot_s(series: Series, lengths: dict[When, float]) -> float:
    total, is_hot = 0.0, False
    for when, value in sorted(series.values.items(), key=lambda item: item[0][1]):
        is_hot = value >= limit.HOT_C or (is_hot and value > limit.HOT_C - limit.COOLER_C)
        total += lengths.get(when, 0.0) if is_hot else 0.0
    return total


def _link(devices: Devices, name: str, what: str, loaded: set[When]) -> tuple[float, float] | None:
    """(as it is under load, as device and slot allow); a link in the middle of a change counts as the better."""
    series = devices.get(f"gpumon.gpu.pcie.link.{what}", name)
    most = devices.get(f"gpumon.gpu.pcie.link.{what}.limit", name).last
    under_load = [value for when, value in series.values.items() if when in loaded]
    if most is None or len(under_load) < limit.LOADED_WINDOWS:
        return None
    return float(round(median(under_load))), most


def _growth(
    usage: Series, size: float | None, rows: list[dict[str, Any]], training: list[When]
) -> tuple[float, float] | None:
    """(bytes, over so many steps) where memory rose in every block of the training after its warm-up."""
    late = [when for when in training[int(len(training) * limit.WARM_UP) :] if when in usage.values]
    if len(late) < 2 * limit.MEMORY_BLOCKS:
        return None
    each = len(late) / limit.MEMORY_BLOCKS
    blocks = [
        median(usage.values[when] for when in late[int(number * each) : int((number + 1) * each)])
        for number in range(limit.MEMORY_BLOCKS)
    ]
    grown = blocks[-1] - blocks[0]
    steady = 0.25 * grown / (limit.MEMORY_BLOCKS - 1)
    is_growing = all(later - sooner > steady for sooner, later in pairwise(blocks))
    steps = {(row["instance"], row["end_s"]): row["steps"] for row in rows}
    # Between the middles of the first and the last block.
    over = sum(steps[when] for when in late) * (limit.MEMORY_BLOCKS - 1) / limit.MEMORY_BLOCKS
    enough = max(limit.MEMORY_GROWTH_BYTES, limit.MEMORY_GROWTH * (size or 0.0))
    return (grown, over) if is_growing and grown >= enough and over >= limit.MEMORY_STEPS else None


def _xids(execute: Execute) -> dict[str, tuple[int, ...]]:
    rows = execute(
        """select "LogAttributes"['hw.id'], "LogAttributes"['gpumon.gpu.xid'] from otel_logs
        where "EventName" = 'gpumon.gpu.xid'"""
    ).fetchall()
    found: dict[str, tuple[int, ...]] = {}
    for device, xid in rows:
        if device and str(xid).isdigit():
            found[device] = (*found.get(device, ()), int(xid))
    return found
