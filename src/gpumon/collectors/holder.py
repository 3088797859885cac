"""Who holds each GPU and uses each disk: Slurm's jobs and Kubernetes' containers."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from gpumon import metrics as m
from gpumon.collectors.base import register
from gpumon.config import Config
from gpumon.errors import CollectorError, NoDataError
from gpumon.metrics import AttributeValue, Reading
from gpumon.system import gpu_names, nvml, pod_resources, pods
from gpumon.system.gpu_names import GpuNames, NamedGpu, Part
from gpumon.system.hangs import Call, Caller, HangsError
from gpumon.system.held_disks import HeldDisks
from gpumon.system.holders import Members, Processes
from gpumon.system.nvml import NvmlError
from gpumon.system.pods import Pod, PodNames
from gpumon.system.slurm import Job, SlurmJobs
from gpumon.system.storage import StorageMap

_HANG_S: Final = 5.0
_LIST_S: Final = 60.0  # between two lists of the GPUs, and until NVML is asked again where there is none

Running = Mapping[str, list[int]]
"""UUID of a GPU or instance -> the processes that compute on it."""


@register("holder")
class HolderCollector:
    """Which job or container holds each device, also while no process uses it.

    Source: the kubelet's PodResources socket; of Slurm's jobs the environments that slurmd gave them and cgroup
        v1's lists of devices; processes that compute (NVML); mounts and open data files.
    Shape: one reading per device and holder; a shared device has several.
    """

    interval_s = 10.0
    may_block = True
    per_node = True

    def __init__(
        self,
        config: Config | None = None,
        *,
        root: str | Path = "/",
        kubelet: str = pod_resources.SOCKET,
        pod_logs: str | Path = "/var/log/pods",
        storage_map: StorageMap | None = None,
        hang_s: float = _HANG_S,
    ) -> None:
        self._kubelet = kubelet
        self._processes = Processes(str(Path(root) / "proc"))
        self._slurm = SlurmJobs(root)
        self._pods = PodNames(pod_logs)
        self._disks = HeldDisks(root, storage_map)
        self._nvml = _Nvml(hang_s)

    @property
    def cpu_ns(self) -> int:
        """CPU time of the thread that asks NVML."""
        return self._nvml.cpu_ns

    def collect(self) -> Iterable[Reading]:
        reasons: list[str] = []
        members = self._processes.look()
        try:
            listed = pod_resources.list_containers(self._kubelet)
        except NoDataError:
            if not members.has_slurm and not members.containers:
                raise NoDataError("neither Slurm nor Kubernetes here") from None
            listed = []
        except CollectorError as error:
            listed, reasons = [], [str(error)]
        try:
            self._nvml.look()
        except CollectorError as error:
            reasons.append(str(error))

        names = self._nvml.names
        jobs = self._slurm.look(members.jobs, members.devices, names)
        disks = self._disks.look(_pids(members))
        self._pods.look()
        containers = {key: self._pods.of_uid(key[0], disks[key].container) for key in members.containers}
        living = {uid for uid, _container in members.containers}
        in_pods = pods.holders(listed, self._pods, living, names)
        _add_running(self._nvml.running, names, members, jobs, containers, in_pods)

        found: dict[tuple[tuple[str, AttributeValue], ...], None] = {}
        for key, job in jobs.items():
            found.update((_on_gpu(part, _of_job(job, job.step_of(part))), None) for part in job.gpus)
            found.update((_on_disk(device, _of_job(job)), None) for device in disks[key].devices)
        for part, holders in in_pods.items():
            found.update((_on_gpu(part, _of_pod(pod)), None) for pod in holders)
        for at, pod in containers.items():
            found.update((_on_disk(device, _of_pod(pod)), None) for device in disks[at].devices)
        yield from (Reading(m.DEVICE_HOLDER_INFO, 1.0, dict(attributes)) for attributes in found)

        if unclear := [job.id for job in jobs.values() if job.is_unclear]:
            ids = ", ".join(unclear[:3]) + (f" and {len(unclear) - 3} more" if len(unclear) > 3 else "")
            reasons.append(f"Slurm: GPU numbers of job {ids} fit no GPU for certain; Flags=env_uuid in gres.conf")
        if self._slurm.denied:
            reasons.append("Slurm: environments of jobs: permission denied (CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH)")
        if reasons:
            raise CollectorError("; ".join(reasons))


class _Nvml:
    """The GPUs by all their names, and who computes on them; empty where there is no driver."""

    def __init__(self, hang_s: float) -> None:
        self.names = GpuNames()
        self.running: Running = {}
        self._hang_s = hang_s
        self._caller = Caller("gpumon-holder-nvml")
        self._call: Call | None = None
        self._gpus: list[NamedGpu] = []
        self._list_at = self._ask_at = 0.0

    @property
    def cpu_ns(self) -> int:
        return self._caller.cpu_ns

    def look(self) -> None:
        """Ask anew; a call that hangs is waited for in the next look, and names stay what they were.

        Raises:
            CollectorError: NVML is there and does not answer.
        """
        self.running = {}
        if self._call is None:
            if time.monotonic() < self._ask_at:
                return
            self._call = self._caller.start(self._ask)
        try:
            self.running = self._call.result(self._hang_s)
        except HangsError:
            raise CollectorError("NVML: no answer: the call hangs") from None
        except NoDataError:  # what the collector of GPUs says already
            self._gpus, self._ask_at = [], time.monotonic() + _LIST_S
        except NvmlError as error:
            self._call = None
            raise CollectorError(f"NVML: {error}") from None
        except CollectorError:
            self._call = None
            raise
        self._call = None
        self.names = GpuNames(self._gpus)

    def _ask(self) -> Running:
        pynvml = nvml.start()
        if time.monotonic() >= self._list_at:
            self._gpus = gpu_names.list_gpus(pynvml)
            self._list_at = time.monotonic() + _LIST_S
        return gpu_names.running(pynvml)


def _pids(members: Members) -> dict[Hashable, list[int]]:
    """A job's name, or a container's UID and id -> its processes."""
    jobs: dict[Hashable, list[int]] = {
        job: [pid for of_step in steps.values() for pid in of_step] for job, steps in members.jobs.items()
    }
    jobs.update(members.containers.items())
    return jobs


def _add_running(
    running: Running,
    names: GpuNames,
    members: Members,
    jobs: Mapping[str, Job],
    containers: Mapping[tuple[str, str], Pod],
    in_pods: dict[Part, list[Pod]],
) -> None:
    """Whoever computes on a GPU holds it, whatever was said: a privileged pod, a job of which little is known."""
    for uuid, pids in running.items():
        part = names.of_device_id(uuid)
        for pid in pids:
            place = members.places.get(pid)
            if place is None or part is None:
                continue
            if place.job:
                jobs[place.job].gpus.setdefault(part, set()).add(place.step)
            if place.pod:
                pod, known = containers[place.pod, place.container], in_pods.setdefault(part, [])
                # Without its name it may be one of those that the kubelet named.
                if not any(one.uid == pod.uid or not (one.uid and pod.name) for one in known):
                    known.append(pod)


def _on_gpu(part: Part, holder: Iterator[tuple[str, str]]) -> tuple[tuple[str, AttributeValue], ...]:
    return ((m.HW_ID, part.id), *([(m.HW_PARENT, part.parent)] if part.parent else []), *holder)


def _on_disk(device: str, holder: Iterator[tuple[str, str]]) -> tuple[tuple[str, AttributeValue], ...]:
    return ((m.SYSTEM_DEVICE, device), *holder)


def _of_job(job: Job, step: str = "") -> Iterator[tuple[str, str]]:
    told = {m.JOB_ID: job.id, m.JOB_ARRAY: job.array, m.JOB_STEP: step, m.JOB_USER: job.user}
    return ((name, value) for name, value in told.items() if value)


def _of_pod(pod: Pod) -> Iterator[tuple[str, str]]:
    told = {
        m.K8S_NAMESPACE_NAME: pod.namespace,
        m.K8S_POD_NAME: pod.name,
        m.K8S_POD_UID: pod.uid,
        m.K8S_CONTAINER_NAME: pod.container,
    }
    return ((name, value) for name, value in told.items() if value)
