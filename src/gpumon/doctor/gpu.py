"""The GPUs: whether NVML starts, which of them this process may use, and whether CUDA finds their device files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from gpumon.doctor.check import Result, absent, failed, ok
from gpumon.doctor.gpu_start import driver_version, has_gpu, library_version, refused, why_not
from gpumon.doctor.place import Place
from gpumon.doctor.repairs import DISTRIBUTION, export, on_machine, pip_install
from gpumon.errors import CollectorError, NoDataError
from gpumon.system import nvml
from gpumon.system.nvml import NvmlError
from gpumon.system.visible_gpus import Listed, visible

_LOST: Final = 15
_RESET: Final = 16


@dataclass(frozen=True)
class Gpus:
    """What NVML lists. `reason`: why it lists nothing."""

    reason: str = ""
    code: int = 0  # NVML's, of the reason
    driver: str = ""
    listed: tuple[Listed, ...] = ()  # numbered as CUDA counts them; the indexes below are NVML's
    capabilities: tuple[tuple[int, int], ...] = ()  # compute capability, of those that tell it
    names: tuple[str, ...] = ()
    undivided: tuple[int, ...] = ()  # indexes of those in MIG mode without an instance
    silent: tuple[tuple[int, int], ...] = ()  # index and NVML's code of those that do not answer
    forbidden: int = 0  # how many more this process may not use: others', as in a Slurm job

    def usable(self, place: Place) -> int:
        """How many of them CUDA_VISIBLE_DEVICES leaves."""
        return len(visible(self.listed, place.environment))


def look(place: Place) -> Gpus:
    """Ask NVML, once for all checks; where that hangs, all of them wait until they are given up."""
    found: Gpus = place.share("gpus", _ask)
    return found


def _ask() -> Gpus:
    try:
        pynvml = nvml.start()
    except (NoDataError, CollectorError) as error:
        return Gpus(reason=str(error), code=_code(pynvml_error=str(error)))
    try:
        count = nvml.ask(pynvml.nvmlDeviceGetCount)
    except NvmlError as error:
        return Gpus(reason=f"NVML: {error}", code=error.code)
    listed: list[Listed] = []
    silent, names, capabilities, undivided, forbidden = [], [], [], [], 0
    for index in range(count):
        try:
            handle = nvml.ask(pynvml.nvmlDeviceGetHandleByIndex, index)
            uuid = nvml.ask(pynvml.nvmlDeviceGetUUID, handle)
        except NvmlError as error:
            if error.code == nvml.NO_PERMISSION:
                forbidden += 1
                continue
            silent.append((index, error.code))
            listed.append(Listed(len(listed), ""))
            continue
        is_divided, instances = _instances(pynvml, handle)
        if is_divided and not instances:
            undivided.append(index)
        listed.append(Listed(len(listed), uuid, instances))
        names.append(_or_none(pynvml.nvmlDeviceGetName, handle))
        capabilities.append(_or_none(pynvml.nvmlDeviceGetCudaComputeCapability, handle))
    if forbidden and not listed:
        return Gpus(reason=f"NVML: {nvml.reason(nvml.NO_PERMISSION)}", code=nvml.NO_PERMISSION)
    return Gpus(
        driver=_or_none(pynvml.nvmlSystemGetDriverVersion) or "",
        listed=tuple(listed),
        capabilities=tuple(tuple(pair) for pair in capabilities if pair),
        names=tuple(name for name in names if name),
        undivided=tuple(undivided),
        silent=tuple(silent),
        forbidden=forbidden,
    )


def _code(pynvml_error: str) -> int:
    """NVML's code of a start that failed, by the reason that was told of it."""
    reason = pynvml_error.removeprefix("NVML: ")
    return next((code for code in range(1, 1000) if nvml.reason(code) == reason), 999)


def _instances(pynvml: Any, handle: Any) -> tuple[bool, tuple[str, ...]]:
    """Whether MIG is on, and the UUIDs of the instances."""
    mode = _or_none(pynvml.nvmlDeviceGetMigMode, handle)
    if not mode or not mode[0]:
        return False, ()
    found = []
    for number in range(_or_none(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = _or_none(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if instance is not None and (uuid := _or_none(pynvml.nvmlDeviceGetUUID, instance)):
            found.append(uuid)
    return True, tuple(found)


def _or_none(function: Any, *arguments: Any) -> Any:
    try:
        return nvml.ask(function, *arguments)
    except NvmlError:
        return None


# -- the check -------------------------------------------------------------------------------------------


def nvml_check(place: Place) -> Iterator[Result]:
    """NVML starts, its library fits the driver, and CUDA finds the GPUs that NVML lists."""
    if foreign := _foreign_pynvml():
        yield foreign
    try:
        gpus = look(place)
    except TimeoutError:
        yield failed("NVML does not answer: the driver hangs", on_machine(place, "reboot"))
        return
    if gpus.reason or not gpus.listed:
        if not has_gpu(place) and gpus.code in (0, 9, 12, 999):
            yield absent("no NVIDIA GPU in this machine")
        else:
            yield why_not(place, gpus.reason or "NVML: no GPU", gpus.code)
        return
    broken = [*_silent(place, gpus), *_empty_mig(place, gpus), *_hidden(place, gpus), *_device_files(place)]
    yield from broken
    if not broken:
        yield ok(_summary(place, gpus))


def _summary(place: Place, gpus: Gpus) -> str:
    count = len(gpus.listed)
    library = library_version(place)
    parts = [f"driver {gpus.driver or driver_version(place)}", f"library {library}" if library else ""]
    parts.append(f"{count} GPU{'s' if count > 1 else ''} visible{_models(gpus.names)}")
    if gpus.forbidden:
        parts.append(f"{gpus.forbidden} more not for this process")
    if instances := sum(len(gpu.instances) for gpu in gpus.listed):
        parts.append(f"{instances} MIG instances")
    if place.environment.get("CUDA_VISIBLE_DEVICES") is not None:
        parts.append(f"{gpus.usable(place)} allowed by CUDA_VISIBLE_DEVICES")
    return ", ".join(part for part in parts if part)


def _models(names: Sequence[str]) -> str:
    models = list(dict.fromkeys(names))
    return f" ({', '.join(models)})" if models else ""


def _foreign_pynvml() -> Result | None:
    """A distribution `pynvml` before 12 brings a module of that name, and one of both is overwritten."""
    try:
        major = int(re.findall(r"\d+", version("pynvml"))[0])
    except (PackageNotFoundError, IndexError):
        major = 12
    if major < 12:
        repair = f"{pip_install('pynvml', '--upgrade')} && {pip_install('nvidia-ml-py', '--force-reinstall')}"
        return failed(f"pynvml {version('pynvml')} overwrites the module of nvidia-ml-py", repair)
    try:
        import pynvml  # noqa: F401
    except ImportError as error:
        repair = pip_install("nvidia-ml-py", "--force-reinstall")
        return failed(f"nvidia-ml-py cannot be imported ({error}); {DISTRIBUTION} needs it", repair)
    return None


def _silent(place: Place, gpus: Gpus) -> Iterator[Result]:
    for index, code in gpus.silent:
        if code == _RESET:
            repair = on_machine(place, f"nvidia-smi --gpu-reset -i {index}")
        else:
            repair = on_machine(place, "reboot")
        gone = " (it fell off the bus)" if code == _LOST else ""
        yield failed(f"GPU {index}: {nvml.reason(code)}{gone}", repair)


def _empty_mig(place: Place, gpus: Gpus) -> Iterator[Result]:
    if gpus.undivided:
        which = ",".join(map(str, gpus.undivided))
        text = f"GPU {which}: MIG is on and there is no instance: CUDA finds no device there"
        yield failed(text, on_machine(place, f"nvidia-smi mig -i {which} -cgi 0 -C"))


def _hidden(place: Place, gpus: Gpus) -> Iterator[Result]:
    """What CUDA_VISIBLE_DEVICES hides although it names it, or hides altogether."""
    value = place.environment.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return
    shown, count = f"CUDA_VISIBLE_DEVICES={value!r}", len(gpus.listed)
    entries = [entry.strip() for entry in value.split(",")]
    if entries == ["NoDevFiles"]:  # Slurm's word
        yield failed(f"{shown}: this Slurm job was given no GPU", "srun --gres=gpu:1 …")
        return
    if entries[0] in ("", "-1"):
        hidden = f"all {count} GPUs are hidden" if count > 1 else "the GPU is hidden"
        yield failed(f"{shown}: {hidden}", "unset CUDA_VISIBLE_DEVICES")
        return
    known = [entry for entry in entries if visible(gpus.listed, {"CUDA_VISIBLE_DEVICES": entry})]
    right = export("CUDA_VISIBLE_DEVICES", ",".join(dict.fromkeys(known or [str(gpu.index) for gpu in gpus.listed])))
    for number, entry in enumerate(entries):
        if entry in entries[:number]:
            yield failed(f"{shown} names {entry!r} twice: CUDA then finds no GPU at all", right)
            return
        if entry not in known:
            there = "there is only GPU 0" if count == 1 else f"there are GPU 0 to {count - 1}"
            yield failed(f"{shown} names {entry!r}, but {there}: CUDA stops reading there", right)
            return


def _device_files(place: Place) -> Iterator[Result]:
    """NVML needs less than CUDA: without nvidia-uvm, or the right to write to a GPU, a training finds none."""
    if not place.exists("/dev/nvidiactl"):
        return  # another way to the driver: WSL, a stand-in
    if not place.exists("/dev/nvidia-uvm"):
        has_tool = place.which("nvidia-modprobe")
        repair = on_machine(place, "nvidia-modprobe -u -c=0" if has_tool else "modprobe nvidia-uvm")
        yield failed("/dev/nvidia-uvm is not there: CUDA cannot start", repair)
    if closed := refused(place):
        yield closed
