"""The figures that a cause rests on, held against what they are held against; the telling ones first."""

from __future__ import annotations

from collections.abc import Iterator

from gpumon.rules import thresholds as limit
from gpumon.rules.causes import GROUPS, Cause, held_above
from gpumon.rules.ceilings import SOURCE
from gpumon.rules.evidence import Disk, Evidence, share
from gpumon.rules.findings import Fact

_GROUP_WORDS = {
    "cpu": "on or waiting for a CPU",
    "disk": "blocked on files of a disk",
    "network_fs": "blocked on a network file system",
    "socket": "blocked on sockets",
    "sleep": "sleeping",
    "other": "blocked elsewhere",
}
_WORTH_A_LINE = 0.05


def facts_of(cause: Cause, evidence: Evidence) -> list[Fact]:
    """Evidence of a cause of waits for data."""
    disk = evidence.disks.get(cause.device or "")
    facts = [*_of_disk(cause, disk, evidence)] if disk is not None and disk.await_s is not None else []
    return [*facts, *_of_cause(cause, evidence), *_of_fetches(evidence), *_of_gpus(evidence)]


def _of_disk(cause: Cause, disk: Disk, evidence: Evidence) -> Iterator[Fact]:
    normal = (disk.floor_s, f"normal for {disk.type or 'an SSD'}")
    reference, source = normal if cause.name == "too_few_workers" or disk.baseline is None else disk.baseline
    yield Fact("gpumon.disk.await", disk.await_s or 0.0, "s", reference, source)
    if disk.queue is not None:
        yield Fact("gpumon.disk.queue.length", disk.queue, "{request}", None, "requests in flight")
    if cause.name == "disk_quota" and (held := held_above(evidence, disk)) is not None:
        why = "seconds blocked on the disk by seconds that it spent reading"
        yield Fact("gpumon.fetch.time", held, "1", limit.HELD_ABOVE, why)
        for unit, value, file in disk.limits:
            name = "gpumon.disk.limit.io" if unit == "By/s" else "gpumon.disk.limit.operations"
            yield Fact(name, value, unit, None, file)
    others = disk.not_ours_fraction
    if others is not None and (cause.name in ("disk_contended", "unknown") or others >= limit.NOT_OURS):
        yield Fact("system.disk.io", others, "1", limit.NOT_OURS, "share of bytes that are not this run's reads")
    if cause.name in ("disk_saturated", "unknown") and disk.best_read_bytes_per_s:
        best = disk.best_read_bytes_per_s
        yield Fact("system.disk.io", disk.read_bytes_per_s, "By/s", best, "best window of the run")
    if disk.ceiling is not None and cause.name in ("disk_saturated", "disk_slow", "unknown"):
        yield Fact("system.disk.io", disk.read_bytes_per_s, "By/s", disk.ceiling.bytes_per_s, SOURCE)


def _of_cause(cause: Cause, evidence: Evidence) -> Iterator[Fact]:
    fetches, machine, steps = evidence.fetches, evidence.machine, evidence.steps
    if cause.name == "memory_pressure":
        refaulted = share(machine.refaulted_bytes, machine.read_bytes)
        yield Fact("gpumon.memory.refaults", refaulted, "1", limit.REFAULTS, "share of bytes read")
        yield Fact("gpumon.memory.limit_hits", machine.memory_limit_hits, "{event}")
        if machine.memory_limit_bytes is not None:
            yield Fact("gpumon.memory.limit", machine.memory_limit_bytes, "By")
    elif cause.name == "cpu_limit":
        waiting = share(fetches.fraction("runnable"), fetches.fraction("cpu", "runnable"))
        yield Fact("gpumon.fetch.time", waiting, "1", limit.RUNNABLE, "share of CPU time waited for a CPU")
        if machine.throttled_fraction is not None:
            throttled = machine.throttled_fraction
            yield Fact("gpumon.cpu.throttled.periods", throttled, "1", limit.THROTTLED, "share of quota periods")
        if machine.quota_cpus is not None:
            yield Fact("gpumon.cpu.quota", machine.quota_cpus, "{cpu}", None, machine.quota_source or None)
    elif cause.name == "handover":
        late = fetches.handover_fraction
        yield Fact("gpumon.fetch.handover.time", late, "1", limit.HANDOVER, "share of the waits")
        if fetches.duty is not None:
            yield Fact("gpumon.fetch.time", fetches.duty, "1", limit.BUSY_WORKERS, "share of time workers are busy")
    elif cause.name == "worker_startup":
        yield Fact("gpumon.first_of_epoch.wait.time", steps.first_fraction, "1", limit.STARTUP, "share of all waits")


def _of_fetches(evidence: Evidence) -> Iterator[Fact]:
    for group, accounts in GROUPS.items():
        if (fraction := evidence.fetches.fraction(*accounts)) >= _WORTH_A_LINE:
            yield Fact("gpumon.fetch.time", fraction, "1", None, f"share of fetch time {_GROUP_WORDS[group]}")
    waited = evidence.steps.wait_fraction
    yield Fact("gpumon.data.wait.utilization", waited, "1", limit.NO_ALARM_WAIT, "the most of healthy loaders")


def _of_gpus(evidence: Evidence) -> Iterator[Fact]:
    """nvidia-smi's joint sign of a GPU that waits: hardly busy, while loaders are at it and its memory is steady."""
    if evidence.gpu_busy is None or evidence.gpu_busy >= limit.WAITING_GPU:
        return
    yield Fact("hw.gpu.utilization", evidence.gpu_busy, "1", limit.WAITING_GPU, "the GPU waits")
    if evidence.fetches.duty is not None:
        yield Fact("gpumon.fetch.time", min(1.0, evidence.fetches.duty), "1", None, "share of time loaders are busy")
    grown = [gpu for gpu in evidence.gpus if gpu.memory_grew is not None]
    if evidence.gpus and not grown:
        yield Fact("hw.gpu.memory.usage", "steady", "By")
