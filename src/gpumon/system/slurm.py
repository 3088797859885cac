"""Slurm's jobs on this machine: who they are and which GPUs they were given, idle ones too."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gpumon.system.gpu_names import GpuNames, Part
from gpumon.system.storage import parse_mount

_WANTED: Final = frozenset(
    (
        *("SLURM_JOB_ID", "SLURM_JOB_USER", "SLURM_JOB_UID", "SLURM_HET_SIZE"),
        *("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
        *("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES"),
    )
)
_NVIDIA: Final = re.compile(r"^c 195:(\d+) ", re.MULTILINE)
_MAX_MINOR: Final = 253  # 254 and 255 are not GPUs
_NUMBERS: Final = re.compile(r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*")
_BATCH: Final = ("batch", "interactive")
_MAX_NEW: Final = 64  # environments read per job and look; the next look goes on with the others

Environment = Mapping[str, str]


@dataclass(slots=True)
class Job:
    """A job that has processes here."""

    id: str  # as it stands in the job's own SLURM_JOB_ID
    array: str = ""  # "1234_7", the way users name a task of an array
    user: str = ""
    gpus: dict[Part, set[str]] = field(default_factory=dict)  # -> the steps that were given it, "" for the job itself
    is_unclear: bool = False  # it was given GPUs, by numbers that fit none for certain

    def step_of(self, part: Part) -> str:
        """The one step that a GPU was given to; "" where there are several, or where it is the job's."""
        steps = self.gpus.get(part, set()) - {"", "extern"}
        numbered = {step for step in steps if step not in _BATCH}
        chosen = numbered or steps
        return next(iter(chosen)) if len(chosen) == 1 else ""


class SlurmJobs:
    """Tells jobs and their GPUs from what slurmd left in the processes' environments and control groups.

    Source: /proc/PID/environ (of other users: CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH); `devices.list` of the
    job's group (cgroup v1, every user). Nothing asks slurmctld.
    """

    def __init__(self, root: str | Path = "/") -> None:
        self._root = Path(root)
        self._environments: dict[tuple[str, int], Environment] = {}  # of (job, pid): the same as long as it lives
        self._devices_at: Path | None = None
        self.denied = 0
        """Environments that could not be read at the last look."""

    def look(
        self, jobs: Mapping[str, Mapping[str, list[int]]], devices: Mapping[str, str], names: GpuNames
    ) -> dict[str, Job]:
        """The jobs by the name of their group; *jobs* and *devices*: see `holders.Members`."""
        self._read_environments(jobs)
        return {key: self._job(key, steps, devices.get(key, ""), names) for key, steps in jobs.items()}

    def _job(self, key: str, steps: Mapping[str, list[int]], group: str, names: GpuNames) -> Job:
        known = self._known(key, steps)
        job = Job(_id(key, known), _array(known), _user(known))
        allowed = {uuid for minor in self._allowed(group) if (uuid := names.uuid_of_minor(minor))}
        for uuid in allowed:
            if (whole := names.whole(uuid)) is not None:
                job.gpus[whole] = {""}
        untold = False
        for step, environment in known:
            told = names.of_uuids(environment.get("CUDA_VISIBLE_DEVICES", "").split(","))
            for number in _numbers(step, environment):
                numbered = names.of_number(number)
                untold |= numbered is None and bool(names)
                told += [numbered] if numbered is not None else []
            for part in told:
                if not allowed or (part.parent or part.id) in allowed:  # users may write what they like there
                    job.gpus.setdefault(part, set()).add(step)
        job.is_unclear = untold and not job.gpus
        return job

    # -- environments ---------------------------------------------------------------------------------

    def _known(self, key: str, steps: Mapping[str, list[int]]) -> list[tuple[str, Environment]]:
        """(step, environment) of a job's processes, each of what may be thousands of the same once."""
        found: dict[tuple[str, int], tuple[str, Environment]] = {}
        for step, pids in steps.items():
            for pid in pids:
                environment = self._environments.get((key, pid))
                if environment:
                    found.setdefault((step, id(environment)), (step, environment))
        return list(found.values())

    def _read_environments(self, jobs: Mapping[str, Mapping[str, list[int]]]) -> None:
        living = {(key, pid) for key, steps in jobs.items() for pids in steps.values() for pid in pids}
        self._environments = {at: known for at, known in self._environments.items() if at in living}
        same = {tuple(known.items()): known for known in self._environments.values()}
        self.denied = 0
        for key, steps in jobs.items():
            new = [
                (place, pid)  # the first ones of every step first: its tasks, before what these started
                for pids in steps.values()
                for place, pid in enumerate(sorted(pids))
                if (key, pid) not in self._environments
            ]
            for _place, pid in sorted(new)[:_MAX_NEW]:
                try:
                    read = _read(self._root / f"proc/{pid}/environ")
                except PermissionError:
                    self.denied += 1
                except OSError:
                    continue
                else:
                    self._environments[key, pid] = same.setdefault(tuple(read.items()), read)

    # -- control groups, version 1 ----------------------------------------------------------------------

    def _allowed(self, group: str) -> Iterator[int]:
        """Device files of GPUs that the job may open; nothing where it may open all (no ConstrainDevices)."""
        if not group:
            return
        try:
            listed = (self._devices_folder() / group.lstrip("/") / "devices.list").read_text(errors="replace")
        except OSError:
            return
        for minor in map(int, _NVIDIA.findall(listed)):
            if minor <= _MAX_MINOR:
                yield minor

    def _devices_folder(self) -> Path:
        if self._devices_at is None:
            self._devices_at = self._root / "sys/fs/cgroup/devices"
            try:
                lines = (self._root / "proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
            except OSError:
                lines = []
            for mount in map(parse_mount, lines):
                if mount and mount.file_system == "cgroup" and "devices" in mount.options.split(","):
                    self._devices_at = self._root / mount.mount_point.lstrip("/")
        return self._devices_at


def _numbers(step: str, environment: Environment) -> list[int]:
    """Slurm's numbers of GPUs, which hold for the whole machine.

    SLURM_JOB_GPUS is set for batch scripts and interactive steps only; every other step has SLURM_STEP_GPUS, and
    inherits SLURM_JOB_GPUS from the batch script, which may run on another machine. Numbers in
    CUDA_VISIBLE_DEVICES and GPU_DEVICE_ORDINAL begin at 0 in each task under ConstrainDevices: they say nothing here.
    """
    text = environment.get("SLURM_JOB_GPUS" if step in _BATCH else "SLURM_STEP_GPUS", "")
    if step == "extern" or not _NUMBERS.fullmatch(text):
        return []
    found: list[int] = []
    for item in text.split(","):
        first, _, last = item.partition("-")
        found += range(int(first), min(int(last or first), int(first) + 1024) + 1)
    return found


def _id(key: str, known: Iterable[tuple[str, Environment]]) -> str:
    """SLURM_JOB_ID as the job sees it: of a heterogeneous job that is its leader's, in all components."""
    for _step, environment in known:
        job_id = environment.get("SLURM_JOB_ID", "")
        if job_id.isdigit() and (not key.isdigit() or "SLURM_HET_SIZE" in environment):
            return job_id
    return key


def _array(known: Iterable[tuple[str, Environment]]) -> str:
    for _step, environment in known:
        job, task = environment.get("SLURM_ARRAY_JOB_ID", ""), environment.get("SLURM_ARRAY_TASK_ID", "")
        if job.isdigit() and task.isdigit():
            return f"{job}_{task}"
    return ""


def _user(known: Iterable[tuple[str, Environment]]) -> str:
    names = (environment.get("SLURM_JOB_USER") or environment.get("SLURM_JOB_UID") for _step, environment in known)
    return next((name for name in names if name), "")


def _read(file: Path) -> Environment:
    """The wanted variables of a process, as it was started with."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts: list[bytes] = []
        while len(parts) < 64 and (part := os.read(descriptor, 65536)):
            parts.append(part)
    finally:
        os.close(descriptor)
    found: dict[str, str] = {}
    for line in b"".join(parts).split(b"\0"):
        name, _, value = line.partition(b"=")
        if name[:1] in (b"S", b"C") and (key := os.fsdecode(name)) in _WANTED:
            found[key] = value.decode(errors="replace")
    return found
