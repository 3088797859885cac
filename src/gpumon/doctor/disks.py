"""The disks: what is behind the data set, and whether /sys, /proc and the pressure files tell of it."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from gpumon.config import Config
from gpumon.doctor.check import Repair, Result, absent, failed, ok, warning
from gpumon.doctor.place import Place
from gpumon.doctor.repairs import as_root, manager, newer_kernel, on_machine, start_container, user
from gpumon.doctor.runner import at_once
from gpumon.system.block import BlockDevices
from gpumon.system.storage import STORAGE, Storage, StorageMap

_ANSWER_S: Final = 4.0
_RESOURCES: Final = ("io", "cpu", "memory")


def storage_map(place: Place) -> StorageMap:
    return STORAGE if place.is_real else StorageMap(place.root)


# -- the data set ----------------------------------------------------------------------------------------


def data(place: Place) -> Iterator[Result]:
    """What each path is stored on, down to the disks; no network file system is asked anything."""
    paths = place.paths or _configured(place)
    if not paths:
        yield absent("no path given: `gpumon doctor /path/to/dataset` says which disk it is on")
    for path, result in zip(paths, at_once(partial(_data, place), paths, _ANSWER_S, None), strict=True):
        slow = f"{path}: the file system does not answer within {_ANSWER_S:g} s"
        yield result or failed(slow, as_root(place, f"umount -l {shlex.quote(path)}"))


def _configured(place: Place) -> tuple[str, ...]:
    try:
        return Config.load(place.environment).data_paths
    except ValueError:  # another check says so
        return ()


def _data(place: Place, path: str) -> Result:
    if "://" in path and not path.startswith("file://"):
        text = f"{path}: read over the network: no disk of this machine, so none is seen"
        return warning(text, f"{_download(path)} {_LOCAL}")
    storage = storage_map(place).of_path(path)
    quoted = shlex.quote(path)
    if storage.kind == "network":
        text = f"{path}: on {storage.file_system} at {storage.mount_point}: network storage, whose disks are not seen"
        return warning(text, f"cp -a {quoted} {_LOCAL}")
    try:
        place.at(str(Path(path).absolute())).stat()
    except (FileNotFoundError, NotADirectoryError):
        return _not_there(place, path)
    except PermissionError:
        return _closed(place, path)
    except OSError as error:
        return failed(f"{path}: {(error.strerror or str(error)).lower()}", as_root(place, "dmesg --level=err"))
    if not os.access(place.at(str(Path(path).absolute())), os.R_OK):
        return _closed(place, path)
    if storage.kind == "memory":
        return ok(f"{path}: in RAM ({storage.file_system} at {storage.mount_point}): no disk is read")
    if storage.kind == "block" and storage.device:
        return ok(f"{path}: {_chain(place, storage)}")
    if storage.kind == "container":
        text = f"{path}: in the container's image layer, whose disk cannot be seen from inside"
        return warning(text, _passed_in(place, "/path/on/host", path))
    text = f"{path}: on {storage.file_system or 'an unknown file system'}, which names no disk"
    return warning(text, f"cp -a {quoted} {_LOCAL}")


_LOCAL: Final = "/path/on/a/local/disk"


def _download(url: str) -> str:
    tools = {"s3": "aws s3 sync", "gs": "gcloud storage rsync -r"}
    return f"{tools.get(url.partition('://')[0], 'rclone copy')} {shlex.quote(url)}"


def _passed_in(place: Place, outside: str, inside: str) -> Repair:
    """Start the container with a folder of the host's."""
    outside, inside = shlex.quote(outside), shlex.quote(inside)
    volume = f"kubectl set volume deployment/NAME --add --type=hostPath --path={outside} --mount-path={inside}"
    bind = f"--bind {outside}:{inside}"
    return start_container(place, f"-v {outside}:{inside}:ro", kubernetes=volume, apptainer=bind)


def _chain(place: Place, storage: Storage) -> str:
    """ "ext4 at /data on dm-0 over nvme1n1 (NVMe, Samsung SSD 980)"."""
    devices = storage_map(place).devices
    told = []
    for disk in storage.disks or (storage.device or "",):
        facts = devices.facts(disk)
        about = ", ".join(part for part in (facts.type, facts.model) if part)
        told.append(f"{disk} ({about})" if about else disk)
    above = [layer for layer in storage.layers if layer not in storage.disks]
    over = f"{' over '.join(above)} over " if above else ""
    return f"{storage.file_system} at {storage.mount_point} on {over}{', '.join(told)}"


def _closed(place: Place, path: str) -> Result:
    """What this user may not enter or read, the training may not either: the topmost folder that is closed."""
    whole = Path(path).absolute()
    ways = [folder for folder in reversed(whole.parents) if not os.access(place.at(str(folder)), os.X_OK)]
    what = ways[0] if ways else whole
    is_way = bool(ways) and what != whole
    if place.which("setfacl"):
        right = f"-m u:{user()}:x" if is_way else f"-R -m u:{user()}:rX"
        command = f"setfacl {right} {shlex.quote(str(what))}"
    else:
        command = f"chmod {'a+x' if is_way else '-R a+rX'} {shlex.quote(str(what))}"
    at = f" ({what} is closed)" if is_way else ""
    return failed(f"{path}: permission denied to this user{at}", as_root(place, command))


def _not_there(place: Place, path: str) -> Result:
    """A path that does not exist: a file system that was not mounted, or not passed into the container."""
    whole = str(Path(path).absolute())
    if place.container:
        return failed(f"{path}: not there, in this container", _passed_in(place, whole, whole))
    for line in place.read("/etc/fstab").splitlines():
        fields = line.split()
        if len(fields) > 1 and not line.startswith("#") and (whole + "/").startswith(fields[1].rstrip("/") + "/"):
            mounted = {mount.split()[4] for mount in place.read("/proc/self/mountinfo").splitlines()}
            if fields[1] not in mounted:
                return failed(
                    f"{path}: not there; {fields[1]} of /etc/fstab is not mounted", as_root(place, f"mount {fields[1]}")
                )
    nearest = next(folder for folder in Path(whole).parents if place.exists(str(folder)))
    return failed(f"{path}: not there, only {nearest} is", f"gpumon doctor {shlex.quote(str(nearest))}")


# -- what the kernel tells -------------------------------------------------------------------------------


def kernel_files(place: Place) -> Result:
    """/sys/class/block and /proc/diskstats: every figure of a disk comes from there."""
    names = BlockDevices(place.root).names()
    has_statistics = bool(place.read("/proc/diskstats"))
    if names and has_statistics:
        count = len([name for name in names if not re.match(r"(loop|ram|zram)\d", name)])
        return ok(f"/sys and /proc/diskstats tell of {count} block device{'s' if count != 1 else ''}")
    missing = " and ".join(
        what for what, is_there in (("/sys/class/block", names), ("/proc/diskstats", has_statistics)) if not is_there
    )
    text = f"{missing}: nothing to read, so no disk is seen"
    if place.is_gvisor:
        return failed(f"{text} (gVisor hides it)", start_container(place, "--runtime=runc"))
    if place.option("/proc", "subset") == "pid":
        return failed(f"{text} (/proc is mounted with subset=pid)", as_root(place, "mount -t proc proc /proc"))
    if place.container:
        options = "-v /sys:/sys:ro" if not names else "--security-opt systempaths=unconfined"
        return failed(text, start_container(place, options, apptainer="--bind /sys"))
    return failed(text, as_root(place, "mount -t sysfs sysfs /sys" if not names else "mount -t proc proc /proc"))


def pressure(place: Place) -> Result:
    """/proc/pressure: how long tasks stalled for I/O, CPU and memory."""
    problems = {_pressure_problem(place.at(f"/proc/pressure/{name}")) for name in _RESOURCES}
    if not any(problems):
        return ok("/proc/pressure tells of io, cpu and memory")
    if errno.EACCES in problems or errno.EPERM in problems:
        text = "/proc/pressure: permission denied"
        return warning(text, on_machine(place, "chmod a+r /proc/pressure/io /proc/pressure/cpu /proc/pressure/memory"))
    if place.is_gvisor:
        return warning("/proc/pressure: gVisor has none", start_container(place, "--runtime=runc"))
    if "# CONFIG_PSI is not set" in place.read(f"/boot/config-{place.kernel}"):
        return warning(f"/proc/pressure: the kernel {place.kernel} was built without it", newer_kernel(place))
    text = "/proc/pressure: switched off in this kernel, which has to boot with psi=1"
    return warning(text, _boot_with(place, "psi=1"))


def _pressure_problem(file: Path) -> int:
    """The errno of reading it; 0 where it can be read."""
    try:
        with open(file) as opened:
            opened.read(64)
    except OSError as error:  # "operation not supported" where it is switched off
        return error.errno or errno.EIO
    return 0


def _boot_with(place: Place, parameter: str) -> Repair:
    """Add a kernel parameter; it counts from the next boot on."""
    if place.which("grubby") or (place.container and manager(place) in ("dnf", "yum")):
        return on_machine(place, f"grubby --update-kernel=ALL --args={parameter}")
    edit = f"""sed -i 's/^GRUB_CMDLINE_LINUX="/&{parameter} /' /etc/default/grub && update-grub"""
    return on_machine(place, edit)


def physical_disks(place: Place) -> list[str]:
    """The whole disks that are neither virtual nor put together of others."""
    devices = BlockDevices(place.root)
    found = []
    for name in devices.names():
        is_hidden = re.fullmatch(r"nvme\d+c\d+n\d+", name)
        if is_hidden or devices.is_partition(name) or not re.match(r"(sd|hd|nvme|mmcblk)", name):
            continue
        if devices.facts(name).type != "virtual":
            found.append(name)
    return found
