"""Why the training waited for data: what its fetches were doing meanwhile, and what the devices say to that.

Device counters only divide "blocked on files of a disk" further; they never start a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpumon.rules import thresholds as limit
from gpumon.rules.evidence import Disk, Evidence, Fetches, share

GROUPS = {
    "cpu": ("cpu", "runnable"),
    "disk": ("blocked.disk", "blocked.memory"),
    "network_fs": ("blocked.network_fs",),
    "socket": ("blocked.socket",),
    "sleep": ("blocked.sleep",),
    "other": ("blocked.other",),
}
"""Accounts of fetches by the layer that is to blame."""

BELOW_CEILING = "it gives far less than it gave gpumon bench"


@dataclass(frozen=True)
class Cause:
    """A cause by name; `unknown` has candidates, the likelier first."""

    name: str
    confidence: float
    candidates: tuple[str, ...] = ()
    device: str | None = None
    note: str = ""
    """What makes the difference, in words; for the finding's summary."""


def cause_of_waits(evidence: Evidence) -> Cause:
    """Name the one cause that explains the waits, or abstain."""
    steps, fetches = evidence.steps, evidence.fetches
    if steps.first_fraction >= limit.STARTUP:
        return Cause("worker_startup", _sure(steps.first_fraction))
    if _is_handover(evidence):
        return Cause("handover", _sure(fetches.handover_fraction))
    if not fetches.wall_s or fetches.mean_s < limit.SHORTEST_FETCH_S:
        return _without_accounts(evidence)
    first, second = leading_groups(fetches)[:2]
    named, runner_up = _cause_of(first[0], evidence), _cause_of(second[0], evidence)
    if first[1] < limit.LEADING_SHARE and first[1] - second[1] < limit.LEAD:
        candidates = dict.fromkeys([*_names(named), *_names(runner_up)])
        return Cause("unknown", _sure(first[1]), tuple(candidates)[:2], named.device)
    return Cause(named.name, _sure(named.confidence * first[1]), named.candidates, named.device, named.note)


def leading_groups(fetches: Fetches) -> list[tuple[str, float]]:
    """(group, share of fetch time), the largest first."""
    shares = [(group, fetches.fraction(*accounts)) for group, accounts in GROUPS.items()]
    return sorted(shares, key=lambda item: -item[1])


def blamed_disk(evidence: Evidence) -> str | None:
    """The device that fetches were blocked on longest; the data set's only one where that is not known."""
    seconds: dict[str, float] = {}
    for item in evidence.fetches.accounts:
        if item.account in GROUPS["disk"]:
            seconds[item.device] = seconds.get(item.device, 0.0) + item.seconds
    longest = max(seconds, key=lambda device: seconds[device], default="")
    if longest:
        return longest
    holders = [disk.name for disk in evidence.disks.values() if disk.holds_dataset]
    return holders[0] if len(holders) == 1 else None


def blocked_on_disk_s(evidence: Evidence, device: str) -> float:
    """Seconds that fetches were blocked on files of *device*; faults without a device count for the blamed one."""
    names = {device, ""} if device == blamed_disk(evidence) else {device}
    return sum(
        item.seconds for item in evidence.fetches.accounts if item.account in GROUPS["disk"] and item.device in names
    )


def _is_handover(evidence: Evidence) -> bool:
    fetches = evidence.fetches
    if evidence.loader.workers == 0 or fetches.duty is None:
        return False
    # Workers that wait for a CPU hand over late too: what they lack is the CPU.
    starved = share(fetches.fraction("runnable"), fetches.fraction("cpu", "runnable")) >= limit.RUNNABLE_UNSURE[1]
    return fetches.handover_fraction >= limit.HANDOVER and fetches.duty < limit.BUSY_WORKERS and not starved


def _without_accounts(evidence: Evidence) -> Cause:
    """Without accounts of fetches nothing tells a busy disk from a guilty one."""
    holders = [disk for disk in evidence.disks.values() if disk.holds_dataset]
    slow = [disk for disk in holders if (disk.await_s or 0.0) >= disk.floor_s]
    if slow:
        return Cause("unknown", 0.3, ("disk_slow", "loader_cpu"), slow[0].name, "no fetch could be followed")
    return Cause("unknown", 0.3, ("loader_cpu", "too_few_workers"), None, "no fetch could be followed")


def _cause_of(group: str, evidence: Evidence) -> Cause:
    if group == "disk":
        return _disk_cause(evidence)
    if group == "cpu":
        return _cpu_cause(evidence)
    if group == "network_fs":
        return Cause("network_filesystem", 1.0)
    if group == "socket":
        return Cause("network", 1.0, ("too_few_workers",))
    if group == "sleep":
        return Cause("too_few_workers", 1.0)
    return Cause("unknown", 1.0, ("handover", "loader_cpu"), note=f"blocked in {_calls(evidence.fetches)}")


def _cpu_cause(evidence: Evidence) -> Cause:
    fetches = evidence.fetches
    runnable = share(fetches.fraction("runnable"), fetches.fraction("cpu", "runnable"))
    throttled = evidence.machine.throttled_fraction or 0.0
    low, high = limit.RUNNABLE_UNSURE
    unsure = low <= runnable < high and throttled < limit.THROTTLED
    if throttled >= limit.THROTTLED or runnable >= limit.RUNNABLE:
        return Cause("cpu_limit", 1.0, ("loader_cpu",) if unsure else ())
    return Cause("loader_cpu", 1.0, ("cpu_limit",) if unsure else ())


def _disk_cause(evidence: Evidence) -> Cause:
    """Held back, thrashing, normal, slow, contended, saturated: the order decides (each excuses the next)."""
    name = blamed_disk(evidence)
    disk = evidence.disks.get(name or "")
    undecided = ("disk_slow", "disk_saturated", "disk_contended")
    if disk is None or disk.await_s is None:
        return Cause("unknown", 0.5, undecided, name, "the disk below the data set could not be read")
    held = held_above(evidence, disk)
    if held is not None and held >= limit.HELD_ABOVE:
        return Cause("disk_quota", 1.0, (), name)
    unsure = ("disk_quota",) if held is not None and held >= limit.HELD_ABOVE_UNSURE else ()
    if _is_thrashing(evidence):
        return Cause("memory_pressure", 1.0, (), name)
    if disk.await_s < disk.floor_s:
        return Cause("too_few_workers", 1.0, unsure, name)
    baseline = disk.baseline
    if baseline is not None and baseline[0] >= max(disk.floor_s, limit.UNLOADED * disk.await_s):
        return Cause("disk_slow", 1.0, unsure, name, "slow also when nobody queues")
    others = disk.not_ours_fraction
    if others is not None and others >= limit.NOT_OURS:
        return Cause("disk_contended", 1.0, unsure, name)
    if disk.queue is not None and disk.queue < limit.QUEUE:
        return Cause("disk_slow", 0.9, unsure, name, "no queue is to blame")
    if (disk.ceiling_fraction or 0.0) >= limit.AT_CEILING:
        return Cause("disk_saturated", limit.MOST_CONFIDENT, unsure, name)
    ceiling = disk.ceiling.bytes_per_s if disk.ceiling else 0.0
    if baseline is not None and disk.bytes_per_s < limit.AT_ITS_BEST * ceiling:
        return Cause("disk_slow", 0.8, unsure, name, BELOW_CEILING)
    if baseline is not None and disk.best_read_bytes_per_s:
        if disk.read_bytes_per_s >= limit.AT_ITS_BEST * disk.best_read_bytes_per_s:
            return Cause("disk_saturated", 0.9, unsure, name)
        return Cause("disk_slow", 0.9, unsure, name, "it became slow during the run")
    return Cause("unknown", 0.5, undecided, name, "its unloaded latency is not known")


def held_above(evidence: Evidence, disk: Disk) -> float | None:
    """Seconds blocked on the disk by seconds it spent reading: ≈ 1 where the disk itself is waited for."""
    blocked = blocked_on_disk_s(evidence, disk.name) if disk.blocked_s is None else disk.blocked_s
    if disk.read_time_s is None:
        return None
    # A disk that answered nothing measurable held nobody up itself.
    return blocked / max(disk.read_time_s, 1e-3)


def _is_thrashing(evidence: Evidence) -> bool:
    machine, fetches = evidence.machine, evidence.fetches
    measured = fetches.fraction("blocked.memory") >= 0.5 * fetches.fraction(*GROUPS["disk"]) > 0
    refaults = share(machine.refaulted_bytes, machine.read_bytes) >= limit.REFAULTS
    return measured or (refaults and machine.memory_limit_hits > 0)


def _calls(fetches: Fetches) -> str:
    seconds: dict[str, float] = {}
    for item in fetches.accounts:
        if item.account == "blocked.other":
            seconds[item.call or "an unknown call"] = seconds.get(item.call or "an unknown call", 0.0) + item.seconds
    return max(seconds, key=lambda call: seconds[call], default="an unknown call")


def _names(cause: Cause) -> Sequence[str]:
    return cause.candidates if cause.name == "unknown" else (cause.name,)


def _sure(value: float) -> float:
    return round(min(limit.MOST_CONFIDENT, max(0.05, value)), 2)
