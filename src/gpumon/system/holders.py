"""Which Slurm job or Kubernetes container each process of this machine belongs to, by its control group."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Final

_JOB: Final = re.compile(
    rb"[^:\n]*slurm[^\n]*?/(?:job_(?P<number>\d+)|(?P<sluid>s[0-9A-HJKMNP-TV-Z]{13}))(?:/step_(?P<step>[^/\n]+))?"
)
_DEVICES: Final = re.compile(rb"^\d+:(?:[^:\n]*,)?devices(?:,[^:\n]*)?:(?P<group>[^\n]*?/job_\d+)", re.MULTILINE)
_POD: Final = re.compile(
    rb"[-/]pod(?P<uid>[0-9a-f]{8}[-_]?(?:[0-9a-f]{4}[-_]?){3}[0-9a-f]{12})(?:\.slice)?"
    rb"(?:[/:](?P<rest>[^/\n]*))?"
)
_CONTAINER: Final = re.compile(rb"(?:^|[-:])([0-9a-f]{12,64})(?:\.scope)?$")
_MAX_KNOWN: Final = 8192


@dataclass(frozen=True, slots=True)
class Place:
    """What the control groups of a process say; empty where they say nothing."""

    job: str = ""  # Slurm's number, or its SLUID: 26.05 and later name groups so
    step: str = ""  # 0, 1, …, batch, interactive, extern
    devices: str = ""  # the job's group in the hierarchy of devices, cgroup v1 only
    pod: str = ""  # UID
    container: str = ""  # id


@dataclass(slots=True)
class Members:
    """The processes in jobs and containers at one look."""

    jobs: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # job -> step -> pids
    devices: dict[str, str] = field(default_factory=dict)  # job -> its group of devices
    containers: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # (pod's UID, container's id) -> pids
    places: dict[int, Place] = field(default_factory=dict)  # pid -> where it is
    has_slurm: bool = False  # slurmd runs, or a job


class Processes:
    """Looks which process belongs to whom.

    Source: /proc/PID/cgroup, versions 1 and 2; Slurm with and without systemd and SLUIDs; kubelet's drivers
    `systemd` and `cgroupfs` with containerd, CRI-O and cri-dockerd. Readable by every user.
    Cost: 8 µs per process.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._known: dict[bytes, Place | None] = {}  # processes of one container have the same text

    def look(self) -> Members:
        members = Members()
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        try:
            names = os.listdir(self._proc)  # noqa: PTH208
        except OSError:
            return members  # only Linux has it
        for name in names:
            if not name.isdigit():
                continue
            try:
                text = _read(f"{self._proc}/{name}/cgroup")
            except OSError:
                continue  # it has ended
            if text not in self._known:
                self._known[text] = place_of(text)
            if (place := self._known[text]) is not None:
                _add(members, int(name), place)
            elif b"slurmd.service" in text:
                members.has_slurm = True
        return members


def _add(members: Members, pid: int, place: Place) -> None:
    members.places[pid] = place
    if place.job:
        members.has_slurm = True
        members.jobs.setdefault(place.job, {}).setdefault(place.step, []).append(pid)
        if place.devices:
            members.devices[place.job] = place.devices
    if place.pod:
        members.containers.setdefault((place.pod, place.container), []).append(pid)


def place_of(text: bytes) -> Place | None:
    """What /proc/PID/cgroup says; None for a process of neither Slurm nor Kubernetes."""
    job = _JOB.search(text) if b"slurm" in text else None
    pod = _POD.search(text) if b"pod" in text else None
    if job is None and pod is None:
        return None
    told: dict[str, str] = {}
    if job is not None:
        told["job"] = (job["number"] or job["sluid"]).decode()
        told["step"] = (job["step"] or b"").decode(errors="replace")
        if devices := _DEVICES.search(text):
            told["devices"] = os.fsdecode(devices["group"])
    if pod is not None:
        uid = pod["uid"].decode().replace("_", "-")
        told["pod"] = uid
        rest = pod["rest"] or b""
        container = None if b"conmon" in rest else _CONTAINER.search(rest)
        told["container"] = container[1].decode() if container else ""
    return Place(**told)


def _read(file: str) -> bytes:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 16384)
    finally:
        os.close(descriptor)
