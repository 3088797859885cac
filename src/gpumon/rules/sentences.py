"""The sentences: what a person reads first. Numbers carry units, devices have the names that lsblk uses."""

from __future__ import annotations

from collections.abc import Callable

from gpumon import units
from gpumon.rules import thresholds as limit
from gpumon.rules.causes import BELOW_CEILING, GROUPS, Cause, held_above, leading_groups
from gpumon.rules.evidence import Disk, Evidence, share


def waits(evidence: Evidence) -> str:
    """The share of the step that waits, as its own clock would say."""
    return f"{units.percent(evidence.steps.wait_fraction)} of each training step waits for data"


def because(cause: Cause, evidence: Evidence) -> str:
    """What is behind the waits, with the numbers that show it."""
    disk = evidence.disks.get(cause.device or "")
    if disk is not None and disk.await_s is not None and (of_disk := _OF_DISK.get(cause.name)):
        return of_disk(cause, disk, evidence)
    return _OF_CAUSE.get(cause.name, _unknown)(cause, evidence)


def healthy(evidence: Evidence) -> str:
    """Where the time goes when nothing stands out."""
    steps = evidence.steps
    shares = {"compute": steps.fraction("forward", "backward", "optimizer"), "data wait": steps.wait_fraction}
    for phase in steps.phases:
        if phase not in ("data.wait", "forward", "backward", "optimizer"):  # a user's own may be called "compute" too
            shares[phase] = shares.get(phase, 0.0) + steps.fraction(phase)
    named = {name: value for name, value in shares.items() if value >= 0.1 or name in ("compute", "data wait")}
    ordered = sorted(named.items(), key=lambda item: -item[1])
    parts = [
        f"{name} {units.percent(value)}{'' if place else ' of the step'}" for place, (name, value) in enumerate(ordered)
    ]
    if evidence.gpu_busy is not None:
        parts.append(f"GPU busy {units.percent(evidence.gpu_busy)}")
    return f"Nothing stands out: {', '.join(parts)}."


def first_batches(evidence: Evidence) -> str:
    """How long epochs begin with waiting."""
    steps = evidence.steps
    each = units.duration(share(steps.first_wait_s, steps.first_count))
    epochs = f"{steps.first_count} epoch{'' if steps.first_count == 1 else 's'}"
    of_run = units.percent(min(1.0, share(steps.first_wait_s, evidence.run_s)))
    return (
        f"The first batch of an epoch is waited for {each}: {units.duration(steps.first_wait_s)} in {epochs}, "
        f"{of_run} of the run."
    )


# -- A disk -------------------------------------------------------------------------------------------


def _disk_slow(cause: Cause, disk: Disk, evidence: Evidence) -> str:
    below = ""
    if cause.note == BELOW_CEILING and disk.ceiling is not None:
        given, benched = units.rate(disk.read_bytes_per_s), units.rate(disk.ceiling.bytes_per_s)
        below = f" and gives {given}, where it gave gpumon bench {benched}"
    return f"{_answers(disk)}{_against(disk, say_normal=True)}{below}, and {_blocked(evidence, 'disk')} on it"


def _disk_quota(cause: Cause, disk: Disk, evidence: Evidence) -> str:
    if disk.limits:
        unit, value, source = disk.limits[0]
        shown = units.rate(value) if unit == "By/s" else f"{units.number(value)} operations/s"
        why = f"a limit of {shown}, set in {source}"
    else:
        why = "a limit set outside this container, or a file-system lock"
    held = held_above(evidence, disk)
    times = f"{units.number(held)}×" if held is not None and held < 1000 else "far"
    return (
        f"reads of {_place(disk)} are held back above the disk ({why}): {_blocked(evidence, 'disk')} on it, "
        f"{times} as long as it spends reading"
    )


def _disk_contended(cause: Cause, disk: Disk, evidence: Evidence) -> str:
    others = units.percent(disk.not_ours_fraction or 0.0)
    who = "this run's own writes (checkpoints)" if disk.own_writes_fraction >= 0.5 else "others' reads and writes"
    traffic = f"{others} of its traffic is {who}"
    return f"{_answers(disk)}{_against(disk)}, because {traffic}; {_blocked(evidence, 'disk')} on it"


def _disk_saturated(cause: Cause, disk: Disk, evidence: Evidence) -> str:
    queue = f" with {units.number(disk.queue)} requests in flight" if disk.queue else ""
    benched = ""
    if disk.ceiling is not None and (disk.ceiling_fraction or 0.0) >= limit.AT_CEILING:
        benched = f" of {units.rate(disk.ceiling.bytes_per_s)} (gpumon bench)"
    most = f"it gives its most, {units.rate(disk.read_bytes_per_s)}{benched}{queue}"
    return f"{_answers(disk)}{_against(disk)}, because {most}; {_blocked(evidence, 'disk')} on it"


def _normal_disk(cause: Cause, disk: Disk, evidence: Evidence) -> str:
    await_s = units.duration(disk.await_s or 0.0)
    return f"{_place(disk)} answers a read in {await_s}, which is normal, but {_too_few(evidence)}"


def _answers(disk: Disk) -> str:
    return f"{_place(disk)} answers a read in {units.duration(disk.await_s or 0.0)}"


def _place(disk: Disk) -> str:
    if not disk.mount_point:
        return disk.name
    file_system = f" ({disk.file_system})" if disk.file_system else ""
    return f"{disk.name}, the disk under {disk.mount_point}{file_system},"


def _against(disk: Disk, *, say_normal: bool = False) -> str:
    """What its latency is held against: its own when nobody queues, else what its class of disk takes."""
    await_s, baseline = disk.await_s or 0.0, disk.baseline
    if baseline and baseline[0] > 0 and await_s >= 1.3 * baseline[0]:
        what = "quiet baseline" if "quiet" in baseline[1] else "unloaded latency"
        return f", {units.number(await_s / baseline[0])}× its {what} ({units.duration(baseline[0])})"
    if not say_normal:
        return ""
    unloaded = f" ({units.duration(baseline[0])} when nobody queues)" if baseline else ""
    kind = disk.type if disk.type in ("NVMe", "SSD", "HDD") else "SSD"
    return f"{unloaded}, where under {units.duration(disk.floor_s)} is normal for an {kind}"


# -- Other causes -------------------------------------------------------------------------------------


def _memory_pressure(cause: Cause, evidence: Evidence) -> str:
    machine = evidence.machine
    again = units.percent(min(1.0, share(machine.refaulted_bytes, machine.read_bytes)))
    size = f" of {units.size(machine.memory_limit_bytes)}" if machine.memory_limit_bytes else ""
    where = f" from {cause.device}" if cause.device else ""
    return (
        f"the memory limit{size} is reached, and {again} of what is read{where} had been read before and was "
        f"evicted; {_blocked(evidence, 'disk')} on that"
    )


def _network_file_system(cause: Cause, evidence: Evidence) -> str:
    kinds = sorted({item.file_system for item in evidence.fetches.accounts if item.file_system})
    on = f"a network file system ({', '.join(kinds)})" if kinds else "a network file system"
    return f"{_blocked(evidence, 'network_fs')} on {on}"


def _network(cause: Cause, evidence: Evidence) -> str:
    return f"{_blocked(evidence, 'socket')} on the network"


def _loader_cpu(cause: Cause, evidence: Evidence) -> str:
    rest = units.duration(evidence.compute_s_per_step)
    return (
        f"{_spends(evidence, 'cpu')} on the CPU; a batch takes {units.duration(evidence.fetches.mean_s)} to prepare, "
        f"the rest of a step {rest}"
    )


def _cpu_limit(cause: Cause, evidence: Evidence) -> str:
    fetches, machine = evidence.fetches, evidence.machine
    waiting = units.percent(share(fetches.fraction("runnable"), fetches.fraction("cpu", "runnable")))
    if (machine.throttled_fraction or 0.0) >= limit.THROTTLED:
        why = f"the CPU quota holds back {units.percent(machine.throttled_fraction or 0.0)} of its periods"
    elif machine.cpus:
        why = f"{cpus(machine.cpus)} {'is' if machine.cpus == 1 else 'are'} too few for all that runs"
    else:
        why = "there are too few CPUs for all that runs"
    return f"{_spends(evidence, 'cpu')} on the CPU, of that {waiting} waiting for one: {why}"


def _too_few_workers(cause: Cause, evidence: Evidence) -> str:
    return f"{_spends(evidence, 'sleep')} asleep, and {_too_few(evidence)}"


def _handover(cause: Cause, evidence: Evidence) -> str:
    fetches = evidence.fetches
    duty = f", while the workers are busy {units.percent(fetches.duty)} of the time" if fetches.duty is not None else ""
    late = units.percent(fetches.handover_fraction)
    return (
        f"{late} of the waiting is for batches that are ready in their worker{duty}: "
        "unpickling, shared memory, pin memory or the GIL"
    )


def _worker_startup(cause: Cause, evidence: Evidence) -> str:
    steps = evidence.steps
    each = units.duration(share(steps.first_wait_s, steps.first_count))
    epochs = f"{steps.first_count} epoch{'' if steps.first_count == 1 else 's'}"
    return f"{units.percent(steps.first_fraction)} of it for the first batch of an epoch, {each} in each of {epochs}"


def _unknown(cause: Cause, evidence: Evidence) -> str:
    if not evidence.fetches.wall_s:
        return "the cause cannot be told, because no fetch could be followed"
    (first, most), (second, next_most) = leading_groups(evidence.fetches)[:2]
    words = {
        "cpu": "on the CPU",
        "disk": f"blocked on {cause.device or 'a disk'}",
        "network_fs": "blocked on a network file system",
        "socket": "blocked on sockets",
        "sleep": "asleep",
        "other": cause.note or "blocked on locks, pipes or children",
    }
    spent = f"{units.percent(most)} of their time {words[first]}"
    if next_most >= 0.05:
        spent += f" and {units.percent(next_most)} {words[second]}"
    note = f", but {cause.note}" if cause.note and cause.note not in spent else ""
    return f"fetches spend {spent}{note}; the cause cannot be told for sure"


def _blocked(evidence: Evidence, group: str) -> str:
    return f"{_spends(evidence, group)} blocked"


def _spends(evidence: Evidence, group: str) -> str:
    spent = units.percent(evidence.fetches.fraction(*GROUPS[group]))
    workers = evidence.loader.workers
    if workers == 0:
        return f"the training thread spends {spent} of its fetches"
    if workers == 1:
        return f"the worker spends {spent} of its time"
    return f"the {workers or ''} workers spend {spent} of their time".replace("  ", " ")


def _too_few(evidence: Evidence) -> str:
    workers, batch = evidence.loader.workers, units.duration(evidence.fetches.mean_s)
    if workers == 0:
        return f"no worker fetches ahead (num_workers=0) and a batch takes {batch}"
    count = f"{workers} worker{'' if workers == 1 else 's'}" if workers else "the workers"
    rest = units.duration(evidence.compute_s_per_step)
    return f"{count} cannot hide the {batch} of a batch behind the {rest} of the rest of a step"


def cpus(count: float) -> str:
    """2 CPUs, 0.6 CPUs, 1 CPU."""
    return f"{units.number(count) if count % 1 else int(count)} CPU{'' if count == 1 else 's'}"


_OF_DISK: dict[str, Callable[[Cause, Disk, Evidence], str]] = {
    "disk_slow": _disk_slow,
    "disk_quota": _disk_quota,
    "disk_contended": _disk_contended,
    "disk_saturated": _disk_saturated,
    "too_few_workers": _normal_disk,
}
_OF_CAUSE: dict[str, Callable[[Cause, Evidence], str]] = {
    "memory_pressure": _memory_pressure,
    "network_filesystem": _network_file_system,
    "network": _network,
    "loader_cpu": _loader_cpu,
    "cpu_limit": _cpu_limit,
    "too_few_workers": _too_few_workers,
    "handover": _handover,
    "worker_startup": _worker_startup,
}
