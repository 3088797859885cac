"""The sentences: what a person reads first. Numbers carry units, devices have the names that lsblk uses."""

from __future__ import annotations

from gpumon import units
from gpumon.rules import thresholds as limit
from gpumon.rules.causes import GROUPS, Cause, held_above, leading_groups
from gpumon.rules.evidence import Disk, Evidence, share


def waits(evidence: Evidence) -> str:
    """The share of the step that waits, as its own clock would say."""
    return f"{units.percent(evidence.steps.wait_fraction)} of each training step waits for data"


def because(cause: Cause, evidence: Evidence) -> str:
    """What is behind the waits, with the numbers that show it."""
    disk = evidence.disks.get(cause.device or "")
    if cause.name.startswith("disk_") and disk is not None:
        return _disk(cause, disk, evidence)
    fetches, machine = evidence.fetches, evidence.machine
    if cause.name == "memory_pressure":
        share_read = units.percent(min(1.0, share(machine.refaulted_bytes, machine.read_bytes)))
        size = f" of {units.size(machine.memory_limit_bytes)}" if machine.memory_limit_bytes else ""
        where = f" from {cause.device}" if cause.device else ""
        return (
            f"the memory limit{size} is reached, so {share_read} of what is read{where} had been read before "
            f"and was evicted; {_blocked(evidence, *GROUPS['disk'])} on it"
        )
    if cause.name == "network_filesystem":
        kinds = sorted({item.file_system for item in fetches.accounts if item.file_system})
        on = f"the network file system ({', '.join(kinds)})" if kinds else "a network file system"
        return f"{_blocked(evidence, *GROUPS['network_fs'])} on {on}"
    if cause.name == "network":
        return f"{_blocked(evidence, *GROUPS['socket'])} on the network (sockets)"
    if cause.name == "loader_cpu":
        return f"{_spend(evidence, 'cpu', 'runnable')} on the CPU: preparing a batch takes {_mean(evidence)}, {_step(evidence)}"
    if cause.name == "cpu_limit":
        runnable = units.percent(share(fetches.fraction("runnable"), fetches.fraction("cpu", "runnable")))
        throttled = machine.throttled_fraction or 0.0
        why = (
            f"the CPU quota holds them back in {units.percent(throttled)} of its periods"
            if throttled >= limit.THROTTLED
            else f"{_cpus(evidence)}too few for all that runs"
        )
        return f"{_who(evidence)} want to compute but wait for a CPU {runnable} of that time: {why}"
    if cause.name == "too_few_workers":
        if disk is not None and disk.await_s is not None:
            what = f"{disk.name} answers a read in {units.duration(disk.await_s)}, which is normal"
        else:
            what = "fetches sleep"
        return f"{what}, but a batch takes {_mean(evidence)} and {_too_few(evidence)}"
    if cause.name == "handover":
        late = units.percent(fetches.handover_fraction)
        duty = (
            f"; the workers are busy only {units.percent(fetches.duty)} of the time" if fetches.duty is not None else ""
        )
        return (
            f"{late} of the waiting is for batches that are ready in their worker (unpickling, shared memory, "
            f"pin memory, the GIL){duty}"
        )
    if cause.name == "worker_startup":
        steps = evidence.steps
        each = units.duration(share(steps.first_wait_s, steps.first_count))
        return (
            f"{units.percent(steps.first_fraction)} of the waiting is for the first batch of an epoch, {each} each "
            f"({steps.first_count} epochs): workers starting"
        )
    return _unknown(cause, evidence)


def healthy(evidence: Evidence) -> str:
    """Where the time goes when nothing stands out."""
    steps = evidence.steps
    compute = steps.fraction("forward", "backward", "optimizer")
    parts = [f"compute {units.percent(compute)} of the step", f"data wait {units.percent(steps.wait_fraction)}"]
    if evidence.gpu_busy is not None:
        parts.append(f"GPU busy {units.percent(evidence.gpu_busy)}")
    return f"Nothing stands out: {', '.join(parts)}."


def first_batches(evidence: Evidence) -> str:
    steps = evidence.steps
    each = units.duration(share(steps.first_wait_s, steps.first_count))
    epochs = f"{steps.first_count} epoch{'' if steps.first_count == 1 else 's'}"
    of_run = units.percent(min(1.0, share(steps.first_wait_s, evidence.run_s)))
    return (
        f"The first batch of an epoch is waited for {each}: {units.duration(steps.first_wait_s)} in {epochs}, "
        f"{of_run} of the run."
    )


def _disk(cause: Cause, disk: Disk, evidence: Evidence) -> str:
    where = f", the disk under {disk.mount_point}" if disk.mount_point else ""
    where += f" ({disk.file_system})" if disk.file_system else ""
    await_s = disk.await_s or 0.0
    answers = f"{disk.name}{where}, answers a read in {units.duration(await_s)}"
    if not where:
        answers = f"{disk.name} answers a read in {units.duration(await_s)}"
    blocked = f"{_blocked(evidence, *GROUPS['disk'])} on it"
    if cause.name == "disk_quota":
        held = held_above(evidence, disk)
        times = f" {units.number(held)}×" if held and held < 1000 else " far"
        named = ""
        if disk.limits:
            unit, value, source = disk.limits[0]
            shown = units.rate(value) if unit == "By/s" else f"{units.number(value)} operations/s"
            named = f": {shown}, set in {source}"
        else:
            named = ": a limit set outside this container, or a file-system lock"
        return f"reads of {disk.name}{where} are held back above the disk{named}; {_blocked(evidence, *GROUPS['disk'])} on it,{times} as long as the disk works"
    if cause.name == "disk_contended":
        others = units.percent(disk.not_ours_fraction or 0.0)
        who = "this run's own writes (checkpoints)" if disk.own_writes_fraction >= 0.5 else "others"
        return f"{answers}{_against(disk, cause)}, because {others} of its traffic is from {who}; {blocked}"
    if cause.name == "disk_saturated":
        queue = f", {units.number(disk.queue)} requests in flight" if disk.queue else ""
        return f"{answers}{_against(disk, cause)}: it gives its most, {units.rate(disk.read_bytes_per_s)}{queue}; {blocked}"
    return f"{answers}{_against(disk, cause)}, and {blocked}"


def _against(disk: Disk, cause: Cause) -> str:
    """What its latency is held against: its own when nobody queues, else what its class of disk takes."""
    await_s, baseline = disk.await_s or 0.0, disk.baseline
    if baseline and baseline[0] and await_s >= 1.3 * baseline[0]:
        what = "unloaded latency" if baseline[1].startswith("measured") else "quiet baseline"
        return f", {units.number(await_s / baseline[0])}× its {what} ({units.duration(baseline[0])})"
    normal = f"{disk.type if disk.type in limit.LATENCY_FLOOR_S and disk.type != 'virtual' else 'an SSD'} stays below {units.duration(disk.floor_s)}"
    if cause.name == "disk_slow" and baseline:
        return f" and {units.duration(baseline[0])} when nobody queues ({normal})"
    return f" ({normal})" if cause.name == "disk_slow" else ""


def _unknown(cause: Cause, evidence: Evidence) -> str:
    if not evidence.fetches.wall_s:
        return "the cause cannot be told, because no fetch could be followed"
    (first, most), (second, next_most) = leading_groups(evidence.fetches)[:2]
    words = {
        "cpu": "on the CPU",
        "disk": f"blocked on {cause.device or 'a disk'}",
        "network_fs": "blocked on a network file system",
        "socket": "blocked on sockets",
        "sleep": "sleeping",
        "other": cause.note or "blocked on locks, pipes or children",
    }
    text = f"fetches spend {units.percent(most)} of their time {words[first]}"
    if next_most >= 0.05:
        text += f" and {units.percent(next_most)} {words[second]}"
    if cause.note and cause.note not in text:
        text += f"; {cause.note}"
    return f"{text}: the cause cannot be told for sure"


def _blocked(evidence: Evidence, *accounts: str) -> str:
    return f"{_who(evidence)} {_verb(evidence, 'spend')} {units.percent(evidence.fetches.fraction(*accounts))} of {_their(evidence)} blocked"


def _spend(evidence: Evidence, *accounts: str) -> str:
    return f"{_who(evidence)} {_verb(evidence, 'spend')} {units.percent(evidence.fetches.fraction(*accounts))} of {_their(evidence)}"


def _who(evidence: Evidence) -> str:
    workers = evidence.loader.workers
    if workers == 0:
        return "the training thread, which fetches by itself"
    if workers == 1:
        return "the worker"
    return f"the {workers} workers" if workers else "the workers"


def _verb(evidence: Evidence, verb: str) -> str:
    if evidence.loader.workers == 0:
        return f", {verb}s"
    return f"{verb}s" if evidence.loader.workers == 1 else verb


def _their(evidence: Evidence) -> str:
    return (
        {0: "a fetch", 1: "its time"}.get(evidence.loader.workers or -1, "their time")
        if evidence.loader.workers != 0
        else "a fetch"
    )


def _mean(evidence: Evidence) -> str:
    return units.duration(evidence.fetches.mean_s)


def _step(evidence: Evidence) -> str:
    return f"the rest of a step {units.duration(evidence.compute_s_per_step)}"


def _too_few(evidence: Evidence) -> str:
    workers = evidence.loader.workers
    if workers == 0:
        return "no worker fetches ahead (num_workers=0)"
    count = f"{workers} worker{'' if workers == 1 else 's'}" if workers else "the workers"
    return f"{count} cannot hide that behind the {units.duration(evidence.compute_s_per_step)} of the rest of a step"


def _cpus(evidence: Evidence) -> str:
    cpus = evidence.machine.cpus
    if not cpus:
        return "CPUs are "
    return f"{units.number(cpus) if cpus % 1 else int(cpus)} CPU{' is ' if cpus == 1 else 's are '}"
