"""What to change, from which value to which, and why the evidence says that it will help; best first."""

from __future__ import annotations

import math

from gpumon import units
from gpumon.rules import thresholds as limit
from gpumon.rules.causes import Cause
from gpumon.rules.evidence import Disk, Evidence
from gpumon.rules.sentences import cpus as cpus_of

MOST = 3
_MANY_WORKERS = 16


def advise(cause: Cause, evidence: Evidence) -> list[str]:
    """At most three sentences."""
    disk = evidence.disks.get(cause.device or "")
    by_cause = {
        "disk_slow": _slow_disk,
        "disk_saturated": _saturated,
        "disk_contended": _contended,
        "disk_quota": _quota,
        "memory_pressure": _memory,
        "network_filesystem": _network_file_system,
        "network": _network,
        "loader_cpu": _loader_cpu,
        "cpu_limit": _cpu_limit,
        "too_few_workers": _too_few_workers,
        "handover": _handover,
        "worker_startup": _startup,
    }
    advice = by_cause.get(cause.name, _unknown)(evidence, disk)
    return [item for item in advice if item][:MOST]


def startup_advice(evidence: Evidence) -> list[str]:
    """For waits at the start of epochs."""
    return [item for item in _startup(evidence, None) if item][:MOST]


def throughput_needed(evidence: Evidence) -> float | None:
    """Bytes per second that would keep the compute fed: bytes per step ÷ compute time per step."""
    if not evidence.read_bytes_per_step or not evidence.compute_s_per_step:
        return None
    return evidence.read_bytes_per_step / evidence.compute_s_per_step


def _faster_storage(evidence: Evidence, disk: Disk | None) -> str:
    needed = throughput_needed(evidence)
    text = "copy the data set to faster storage"
    if needed is None:
        return text
    per_step = units.size(evidence.read_bytes_per_step)
    text += f": at this compute speed it needs {units.rate(needed)} ({per_step} per step)"
    if disk is not None and disk.read_bytes_per_s:
        text += f", {disk.name} gives {units.rate(disk.read_bytes_per_s)}"
    return text


def _more_workers(evidence: Evidence, why: str) -> str | None:
    """More workers, where the fetches wait rather than compute and CPUs are left for them."""
    now = evidence.loader.workers
    target = workers_needed(evidence)
    if now is None or target is None or target <= now:
        return None
    cpus = evidence.machine.cpus
    allowed = f", {cpus_of(cpus)} allow it" if cpus else ""
    return f"num_workers {now} → {target}: {why}{allowed}"


def workers_needed(evidence: Evidence) -> int | None:
    """Workers that would hide the fetches behind the compute; None where their CPUs are already taken."""
    now = max(evidence.loader.workers or 0, 1)
    fetches, compute = evidence.fetches, evidence.compute_s_per_step
    if not fetches.count or not compute or not evidence.steps.count:
        return None
    needed = math.ceil(fetches.mean_s / compute)
    if evidence.loader.workers == 0:
        needed = max(needed, 2)
    target = min(max(needed, now + 1), max(4 * now, 8), _MANY_WORKERS)
    cpu_share = fetches.fraction("cpu", "runnable")
    if evidence.machine.cpus and cpu_share > 0:
        target = min(target, math.floor(evidence.machine.cpus / cpu_share))
    return target if target > (evidence.loader.workers or 0) else None


def _answers_in_parallel(disk: Disk | None) -> bool:
    """Whether its latency stays as it is with requests queued: a slow disk that more workers still use better."""
    if disk is None or disk.await_s is None or disk.baseline is None:
        return False
    return disk.await_s <= disk.baseline[0] / limit.UNLOADED


def _slow_disk(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    parallel = None
    if _answers_in_parallel(disk):
        queue = f" ({units.number(disk.queue)} requests in flight now)" if disk is not None and disk.queue else ""
        parallel = _more_workers(evidence, f"the disk answers in parallel{queue}")
    return [
        _faster_storage(evidence, disk),
        parallel,
        "pack small files into larger ones (tar shards, WebDataset): fewer reads per batch pay the latency",
    ]


def _saturated(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    return [
        _faster_storage(evidence, disk),
        "read less per step: smaller or compressed files, or a cache in memory for what fits",
        f"more workers will not help: {disk.name if disk else 'the disk'} already gives its most",
    ]


def _contended(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    name = disk.name if disk else "the disk"
    if disk is not None and disk.own_writes_fraction >= 0.5:
        return [
            f"write checkpoints to another disk than {name}, or less often: they compete with the reads",
            _faster_storage(evidence, disk),
        ]
    return [
        f"stop or move what else uses {name}: `sudo iotop -oa` or `pidstat -d 1` names the processes",
        f"or move the data set to a disk of its own{_needs(evidence)}",
    ]


def _quota(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    needed = throughput_needed(evidence)
    to = f" to at least {units.rate(needed)}" if needed else ""
    if disk is not None and disk.limits:
        unit, value, source = disk.limits[0]
        return [f"raise the limit of {_limit_text(unit, value)} in {source}{to}", _needs_elsewhere(evidence)]
    return [
        f"raise the I/O limit of this container or job{to} (io.max of a parent cgroup, docker --device-read-bps, "
        "the pod's or the queue's setting); it is set above what can be read from here",
        _needs_elsewhere(evidence),
    ]


def _memory(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    size = evidence.machine.memory_limit_bytes
    now = f" (now {units.size(size)})" if size else ""
    fewer = None
    if evidence.loader.workers and evidence.loader.workers > 1:
        prefetch = f" (now {evidence.loader.prefetch})" if evidence.loader.prefetch else ""
        fewer = f"fewer workers or a smaller prefetch_factor{prefetch}: their memory is taken from the page cache"
    return [
        f"raise the memory limit of the container or job{now}: data read before is evicted and read again",
        fewer,
        "keep less in memory: memory-map the data set, or smaller shards",
    ]


def _network_file_system(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    return [
        f"copy the data set to a local disk before training{_needs(evidence)}",
        _more_workers(evidence, "latency of a network file system hides behind parallel reads"),
        "pack small files into larger ones (tar shards, WebDataset): each open and read costs a round trip",
    ]


def _network(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    return [
        _more_workers(evidence, "downloads overlap") or "overlap downloads: more workers, or several at a time in each",
        "cache what was downloaded on a local disk: the second epoch then reads from there",
        "fetch from a server or region that is nearer, in larger pieces",
    ]


def _loader_cpu(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    more = _more_workers(evidence, "decoding in parallel")
    cpus = evidence.machine.cpus
    none_left = None
    if more is None and cpus:
        none_left = f"more workers will not help: the {cpus_of(cpus)} usable are taken; give the job more CPUs"
    return [
        more,
        "do less per sample: decode and resize once and store the result, faster decoders "
        "(torchvision.io, Pillow-SIMD), or decode on the GPU (DALI, nvJPEG)",
        none_left,
    ]


def _cpu_limit(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    machine, workers = evidence.machine, evidence.loader.workers
    cpus = machine.cpus
    raised = None
    if (machine.throttled_fraction or 0.0) >= limit.THROTTLED or machine.quota_cpus:
        quota = f" of {units.number(machine.quota_cpus)} CPUs" if machine.quota_cpus else ""
        where = f" ({machine.quota_source})" if machine.quota_source else ""
        raised = f"raise the CPU quota{quota}{where}"
    fewer = None
    if cpus and workers and workers > cpus:
        fewer = f"num_workers {workers} → {max(1, math.floor(cpus))}: more than {cpus_of(cpus)} only take turns"
    return [
        raised or f"give the job more CPUs{f' (now {cpus_of(cpus)})' if cpus else ''}, or stop what else runs on them",
        fewer,
        "one thread per worker: torch.set_num_threads(1) and OMP_NUM_THREADS=1 in the workers",
    ]


def _too_few_workers(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    waits = f"{disk.name} answers quickly" if disk is not None else "fetches wait rather than compute"
    more = _more_workers(evidence, f"{waits}, more of them overlap")
    now = evidence.loader.workers
    if more is None and now is not None:
        more = f"num_workers {now} → {max(2, 2 * now)}: {waits}, more of them overlap"
    prefetch = evidence.loader.prefetch
    deeper = f"prefetch_factor {prefetch} → {2 * prefetch}: evens out slow batches" if prefetch and now else None
    return [more, deeper]


def _handover(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    return [
        "return tensors from the workers instead of lists of Python objects: tensors go through shared memory, "
        "objects are unpickled in the trainer",
        "keep Python threads in the training process off the GIL while it trains (logging, metrics, callbacks)",
        "build the batch in the worker (collate_fn), so that one tensor is handed over",
    ]


def _startup(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    loader = evidence.loader
    keep = None
    if loader.workers and not loader.persistent:
        keep = "persistent_workers=True: workers are started once, not at every epoch"
    return [
        keep,
        "fewer and longer epochs (repeat the data set within one)",
        "import less in the data set's module: each worker that is spawned imports it again, a forked one does not"
        if loader.workers
        else None,
    ]


def _unknown(evidence: Evidence, disk: Disk | None) -> list[str | None]:
    if disk is not None and disk.baseline is None:
        return [
            "name the data with gpumon.instrument(data_paths=…) or GPUMON_DATA_PATHS: the disk's unloaded latency "
            "is then measured before the loader starts, which tells slow from saturated",
            f"`gpumon bench {disk.mount_point or 'PATH'}` measures what the disk can give; the next report holds "
            "the run against it",
        ]
    if not evidence.fetches.wall_s:
        return ["feed the loop from a torch DataLoader: then fetches can be followed"]
    return ["vary one thing: twice the workers, or the data set on another disk; the report then tells them apart"]


def _needs(evidence: Evidence) -> str:
    needed = throughput_needed(evidence)
    return f": it needs {units.rate(needed)} at this compute speed" if needed else ""


def _needs_elsewhere(evidence: Evidence) -> str:
    return f"or read from storage without that limit{_needs(evidence)}"


def _limit_text(unit: str, value: float) -> str:
    return units.rate(value) if unit == "By/s" else f"{units.number(value)} operations/s"
