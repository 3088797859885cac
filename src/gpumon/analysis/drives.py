"""The physical disks of a run, as rules judge them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpumon.analysis.rows import Execute, query
from gpumon.rules.disk_health import Vitals
from gpumon.rules.evidence import Drive

_PERCENT = 100.0


def drives_of(execute: Execute, disks: Mapping[str, Mapping[str, Any]]) -> list[Drive]:
    """Every physical disk that told its health. *disks*: rows of `gpumon_disks` by device."""
    health = _health(execute)
    known = _known(execute, health)
    errors = _io_errors(execute)
    remembered, failed = _growth(execute), _failed(execute)
    drives = [
        _drive(row, health[serial], remembered[serial], failed[serial], disks)
        for row in known
        for serial in (row["serial_number"],)
    ]
    for name, count in errors.items():
        if not any(_holds(what, (name,), disks) for what in ("holds_dataset", "holds_checkpoints")):
            continue  # a stick that was pulled out is no news of this run
        below = {name, *(disks.get(name, {}).get("parents") or "").split(",")}
        behind = [drive for drive in drives if below & set(drive.devices)]
        for drive in behind:
            drives[drives.index(drive)] = replace(drive, vitals=replace(drive.vitals, io_errors=count))
        if not behind:
            drives.append(_unknown(name, count, disks))
    return drives


def _health(execute: Execute) -> dict[str, list[dict[str, Any]]]:
    """By disk: its attributes and counters, whether the run or the node's agent read them first and last."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in query(execute, "select * from gpumon_disk_health order by first_s, last_s"):
        first = found.setdefault((row["serial_number"], row["metric"], row["attribute"]), row)
        if row["last_s"] > first["last_s"]:
            first["growth"] = row["last_value"] - first["first_value"]
            first |= {name: row[name] for name in ("last_s", "last_value", "run_id")}
    by_disk: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in found.values():
        by_disk[row["serial_number"]].append(row)
    return by_disk


def _known(execute: Execute, health: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What is known of each disk, by whoever read it last."""
    found: dict[str, dict[str, Any]] = {}
    for row in query(execute, "select * from gpumon_physical_disks order by serial_number, run_id desc"):
        readers = {each["run_id"] for each in health[row["serial_number"]]}
        if row["serial_number"] not in found or row["run_id"] in readers:
            found[row["serial_number"]] = row
    return list(found.values())


def _drive(
    row: Mapping[str, Any],
    health: list[dict[str, Any]],
    remembered: Mapping[str, float],
    failed: Mapping[str, set[str]],
    disks: Mapping[str, Mapping[str, Any]],
) -> Drive:
    devices = tuple(filter(None, (row["devices"] or "").split(",")))
    counters = {each["attribute"]: each for each in health if each["metric"] == "gpumon.smart.count"}
    values = {each["attribute"]: each["last_value"] for each in health if each["metric"] == "hw.physical_disk.smart"}
    grown = {name: each["growth"] for name, each in counters.items() if each["growth"] > 0}
    spare, threshold = values.get("available_spare"), values.get("available_spare_threshold")
    has_failed = row["state"] == "failed"
    return Drive(
        id=row["serial_number"],
        model=row["model"] or "",
        devices=devices,
        holds_dataset=_holds("holds_dataset", devices, disks),
        holds_checkpoints=_holds("holds_checkpoints", devices, disks),
        state=row["state"] or "",
        vitals=Vitals(
            has_failed=has_failed,
            why_failed="its own health check fails, or it does not answer",
            critical_warning=int(values.get("critical_warning", 0)),
            spare=None if spare is None else spare / _PERCENT,
            spare_threshold=None if threshold is None else threshold / _PERCENT,
            used=None if row["remaining"] is None else round(1.0 - row["remaining"], 6),
            failing=sorted(failed["now"]),
            failed_before=sorted(failed["before"] - failed["now"] - {"self_test"}),
            self_test_failed="self_test" in failed["before"],
            counters={name: each["last_value"] for name, each in counters.items()},
            growth={name: max(grown.get(name, 0.0), remembered.get(name, 0.0)) for name in {*grown, *remembered}},
        ),
        grown=grown,
        grown_over_s=max((each["last_s"] - each["first_s"] for each in counters.values()), default=0.0),
    )


def _unknown(name: str, io_errors: float, disks: Mapping[str, Mapping[str, Any]]) -> Drive:
    """A block device that failed to read or write, and whose physical disk is not known."""
    return Drive(
        id=name,
        devices=(name,),
        holds_dataset=_holds("holds_dataset", (name,), disks),
        holds_checkpoints=_holds("holds_checkpoints", (name,), disks),
        vitals=Vitals(io_errors=io_errors),
    )


def _io_errors(execute: Execute) -> dict[str, float]:
    """By block device: what the kernel gave up during the run, as the process that saw most of it counted."""
    rows = execute(
        """select device, max(errors) as most from (
            select device, instance, sum(value) as errors from (
                select device, part, instance, max(value) as value from stg_points
                where metric = 'gpumon.disk.errors' group by device, part, instance
            ) as kinds group by device, instance
        ) as instances group by device having max(errors) > 0"""
    ).fetchall()
    return {device: float(count) for device, count in rows}


def _holds(what: str, devices: tuple[str, ...], disks: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether data lies on one of the block devices, or on one that is put together from them."""
    above = [
        row for name, row in disks.items() if name in devices or set((row["parents"] or "").split(",")) & set(devices)
    ]
    return any(row[what] for row in above)


def _growth(execute: Execute) -> dict[str, dict[str, float]]:
    """By disk and counter: growth over the days that whoever read the disk remembers."""
    rows = execute(
        """select device, part, max(case when age = 1 then value end) as value from (
            select device, part, value, row_number() over (partition by device, part order by at_s desc) as age
            from stg_points where metric = 'gpumon.smart.growth'
        ) as numbered group by device, part"""
    ).fetchall()
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for serial, counter, value in rows:
        found[serial][counter] = value
    return found


def _failed(execute: Execute) -> dict[str, dict[str, set[str]]]:
    """By disk: the attributes that are ("now") or were ("before") below their thresholds at any time of the run."""
    rows = execute(
        """select distinct "Attributes"['hw.id'] as device, "Attributes"['gpumon.smart.when'] as at,
            "Attributes"['hw.physical_disk.smart_attribute'] as name
        from otel_metrics_gauge where "MetricName" = 'gpumon.smart.failed' and "Value" > 0"""
    ).fetchall()
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for serial, at, name in rows:
        found[serial][at].add(name)
    return found
