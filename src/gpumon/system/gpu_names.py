"""GPUs by the names that schedulers give them: UUIDs, numbers, device files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from gpumon.system import nvml
from gpumon.system.nvml import NvmlError, ProcessMemory
from gpumon.system.visible_gpus import Listed, visible

_UUID: Final = re.compile(r"(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|MIG-GPU-[0-9a-f-]{36}/\d+/\d+")
_DEVICE_FILE: Final = re.compile(r"nvidia(\d+)(?:/gi(\d+))?(?:/vgpu\d+)?")  # Google's device plugin
_CLAIM_DRIVER: Final = "gpu.nvidia.com"
_CLAIMED: Final = re.compile(r"gpu-(\d+)")  # N of /dev/nvidiaN: gpu-0, gpu-0-mig-1g10gb-19-4


class Part(NamedTuple):
    """What is held: a GPU, or an instance of one that is divided (MIG)."""

    id: str  # the UUID, `hw.id`
    parent: str = ""  # of an instance: its GPU


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG instance."""

    uuid: str
    number: int | None = None  # NVML's GPU instance id


@dataclass(frozen=True, slots=True)
class NamedGpu:
    """A GPU with all names that it has on this machine."""

    index: int  # NVML's: the order on the PCI bus
    uuid: str
    minor: int | None = None  # N of /dev/nvidiaN; on some boards not the index
    instances: tuple[Instance, ...] = ()


class GpuNames:
    """Finds the GPU behind a name. Without a list (no driver here) only UUIDs lead somewhere: to themselves."""

    def __init__(self, gpus: Sequence[NamedGpu] = ()) -> None:
        self._gpus = gpus
        self._parts = {gpu.uuid: Part(gpu.uuid) for gpu in gpus}
        self._parts |= {one.uuid: Part(one.uuid, gpu.uuid) for gpu in gpus for one in gpu.instances}
        self._by_minor = {gpu.minor: gpu for gpu in gpus if gpu.minor is not None}
        self._listed = [Listed(gpu.index, gpu.uuid, tuple(one.uuid for one in gpu.instances)) for gpu in gpus]

    def __bool__(self) -> bool:
        return bool(self._gpus)

    def uuid_of_minor(self, minor: int) -> str | None:
        """The GPU of /dev/nvidiaN."""
        gpu = self._by_minor.get(minor)
        return gpu.uuid if gpu else None

    def whole(self, uuid: str) -> Part | None:
        """A GPU that is not divided: whoever may open the file of a divided one holds only a part of it."""
        gpu = next((gpu for gpu in self._gpus if gpu.uuid == uuid and not gpu.instances), None)
        return Part(gpu.uuid) if gpu else None

    def of_number(self, number: int) -> Part | None:
        """The GPU that Slurm numbers so; None where that cannot be told.

        Slurm numbers in the order of the PCI bus (AutoDetect), in that of gres.conf, or by device file (before
        21.08), and with MIG it counts the instances. So a number tells something where all of that is one.
        """
        if any(gpu.instances for gpu in self._gpus):
            return None
        gpu = self._by_minor.get(number)
        return Part(gpu.uuid) if gpu is not None and gpu.index == number else None

    def of_uuids(self, entries: Iterable[str]) -> list[Part]:
        """The GPUs and instances of CUDA_VISIBLE_DEVICES; entries that are no UUIDs say nothing."""
        uuids = [entry.strip() for entry in entries]
        found: list[Part] = []
        for uuid in dict.fromkeys(entry for entry in uuids if entry.startswith(("GPU-", "MIG-"))):
            if not self._gpus and _UUID.fullmatch(uuid):
                found.append(Part(uuid))
            for seen in visible(self._listed, {"CUDA_VISIBLE_DEVICES": uuid}):
                instances = seen.instances
                parts = [Part(seen.gpu.uuid)] if instances is None else [Part(one, seen.gpu.uuid) for one in instances]
                found += parts
        return found

    def of_device_id(self, name: str) -> Part | None:
        """The GPU or instance behind an id that a device plugin of Kubernetes gave to a container.

        `GPU-…`, `MIG-…`, both with the number of a share (`::3`, `-3`); `nvidia0`, `nvidia0/gi7`, `nvidia0/vgpu1`.
        """
        if file := _DEVICE_FILE.fullmatch(name):
            gpu = self._by_minor.get(int(file[1]))
            if gpu is None or file[2] is None:
                return Part(gpu.uuid) if gpu else None
            return next((Part(one.uuid, gpu.uuid) for one in gpu.instances if one.number == int(file[2])), None)
        if uuid := _UUID.match(name):
            return self._parts.get(uuid[0]) or Part(uuid[0])
        return None

    def of_claim(self, driver: str, device: str, cdi_names: Iterable[str] = ()) -> Part | None:
        """The GPU that a resource claim gave to a container: by UUID, else by the name of NVIDIA's driver (`gpu-0`).

        An instance of a divided GPU is told by that name and the GPU: its UUID is not in the claim.
        """
        for name in (*cdi_names, device):
            if uuid := _UUID.search(name):
                return self._parts.get(uuid[0]) or Part(uuid[0])
        named = _CLAIMED.match(device) if driver == _CLAIM_DRIVER else None
        gpu = self._by_minor.get(int(named[1])) if named else None
        if gpu is None:
            return None
        return Part(gpu.uuid) if device == f"gpu-{gpu.minor}" else Part(device, gpu.uuid)


def list_gpus(pynvml: Any) -> list[NamedGpu]:
    """All GPUs that answer.

    Raises:
        NvmlError: NVML does not answer at all.
    """
    return [_gpu(pynvml, index, handle) for index, handle in _handles(pynvml)]


def running(pynvml: Any) -> dict[str, list[int]]:
    """UUID -> processes that compute on that GPU or instance now, as pids of the machine.

    Raises:
        NvmlError: NVML does not answer at all.
    """
    found: dict[str, list[int]] = {}
    for _index, handle in _handles(pynvml):
        for part in [instance for instance, _number in _instances(pynvml, handle)] or [handle]:
            try:
                found[nvml.ask(pynvml.nvmlDeviceGetUUID, part)] = list(ProcessMemory(part)())
            except NvmlError:
                continue
    return found


def _handles(pynvml: Any) -> Iterator[tuple[int, Any]]:
    for index in range(nvml.ask(pynvml.nvmlDeviceGetCount)):
        try:
            yield index, nvml.ask(pynvml.nvmlDeviceGetHandleByIndex, index)
        except NvmlError:
            continue  # lost: the others are there


def _gpu(pynvml: Any, index: int, handle: Any) -> NamedGpu:
    instances = [
        Instance(str(_told(pynvml.nvmlDeviceGetUUID, instance) or ""), number)
        for instance, number in _instances(pynvml, handle)
    ]
    return NamedGpu(
        index,
        str(_told(pynvml.nvmlDeviceGetUUID, handle) or ""),
        _told(pynvml.nvmlDeviceGetMinorNumber, handle),
        tuple(one for one in instances if one.uuid),
    )


def _instances(pynvml: Any, handle: Any) -> Iterator[tuple[Any, int | None]]:
    """(handle, number) of the instances of a divided GPU."""
    mode = _told(pynvml.nvmlDeviceGetMigMode, handle)
    count = _told(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) if mode and mode[0] else 0
    for place in range(count or 0):
        instance = _told(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
        if instance is not None:
            yield instance, _told(pynvml.nvmlDeviceGetGpuInstanceId, instance)


def _told(function: Any, *arguments: Any) -> Any:
    """An answer, None where there is none."""
    try:
        return nvml.ask(function, *arguments)
    except NvmlError:
        return None
