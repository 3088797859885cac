"""The machine around the training: CPUs, shared memory, open files, the clock."""

from __future__ import annotations

import ctypes
import json
import os
import resource
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpumon import metrics as m
from gpumon import units
from gpumon.doctor.check import Repair, Result, absent, failed, ok, warning
from gpumon.doctor.otlp_ask import ask
from gpumon.doctor.otlp_target import targets
from gpumon.doctor.place import Place
from gpumon.doctor.repairs import as_root, manager, on_machine, start_container
from gpumon.errors import RunError
from gpumon.system.cgroup import Cgroup

_TAIL_BYTES: Final = 4 << 20  # a long run is not read as a whole
_SHM_BYTES: Final = 1 << 30  # a few batches of a few workers
_SHM_LEAST_BYTES: Final = 256 << 20  # Docker gives 64 MiB
_FILES_LEAST: Final = 512
_FILES_AT_FIRST, _FILES_PER_WORKER = 256, 32  # a worker's pipes, and the tensors of its batches that are on their way
_SKEW_S: Final = 5.0  # the receiver's date has whole seconds, and takes its time
_SKEW_BAD_S: Final = 60.0
_TIME_ERROR: Final = 5  # what adjtimex returns where nothing keeps the clock


# -- CPUs ------------------------------------------------------------------------------------------------


def cpus(place: Place) -> Result:
    """Usable CPUs against the loader's workers in the newest recorded run."""
    group = Cgroup(place.root)
    usable, quota = group.usable_cpus(), group.cpu_quota()
    shown = f"{usable:g} CPU{'s' if usable != 1 else ''} usable"
    if quota and quota.value <= usable:
        shown += f" (quota in {quota.source})"
    elif usable < (os.cpu_count() or 1):
        shown += f" (of {os.cpu_count()}, by affinity)"
    try:
        loader = _loader(place)
    except RunError as error:
        if place.run is not None:
            return failed(str(error), "gpumon run -- python train.py")
        return ok(f"{shown}; no recorded run to hold num_workers against")
    if loader is None:
        return ok(f"{shown}; the newest run's loader had no workers")
    whose = f"num_workers={loader.workers}" + (f" in each of {loader.ranks} ranks" if loader.ranks > 1 else "")
    if loader.workers * loader.ranks <= max(1.0, usable):
        return ok(f"{shown}, {whose}")
    fits = max(1, int(usable / loader.ranks))
    return warning(f"{whose} but {shown}: more workers only take turns", f"num_workers={fits}, or raise the limit")


def _loader(place: Place) -> Loader | None:
    found: Loader | None = place.share("loader", lambda: loader_of(place.run))
    return found


@dataclass(frozen=True)
class Loader:
    """`workers` of each of the `ranks` that ran on one host."""

    workers: int
    ranks: int


def loader_of(run: str | None) -> Loader | None:
    """The loader of a run (a path or a URL), or of the newest one under gpumon-runs/; None where it had no workers.

    Raises:
        gpumon.errors.RunError: there is no such run.
    """
    from gpumon.analysis.load import check, newest_run
    from gpumon.analysis.remote import local

    workers: list[int] = []
    hosts: Counter[str] = Counter()
    with local(newest_run() if run is None else run) as path:
        check(path)
        files = sorted(path.glob("metrics.*.jsonl")) or sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        for file in files:
            if (found := _last(file)) is not None and found[0] > 0:
                workers.append(found[0])
                hosts[found[1]] += 1
    if not workers:
        return None
    return Loader(max(workers), max(hosts.values()))


def _last(file: Path) -> tuple[int, str] | None:
    """(workers, host) of the last export that tells them."""
    with open(file, "rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - _TAIL_BYTES))
        lines = opened.read().splitlines()
    for line in reversed(lines):
        if m.LOADER_WORKERS.name.encode() not in line:
            continue
        try:
            return next(_values(json.loads(line)), None)
        except (ValueError, TypeError, KeyError, AttributeError):  # torn or damaged
            continue
    return None


def _values(line: Any) -> Iterator[tuple[int, str]]:
    for entry in line["resourceMetrics"]:
        attributes = {each["key"]: each["value"] for each in entry["resource"].get("attributes", ())}
        host = attributes.get("host.name", {}).get("stringValue", "")
        for scope in entry["scopeMetrics"]:
            for metric in scope["metrics"]:
                if metric["name"] == m.LOADER_WORKERS.name:
                    for point in metric["gauge"]["dataPoints"]:
                        yield int(float(point.get("asInt", point.get("asDouble", 0)))), host


# -- shared memory and open files --------------------------------------------------------------------------


def shared_memory(place: Place) -> Result:
    """/dev/shm, through which workers hand over their batches."""
    folder = place.at("/dev/shm")
    try:
        status = os.statvfs(folder)
    except OSError as error:
        text = f"/dev/shm: {(error.strerror or str(error)).lower()}: workers cannot hand over their batches"
        return failed(text, _bigger(place, folder))
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    shown = f"/dev/shm has {units.size(size)}, {units.size(free)} free"
    if size < _SHM_LEAST_BYTES:
        return failed(f"{shown}: workers die of a bus error once their batches fill it", _bigger(place, folder))
    if size < _SHM_BYTES:
        return warning(f"{shown}: little for the batches of several workers", _bigger(place, folder))
    if free < size / 20:
        if any(folder.glob("torch_*")):
            return warning(f"{shown}: what workers that were killed left behind fills it", "rm /dev/shm/torch_*")
        return warning(f"{shown}: nearly full", _bigger(place, folder))
    return ok(shown)


def _bigger(place: Place, folder: Path) -> Repair:
    volumes = '"volumes":[{"name":"shm","emptyDir":{"medium":"Memory"}}]'
    mounts = '"containers":[{"name":"CONTAINER","volumeMounts":[{"name":"shm","mountPath":"/dev/shm"}]}]'
    patch = f'kubectl patch deployment NAME -p \'{{"spec":{{"template":{{"spec":{{{volumes},{mounts}}}}}}}}}\''
    if place.container not in ("", "apptainer", "lxc"):
        return start_container(place, "--shm-size=8g", kubernetes=patch)
    if folder.is_mount():
        return on_machine(place, "mount -o remount,size=8G /dev/shm")
    return on_machine(place, "mkdir -p /dev/shm && mount -t tmpfs -o mode=1777,size=8G shm /dev/shm")


def open_files(place: Place) -> Result:
    """`ulimit -n`: a batch on its way from a worker takes a file descriptor per tensor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        loader = _loader(place)
    except RunError:
        loader = None
    needed = _FILES_AT_FIRST + _FILES_PER_WORKER * loader.workers if loader else 0
    if soft == resource.RLIM_INFINITY or soft >= max(_FILES_LEAST, needed):
        return ok(f"ulimit -n is {_count(soft)}")
    for_whom = f" for {loader.workers} workers" if loader and needed > _FILES_LEAST else ""
    text = f"ulimit -n is {soft}: too few{for_whom}, they end with 'Too many open files'"
    wanted = 65536
    if hard == resource.RLIM_INFINITY or hard >= max(_FILES_LEAST, needed, 2 * soft):
        repair = Repair(f"ulimit -n {wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)}")
    elif place.container in ("", "kubernetes", "apptainer"):
        repair = on_machine(place, f"prlimit --nofile={wanted}:{wanted} --pid {os.getppid()}")
    else:
        repair = start_container(place, f"--ulimit nofile={wanted}:{wanted}")
    return (failed if soft < _FILES_LEAST else warning)(text, repair)


def _count(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


# -- the clock -------------------------------------------------------------------------------------------


def clock(place: Place) -> Result:
    """This clock against the OTLP receiver's, else whether anything keeps it."""
    for target in targets(place.environment):
        if target.protocol != "grpc" and (ahead := ask(target).ahead_s) is not None:
            return _against(place, target.shown, ahead)
    kept = _is_kept()
    if kept is None:
        return absent("not told whether anything keeps it")
    if kept:
        return ok("kept by NTP")
    if place.container:
        return absent("no receiver to compare it with; the host keeps it")
    return warning("no NTP keeps it: times of several machines drift apart", _keep(place))


def _against(place: Place, receiver: str, ahead_s: float) -> Result:
    if abs(ahead_s) < _SKEW_S:
        return ok(f"agrees with {receiver}")
    way = "behind" if ahead_s > 0 else "ahead of"
    text = f"{units.duration(abs(ahead_s))} {way} {receiver}: its data is refused or lies at the wrong time"
    return (failed if abs(ahead_s) >= _SKEW_BAD_S else warning)(text, _keep(place))


def _keep(place: Place) -> Repair:
    """Set the clock now and keep it."""
    if place.which("chronyc"):
        return on_machine(place, "chronyc makestep")
    if place.container or place.which("timedatectl"):
        return on_machine(place, "timedatectl set-ntp true")
    package = "chrony"
    install = {"dnf": "dnf install -y", "yum": "yum install -y", "zypper": "zypper install -y", "apk": "apk add"}
    return as_root(place, f"{install.get(manager(place), 'apt-get install -y')} {package}")


def _is_kept() -> bool | None:
    """Whether the kernel's clock is synchronized; None where it does not say (adjtimex, nothing is changed)."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    state = adjtimex(ctypes.create_string_buffer(512))  # struct timex is smaller; modes = 0 only reads
    return None if state < 0 else state != _TIME_ERROR
