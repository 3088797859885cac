"""From the rows of a run to the evidence that rules judge."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from gpumon.analysis.disks import Disks, ReadBytes, disk_infos, disk_limits, read_bytes
from gpumon.analysis.drives import drives_of
from gpumon.analysis.gpus import busy_of, gpus_of
from gpumon.analysis.rows import (
    Devices,
    Execute,
    Process,
    When,
    lengths,
    processes,
    query,
    troubled,
    windows,
)
from gpumon.rules import thresholds as limit
from gpumon.rules.evidence import Account, Evidence, Fetches, Loader, Machine, Steps, share

COUNTS = ("steps", "samples", "epochs", "failed", "skipped", "assumed", "first_of_epoch_steps")
COMPUTE = ("forward_s", "backward_s", "optimizer_s")


@dataclass
class Gathered:
    """The evidence, and the rows that reports show beside it."""

    evidence: Evidence
    totals: dict[str, float]
    """Of training steps: counts as one rank made them (samples: all ranks'), seconds as the mean rank's."""
    phases: dict[str, float]
    trainers: list[Process]
    everyone: list[Process]
    windows: list[dict[str, Any]]
    devices: Devices
    lengths: dict[When, float]
    disks: Disks
    fetch_count: float
    fetch_accounts: list[dict[str, Any]]


def gather(execute: Execute, run_s: float, begin_s: float) -> Gathered:
    """Read what verdicts need. *begin_s*: the run's start in seconds since 1970."""
    everyone = processes(execute)
    rows = query(execute, "select * from gpumon_totals where stage = 'train'")
    stepping = {row["instance"] for row in rows if row["steps"] > 0}
    trainers = [process for process in everyone if process.instance in stepping] or everyone
    instances = {process.instance for process in trainers}
    totals = _totals([row for row in rows if row["instance"] in instances])
    ranks = max(1, len({process.rank for process in trainers}))
    phases = _phases(execute, instances, ranks)

    # Devices and fetches are compared on one host: the one that waits longest.
    all_windows = windows(execute, instances)
    local = _slowest_host(trainers, all_windows)
    local_windows = [row for row in all_windows if row["instance"] in local]
    sampled_by = min(local, key=lambda name: (next(p.rank for p in trainers if p.instance == name), name), default="")
    devices = Devices(execute, sampled_by)
    lasting = lengths(local_windows)
    meanwhile = troubled(local_windows)
    counts, accounts = _fetch_rows(execute, local)
    disks = Disks(
        devices,
        lasting,
        meanwhile,
        accounts,
        read_bytes(execute, local),
        query(
            execute, "select distinct path, kind, device, mount_point, file_system from gpumon_datasets order by all"
        ),
        disk_infos(execute),
        disk_limits(execute),
    )
    loader = _loader(devices, {worker for _, worker in counts})
    fetches = _fetches(counts, accounts, meanwhile, local_windows, loader, _handover(execute, local, meanwhile))
    local_steps = sum(row["steps"] for row in local_windows)
    steps = Steps(
        count=round(totals["steps"]),
        time_s=totals["step_s"],
        phases=phases,
        first_count=round(totals["first_of_epoch_steps"]),
        first_wait_s=totals["first_of_epoch_wait_s"],
        first_time_s=totals["first_of_epoch_step_s"],
    )
    gpus = gpus_of(execute, devices, lasting, [row for row in local_windows if row["instance"] == sampled_by])
    ends = [end for _, end in meanwhile]
    begins = [end - lasting.get((name, end), 0.0) for name, end in meanwhile]
    evidence = Evidence(
        run_s=run_s,
        drives=drives_of(execute, disks.infos),
        steps=steps,
        fetches=fetches,
        disks=disks.evidence(),
        machine=_machine(execute, devices, meanwhile, local_windows, disks.read_bytes, steps),
        loader=loader,
        gpus=gpus,
        gpu_busy=busy_of(gpus),
        read_bytes_per_step=share(disks.read_bytes.total(), local_steps),
        blind=_blind(execute),
        from_s=round(max(0.0, min(begins) - begin_s), 3) if begins else None,
        to_s=round(max(0.0, max(ends) - begin_s), 3) if ends else None,
    )
    return Gathered(
        evidence, totals, phases, trainers, everyone, all_windows, devices, lasting, disks,
        sum(counts.values()), accounts,
    )  # fmt: skip


def _totals(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Counts as the rank that made most of them has them; times as the mean rank's; samples of all ranks."""
    by_rank: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                by_rank[row["rank"]][name] += value
    names = (*COUNTS, "step_s", "first_of_epoch_wait_s", "first_of_epoch_step_s")
    ranks = list(by_rank.values())
    totals: dict[str, float] = {}
    for name in names:
        values = [rank[name] for rank in ranks]
        if name == "samples":
            totals[name] = sum(values)
        elif name in COUNTS:
            totals[name] = max(values, default=0.0)
        else:
            totals[name] = share(sum(values), len(values))
    return totals


def _phases(execute: Execute, instances: set[str], ranks: int) -> dict[str, float]:
    phases: dict[str, float] = defaultdict(float)
    for row in query(execute, "select instance, phase, phase_s from gpumon_phases where stage = 'train'"):
        if row["instance"] in instances:
            phases[row["phase"]] += row["phase_s"] / ranks
    return dict(phases)


def _slowest_host(trainers: list[Process], rows: list[dict[str, Any]]) -> set[str]:
    waits: dict[str, float] = defaultdict(float)
    hosts = {process.instance: process.host for process in trainers}
    for row in rows:
        waits[hosts[row["instance"]]] += row["wait_s"]
    slowest = max(waits, key=lambda host: waits[host], default=None)
    return {process.instance for process in trainers if process.host == slowest}


# -- Fetches ------------------------------------------------------------------------------------------


def _fetch_rows(execute: Execute, local: set[str]) -> tuple[dict[tuple[When, int], float], list[dict[str, Any]]]:
    counts: dict[tuple[When, int], float] = {}
    for row in query(execute, "select instance, end_s, worker_id, fetches from gpumon_fetches"):
        if row["instance"] in local:
            counts[(row["instance"], row["end_s"]), row["worker_id"]] = row["fetches"]
    accounts = [row for row in query(execute, "select * from gpumon_fetch_accounts") if row["instance"] in local]
    return counts, accounts


def _handover(execute: Execute, local: set[str], only: set[When]) -> float:
    rows = execute(
        "select instance, at_s, delta from stg_counters where metric = 'gpumon.fetch.handover.time'"
    ).fetchall()
    return sum(float(delta) for name, at_s, delta in rows if name in local and (name, at_s) in only and delta)


def _fetches(
    counts: dict[tuple[When, int], float],
    accounts: list[dict[str, Any]],
    only: set[When],
    rows: list[dict[str, Any]],
    loader: Loader,
    handover_s: float,
) -> Fetches:
    seconds: dict[tuple[str, str, str, str], float] = defaultdict(float)
    for row in accounts:
        if (row["instance"], row["end_s"]) in only:
            seconds[row["account"], row["device"], row["call"], row["file_system"]] += row["seconds"]
    chosen = [row for row in rows if (row["instance"], row["end_s"]) in only]
    # Of the steps, not of the windows: a run's first and last window hold little training.
    time_s = sum(row["step_s"] for row in chosen)
    wall_s = sum(seconds.values())
    waited_s = sum(row["wait_s"] - row["first_of_epoch_wait_s"] for row in chosen)
    return Fetches(
        count=sum(count for (when, _), count in counts.items() if when in only),
        accounts=[
            Account(account, spent, device, call, file_system)
            for (account, device, call, file_system), spent in seconds.items()
        ],
        duty=wall_s / (max(loader.workers or 1, 1) * time_s) if wall_s and time_s else None,
        handover_fraction=min(1.0, share(handover_s, waited_s)),
    )


def _loader(devices: Devices, workers_seen: set[int]) -> Loader:
    def setting(name: str) -> int | None:
        value = devices.get(f"gpumon.loader.{name}").last
        return None if value is None else round(value)

    workers = setting("workers")
    if workers is None and workers_seen:
        workers = len([worker for worker in workers_seen if worker >= 0])
    persistent = setting("persistent")
    return Loader(workers, setting("prefetch"), setting("batch_size"), None if persistent is None else bool(persistent))


# -- The machine --------------------------------------------------------------------------------------


def _machine(
    execute: Execute,
    devices: Devices,
    only: set[When],
    rows: list[dict[str, Any]],
    read: ReadBytes,
    steps: Steps,
) -> Machine:
    limits = {row["metric"]: row for row in query(execute, "select metric, lowest, source from gpumon_limits")}
    quota, memory = limits.get("gpumon.cpu.quota", {}), limits.get("gpumon.memory.limit", {})
    periods = devices.get("gpumon.cpu.periods")
    throttled = devices.get("gpumon.cpu.throttled.periods").total(only)
    return Machine(
        cpus=devices.get("gpumon.cpu.usable").last,
        quota_cpus=quota.get("lowest"),
        quota_source=quota.get("source") or "",
        throttled_fraction=share(throttled, periods.total(only)) if periods.deltas else None,
        trainer_cpu_s=_trainer_cpu_s(devices, rows, steps),
        read_bytes=read.total(only),
        refaulted_bytes=devices.get("gpumon.memory.refaults").total(only) * limit.PAGE_BYTES,
        memory_limit_hits=devices.get("gpumon.memory.limit_hits").total(only),
        memory_limit_bytes=memory.get("lowest"),
    )


def _trainer_cpu_s(devices: Devices, rows: list[dict[str, Any]], steps: Steps) -> float | None:
    """CPU time of the trainer over all compute, from the windows in which both are known."""
    cpu: dict[When, float] = defaultdict(float)
    for (_, _, role), series in devices.each("process.cpu.time"):
        if role == "trainer":
            for when, seconds in series.deltas.items():
                cpu[when] += seconds
    compute = {
        (row["instance"], row["end_s"]): sum(row[column] for column in COMPUTE) for row in rows if row["steps"] > 0
    }
    both = set(cpu) & set(compute)
    compute_s = float(sum(compute[when] for when in both))
    if compute_s <= 0:
        return None
    per_second = sum(cpu[when] for when in both) / compute_s
    return per_second * sum(steps.phases.get(phase, 0.0) for phase in ("forward", "backward", "optimizer"))


def _blind(execute: Execute) -> dict[str, str]:
    rows = query(
        execute,
        """select collector, max(reason) as reason, min(up) as up from gpumon_collectors
        where run_id = (select max(run_id) from gpumon_collectors) group by collector""",
    )
    return {row["collector"]: row["reason"] or "not read" for row in rows if not row["up"]}
