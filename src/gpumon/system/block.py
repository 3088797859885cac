"""Block devices as sysfs describes them: whole disks, what they are made of, what they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NUMBER = re.compile(r"\d+:\d+")
_VIRTUAL_NAME = re.compile(r"(vd[a-z]+|xvd[a-z]+|loop\d+|nbd\d+|rbd\d+|drbd\d+|zd\d+|ublkb\d+)$")
_VIRTUAL_MODEL = re.compile(r"QEMU|Virtual|VMware|VBOX|PersistentDisk|Elastic Block Store|BlockVolume", re.IGNORECASE)
_SLOWEST_FIRST = ("HDD", "SSD", "virtual", "NVMe")
_MAX_DEPTH = 8


@dataclass(frozen=True)
class DiskFacts:
    """What a disk says of itself; empty strings where it says nothing."""

    model: str = ""
    serial_number: str = ""
    type: str = ""  # HDD, SSD, NVMe, virtual


class BlockDevices:
    """Kernel names ("nvme0n1", "dm-0", "loop0") and how they relate.

    Source: /sys/class/block, /sys/dev/block, /run/udev/data under *root*. Needs no privilege.
    """

    def __init__(self, root: str | Path = "/") -> None:
        self._root = Path(root)
        self._class = self._root / "sys/class/block"

    def names(self) -> list[str]:
        """All block devices, partitions included; empty without sysfs."""
        try:
            return sorted(os.listdir(self._class))  # noqa: PTH208
        except OSError:
            return []

    def exists(self, name: str) -> bool:
        return bool(name) and (self._class / name).exists()

    def of_number(self, number: str) -> str | None:
        """The device with this "major:minor", a partition as its whole disk."""
        if not _NUMBER.fullmatch(number):
            return None
        link = self._root / "sys/dev/block" / number
        if link.exists():
            return self.whole(os.path.realpath(link).rpartition("/")[2])
        for name in self.names():
            if _read(self._class / name / "dev") == number:
                return self.whole(name)
        return None

    def whole(self, name: str) -> str:
        """The disk that a partition is on; any other device itself."""
        path = self._class / name
        if (path / "partition").exists():
            return os.path.realpath(path).split("/")[-2]
        return name

    def is_partition(self, name: str) -> bool:
        return (self._class / name / "partition").exists()

    def size_bytes(self, name: str) -> int:
        text = _read(self._class / name / "size")
        return int(text) * 512 if text.isdigit() else 0

    def below(self, name: str) -> list[str]:
        """The devices that dm, md or bcache put this one together from, partitions as whole disks."""
        try:
            slaves = sorted(os.listdir(self._class / name / "slaves"))  # noqa: PTH208
        except OSError:
            return []
        return list(dict.fromkeys(self.whole(slave) for slave in slaves))

    def backing_file(self, name: str) -> str | None:
        """The file behind a loop device, None for other devices."""
        text = _read(self._class / name / "loop/backing_file")
        return text.removesuffix(" (deleted)") or None

    def of_source(self, source: str) -> str | None:
        """The whole device that a mount's source ("/dev/mapper/vg-data") names."""
        if not source.startswith("/"):
            return None
        name = source.rpartition("/")[2]
        if source.startswith("/dev/mapper/"):
            for device in self.names():
                if device.startswith("dm-") and _read(self._class / device / "dm/name") == name:
                    return device
        for candidate in (name, os.path.realpath(f"{self._root}{source}").rpartition("/")[2]):
            if self.exists(candidate):
                return self.whole(candidate)
        return None

    def of_btrfs(self, device: str | None) -> list[str]:
        """All devices of the btrfs file system that *device* is part of, as whole disks."""
        for folder in sorted((self._root / "sys/fs/btrfs").glob("*/devices")):
            members = sorted(os.listdir(folder))  # noqa: PTH208
            disks = list(dict.fromkeys(self.whole(member) for member in members))
            if device in disks:
                return disks
        return [device] if device else []

    def walk(self, name: str) -> Iterator[str]:
        """The device and everything below it, top to bottom; loops end at the loop device."""
        yield from dict.fromkeys(self._walk(name, 0))

    def _walk(self, name: str, depth: int) -> Iterator[str]:
        yield name
        if depth < _MAX_DEPTH:
            for lower in self.below(name):
                yield from self._walk(lower, depth + 1)

    def facts(self, name: str) -> DiskFacts:
        """Model, serial number and type; a dm or md device has the type of the slowest kind of disk below."""
        path = self._class / name
        udev = self._udev(_read(path / "dev"))
        model = _read(path / "device/model") or udev.get("ID_MODEL", "").replace("_", " ")
        serial = _read(path / "serial") or _read(path / "device/serial") or _page80(path / "device/vpd_pg80")
        serial = serial or udev.get("ID_SERIAL_SHORT", "")
        return DiskFacts(model, serial, self._type(name, model))

    def _type(self, name: str, model: str) -> str:
        if lower := self.below(name):
            types = {self.facts(device).type for device in lower if device != name}
            return next((kind for kind in _SLOWEST_FIRST if kind in types), "")
        # Virtual disks say what they like of rotation (virtio: 1 over an SSD).
        if _VIRTUAL_NAME.match(name) or _VIRTUAL_MODEL.search(model):
            return "virtual"
        if name.startswith("nvme"):
            return "NVMe"
        rotational = _read(self._class / name / "queue/rotational")
        return {"1": "HDD", "0": "SSD"}.get(rotational, "")

    def _udev(self, number: str) -> dict[str, str]:
        facts = {}
        for line in _read(self._root / "run/udev/data" / f"b{number}").splitlines():
            if line.startswith("E:"):
                key, _, value = line[2:].partition("=")
                facts[key] = value
        return facts


def _page80(file: Path) -> str:
    """A SCSI disk's serial number: bytes from 4 on of the vital product data page 0x80."""
    try:
        return file.read_bytes()[4:].decode("ascii", "ignore").strip("\0 ")
    except OSError:
        return ""


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
