"""Why NVML does not start: no driver, another one than the library's, a container without its GPUs, no rights."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from gpumon.doctor.check import Repair, Result, failed
from gpumon.doctor.place import Place
from gpumon.doctor.repairs import as_root, gpumon, group_of, install, join_group, manager, on_machine, start_container
from gpumon.system import nvml
from gpumon.system.agent_socket import GROUP

_NO_LIBRARY, _MISMATCH = 12, 18
_MODULE: Final = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+[\d.]+)")
_LIBRARY: Final = re.compile(r"libnvidia-ml\.so\.(\d+\.[\d.]+)$")
_FOLDERS: Final = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
    "/usr/local/nvidia/lib64",
)
_WITH_GPUS: Final = {
    "podman": "--device nvidia.com/gpu=all",
    "kubernetes": "kubectl set resources deployment/NAME --limits=nvidia.com/gpu=1",
    "apptainer": "--nv",
}


def why_not(place: Place, reason: str, code: int) -> Result:
    """The cause behind NVML's answer, as far as the machine's own files tell it."""
    if code == _MISMATCH:
        return _mismatch(place)
    if place.environment.get("SLURM_JOB_ID") and not gpu_files(place):
        return failed(f"{reason}: this Slurm job was given no GPU", "srun --gres=gpu:1 …")
    if place.container and not gpu_files(place) and not place.exists("/dev/dxg"):
        return _not_passed_in(place)
    if code == _NO_LIBRARY:
        return _no_library(place)
    if closed := refused(place):
        return closed
    if not driver_version(place):
        return _no_driver(place)
    if code == nvml.NO_PERMISSION:
        return _not_let_in(place, f"{reason}: the driver {driver_version(place)} runs and does not let this process in")
    if not driver_files(place):
        text = f"{reason}: the driver {driver_version(place)} runs, but /dev/nvidiactl is not there"
        return failed(text, on_machine(place, "nvidia-modprobe -c=0 -u"))
    return failed(
        f"{reason}: the driver {driver_version(place)} is loaded and does not answer", on_machine(place, "reboot")
    )


def has_gpu(place: Place) -> bool:
    """Whether the machine has an NVIDIA GPU, by its PCI bus, its driver or its device files."""
    return bool(place.read("/proc/driver/nvidia/version") or driver_files(place) or _on_bus(place))


def driver_version(place: Place) -> str:
    """Of the kernel module that is loaded; empty where none is."""
    found = _MODULE.search(place.read("/proc/driver/nvidia/version"))
    return found[1] if found else ""


def library_version(place: Place) -> str:
    """Of the NVML library that this process has loaded, or would; empty where its name does not say."""
    file = _library(place)
    found = _LIBRARY.search(str(file)) if file else None
    return found[1] if found else ""


def _library(place: Place) -> Path | None:
    if place.is_real:
        for line in place.read("/proc/self/maps").splitlines():
            if "libnvidia-ml.so" in line:
                return Path(line.split(None, 5)[5])
    for folder in _FOLDERS:
        files = sorted(place.at(folder).glob("libnvidia-ml.so*"), key=lambda file: len(file.name))
        if files:
            return files[-1]  # the one with the version in its name
    return None


def _on_bus(place: Place) -> list[Path]:
    devices = place.at("/sys/bus/pci/devices").glob("*")
    return [path for path in devices if _read(path / "vendor") == "0x10de" and _read(path / "class").startswith("0x03")]


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _not_let_in(place: Place, text: str) -> Result:
    """Its files may be opened: a security module, or a container that has lost a right, is between."""
    if place.container:
        return failed(text, start_container(place, "--gpus all", **_WITH_GPUS))
    if place.uid == 0:
        return failed(text, on_machine(place, "reboot"))
    return failed(f"{text}; the node agent reads for it", as_root(place, f"{gpumon()} agent --group {GROUP}"))


# -- causes ---------------------------------------------------------------------------------------------


def _mismatch(place: Place) -> Result:
    driver, library = driver_version(place), library_version(place)
    versions = f" (driver {driver or '?'}, library {library or '?'})" if driver or library else ""
    if place.container and (file := _library(place)) and not _is_mounted(place, file):
        text = f"the image brings an NVIDIA library of its own, which is not the driver's{versions}"
        return failed(text, as_root(place, f"rm {place.named(file.parent)}/libnvidia-ml.so*"))
    text = f"driver and library differ in version{versions}: updated since the driver was loaded"
    return failed(text, on_machine(place, "reboot"))


def _is_mounted(place: Place, file: Path) -> bool:
    """Whether the container's runtime put the file there, from the host."""
    return f" {place.named(file)} " in place.read("/proc/self/mountinfo")


def _not_passed_in(place: Place) -> Result:
    driver = driver_version(place)
    host = f"the host's driver {driver} is loaded" if driver else "the host has an NVIDIA GPU"
    chosen = place.environment.get("NVIDIA_VISIBLE_DEVICES", "")
    if chosen in ("void", "none"):
        text = f"NVIDIA_VISIBLE_DEVICES={chosen} keeps the GPUs out of this container, while {host}"
        return failed(
            text, start_container(place, "--gpus all -e NVIDIA_VISIBLE_DEVICES=all", podman=_WITH_GPUS["podman"])
        )
    if place.container == "lxc":
        return failed(
            f"this container was started without GPUs, while {host}",
            Repair("lxc config device add NAME gpu gpu", "host"),
        )
    return failed(
        f"this container was started without GPUs (no /dev/nvidia0), while {host}",
        start_container(place, "--gpus all", **_WITH_GPUS),
    )


def _no_library(place: Place) -> Result:
    if (file := _library(place)) is not None:
        inside = place.named(file.parent)
        return failed(
            f"NVML's library is in {inside}, where it is not looked for", as_root(place, f"ldconfig {inside}")
        )
    driver = driver_version(place)
    if place.container:
        text = f"the container has the GPUs' device files, and not NVML's library (driver {driver or '?'})"
        options = "--gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        return failed(text, start_container(place, options, podman=_WITH_GPUS["podman"]))
    if not driver:
        return _no_driver(place)
    branch = driver.partition(".")[0]
    package = "libnvidia-ml1" if place.distribution == "debian" else f"libnvidia-compute-{branch}"
    text = f"NVML's library (libnvidia-ml.so.1) is not installed, while the driver {driver} runs"
    return failed(text, install(place, package, dnf="libnvidia-ml", yum="libnvidia-ml", pacman="nvidia-utils"))


def _no_driver(place: Place) -> Result:
    """The driver is not loaded: because of another one, or because there is none for this kernel, or none at all."""
    bound = {_driver_of(path) for path in _on_bus(place)} - {""}
    if place.container:
        return failed("the NVIDIA driver is not loaded on the host", Repair("sudo modprobe nvidia", "host"))
    if "vfio-pci" in bound:
        return failed(
            "the GPU is held by vfio-pci, for a virtual machine",
            on_machine(place, "modprobe -r vfio-pci && modprobe nvidia"),
        )
    modules = place.at(f"/lib/modules/{place.kernel}")
    if any(modules.rglob("nvidia.ko*")):
        held = ": nouveau holds the GPU" if "nouveau" in bound else ""
        unload = "modprobe -r nouveau && modprobe nvidia" if held else "modprobe nvidia"
        return failed(f"the NVIDIA driver is installed and not loaded{held}", as_root(place, unload))
    if any(place.at("/usr/src").glob("nvidia-*")) and place.which("dkms"):
        text = f"the NVIDIA driver was not built for this kernel ({place.kernel})"
        if manager(place) == "apt-get":
            return failed(
                text,
                as_root(
                    place, f"apt-get install -y linux-headers-{place.kernel} && dkms autoinstall && modprobe nvidia"
                ),
            )
        return failed(
            text, as_root(place, f"dnf install -y kernel-devel-{place.kernel} && dkms autoinstall && modprobe nvidia")
        )
    if place.which("ubuntu-drivers"):
        return failed("the machine has an NVIDIA GPU and no driver for it", as_root(place, "ubuntu-drivers install"))
    repair = install(place, "nvidia-driver", dnf="nvidia-open", yum="nvidia-open", pacman="nvidia-open")
    return failed("the machine has an NVIDIA GPU and no driver for it", repair)


def _driver_of(device: Path) -> str:
    try:
        return os.readlink(device / "driver").rpartition("/")[2]  # noqa: PTH115 - the link's text
    except OSError:
        return ""


# -- device files ----------------------------------------------------------------------------------------


def gpu_files(place: Place) -> list[str]:
    """/dev/nvidia0 and so on: one per GPU."""
    return _named(place, r"nvidia\d+")


def driver_files(place: Place) -> list[str]:
    """What NVML and CUDA open: those of the GPUs, nvidiactl, nvidia-uvm."""
    return _named(place, r"nvidia(\d+|ctl|-uvm)")


def _named(place: Place, pattern: str) -> list[str]:
    names = sorted(path.name for path in place.at("/dev").glob("nvidia*"))
    return [f"/dev/{name}" for name in names if re.fullmatch(pattern, name)]


def refused(place: Place) -> Result | None:
    """A result where files are there that this process may not open."""
    files = driver_files(place)
    if closed := [file for file in files if not os.access(place.at(file), os.R_OK | os.W_OK)]:
        return _not_for_this_user(place, closed)
    for file in files:
        try:
            os.close(os.open(place.at(file), os.O_RDWR | os.O_CLOEXEC))
        except PermissionError:  # by the control group's list of devices, whatever the file's mode says
            return _not_for_this_group(place, file)
        except OSError:
            continue
    return None


def _not_for_this_user(place: Place, closed: list[str]) -> Result:
    status = place.at(closed[0]).stat()
    text = f"{', '.join(closed)}: permission denied to this user"
    is_for_group = status.st_mode & stat.S_IRGRP and status.st_mode & stat.S_IWGRP
    if not (status.st_gid and is_for_group):
        return failed(text, on_machine(place, f"chmod a+rw {' '.join(closed)}"))
    group = group_of(status.st_gid)
    text += f", who is not in group {group}"
    if place.container:
        return failed(text, start_container(place, f"--group-add {status.st_gid}"))
    return failed(text, join_group(place, group))


def _not_for_this_group(place: Place, file: str) -> Result:
    if place.environment.get("SLURM_JOB_ID"):
        return failed(f"{file}: this Slurm job was given no GPU", Repair("srun --gres=gpu:1 …"))
    if not place.container:
        unit = place.read("/proc/self/cgroup").rpartition("/")[2] or "UNIT"
        repair = on_machine(place, f"systemctl set-property {unit} DeviceAllow='{file} rw'")
        return failed(f"{file}: not allowed in this control group ({unit})", repair)
    text = f"{file}: the container has lost its right to it, as after `systemctl daemon-reload` on the host"
    tool = "podman" if place.container == "podman" else "docker"
    return failed(text, Repair(f"{tool} restart {os.uname().nodename}", "host"))
