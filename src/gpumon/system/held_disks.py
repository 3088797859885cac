"""The disks that a job or a container uses: those of its volumes, and those of its open data files."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gpumon.system.data_paths import is_data
from gpumon.system.pods import container_name
from gpumon.system.storage import STORAGE, Mount, Storage, StorageMap, parse_mount

# Where the system keeps its own; a device below one of these is everybody's, so mounting it says nothing.
_SYSTEM: Final = frozenset(
    (
        *("/", "/boot", "/boot/efi", "/etc", "/opt", "/usr", "/var", "/var/lib", "/var/log"),
        *("/var/lib/kubelet", "/var/lib/containerd", "/var/lib/containers", "/var/lib/docker", "/var/lib/rancher"),
    )
)
# Files that the container runtime and the kubelet mount into every container.
_GIVEN: Final = frozenset(("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"))
_LOOKS: Final = 48  # processes looked at per round; the next round goes on with the others
_MAPS: Final = 2  # of these, whose mappings are read too: thousands of lines
_MAX_FILES: Final = 256  # descriptors per process
_MIN_MAPPED: Final = 1 << 20  # bytes of a mapped file that count as data
_REFRESH: Final = 6  # rounds until mounts are read again
_KEPT: Final = 30  # rounds for which a file that is closed again counts, and twice until all processes were seen
_MAX_FOLDERS: Final = 4096


@dataclass(slots=True)
class _View:
    """What processes in one mount namespace see."""

    pid: int  # a process that sees it
    read_at: int  # round
    roots: frozenset[int] = frozenset()  # ids of the mounts of "/"; empty where it is the machine's
    container: str = ""  # name
    volumes: frozenset[str] = frozenset()


@dataclass(slots=True)
class Held:
    """The disks of one holder."""

    files: dict[str, int] = field(default_factory=dict)  # device -> round in which a data file on it was open
    views: dict[str, _View] = field(default_factory=dict)  # by mount namespace
    last: int = 0  # the process that was looked at last

    @property
    def container(self) -> str:
        """The container's name, "" where nothing tells."""
        return next((view.container for view in self.views.values() if view.container), "")

    @property
    def devices(self) -> set[str]:
        """Block devices: what the file systems are on, and all below."""
        return set(self.files).union(*(view.volumes for view in self.views.values()))


class HeldDisks:
    """Looks at a bounded number of processes per round.

    Source: /proc/PID/mountinfo (every user); /proc/PID/{ns/mnt,fd,fdinfo,maps} (of other users: CAP_SYS_PTRACE and
    CAP_DAC_READ_SEARCH). No file is opened, no file system asked.
    """

    def __init__(self, root: str | Path = "/", storage_map: StorageMap | None = None) -> None:
        self._root = str(root).rstrip("/")
        self._storage_map = storage_map or (StorageMap(root) if self._root else STORAGE)
        self._held: dict[Hashable, Held] = {}
        self._round = 0
        self._maps_left = 0
        self._root_of_machine: tuple[str, str] | None = None  # device number and folder of "/"
        self._namespace_of_machine = ""
        self._of_system: frozenset[str] = frozenset()
        self._folders: dict[str, bool] = {}  # folder -> it may hold data

    def look(self, groups: Mapping[Hashable, Sequence[int]]) -> Mapping[Hashable, Held]:
        """The disks of each group of processes; what a group that has ended held is forgotten."""
        self._round += 1
        self._maps_left = _MAPS
        if self._round % _REFRESH == 1:
            self._read_machine()
        self._held = {key: self._held.get(key, Held()) for key in groups}
        keys = list(groups)
        each = max(1, _LOOKS // max(1, len(keys)))
        begin = self._round * _LOOKS % max(1, len(keys)) if len(keys) > _LOOKS else 0
        for key in [*keys[begin:], *keys[:begin]][:_LOOKS]:
            held, pids = self._held[key], sorted(groups[key])
            after = next((place for place, pid in enumerate(pids) if pid > held.last), 0)
            for pid in [*pids[after:], *pids[:after]][:each]:
                self._look_at(pid, held)
                held.last = pid
            rounds = max(1, len(keys) // _LOOKS) * -(-len(pids) // each)
            oldest = self._round - max(_KEPT, 2 * rounds)
            held.files = {device: seen for device, seen in held.files.items() if seen > oldest}
        return self._held

    def _look_at(self, pid: int, held: Held) -> None:
        try:
            namespace = os.readlink(f"{self._root}/proc/{pid}/ns/mnt")  # noqa: PTH115
        except PermissionError:
            namespace = "not told"  # one view for all: that of the process looked at when it is due
        except OSError:
            return
        view = held.views.get(namespace)
        if view is None or self._round - view.read_at >= _REFRESH or not self._lives(view.pid):
            if len(held.views) > 16:
                held.views.clear()
            view = held.views[namespace] = self._view(1 if namespace == self._namespace_of_machine else pid)
        for storage in self._open_files(pid, view):
            held.files.update(dict.fromkeys(storage.layers, self._round))
        if self._maps_left:
            self._maps_left -= 1
            for number in self._mapped_files(pid):
                if device := self._storage_map.devices.of_number(number):
                    held.files.update(dict.fromkeys(self._storage_map.devices.walk(device), self._round))

    def _lives(self, pid: int) -> bool:
        return os.path.exists(f"{self._root}/proc/{pid}")  # noqa: PTH110

    # -- mounts ---------------------------------------------------------------------------------------

    def _read_machine(self) -> None:
        """The machine's own view is that of its first process."""
        mounts = self._mounts(1)
        self._root_of_machine = next(((one.number, one.root) for one in mounts if one.mount_point == "/"), None)
        self._of_system = frozenset(
            layer
            for mount in mounts
            if mount.mount_point in _SYSTEM
            for layer in self._storage_map.of_mount(mount.id, 1).layers
        )
        try:
            self._namespace_of_machine = os.readlink(f"{self._root}/proc/1/ns/mnt")  # noqa: PTH115
        except OSError:
            self._namespace_of_machine = ""

    def _view(self, pid: int) -> _View:
        """A container's volumes: what is mounted on its root. What a volume has below came with the machine's tree."""
        mounts = self._mounts(pid)
        view = _View(pid, self._round, container=container_name(mount.root for mount in mounts))
        tops = [mount for mount in mounts if mount.mount_point == "/"]
        if not tops or (tops[0].number, tops[0].root) == self._root_of_machine:
            return view
        view.roots = frozenset(mount.id for mount in tops)
        excluded = set(self._of_system)
        for mount in mounts:
            if mount.mount_point in _GIVEN:
                excluded.update(self._storage_map.of_mount(mount.id, pid).layers)
        found: set[str] = set()
        for mount in mounts:
            if mount.parent in view.roots and mount.mount_point not in ("/", *_GIVEN):
                storage = self._storage_map.of_mount(mount.id, pid)
                if storage.kind == "block" and storage.device not in excluded:
                    found.update(layer for layer in storage.layers if layer not in excluded)
        view.volumes = frozenset(found)
        return view

    def _mounts(self, pid: int) -> list[Mount]:
        try:
            text = Path(f"{self._root}/proc/{pid}/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return []
        return [mount for mount in map(parse_mount, text.splitlines()) if mount]

    # -- files ----------------------------------------------------------------------------------------

    def _open_files(self, pid: int, view: _View) -> Iterator[Storage]:
        """The storage of data files that a process has open; those of a container's own image are none."""
        try:
            numbers = os.listdir(f"{self._root}/proc/{pid}/fd")[:_MAX_FILES]  # noqa: PTH208
        except OSError:
            return
        for number in numbers:
            try:
                path = os.readlink(f"{self._root}/proc/{pid}/fd/{number}")  # noqa: PTH115
                if not path.startswith("/") or not self._may_be_data(path):
                    continue
                mount, flags = _facts(f"{self._root}/proc/{pid}/fdinfo/{number}")
            except (OSError, ValueError):
                continue
            if mount in view.roots or flags & (os.O_DIRECTORY | getattr(os, "O_PATH", 0)):
                continue
            storage = self._storage_map.of_mount(mount, view.pid)
            if storage.kind == "block":
                yield storage

    def _mapped_files(self, pid: int) -> set[str]:
        """Device numbers of large data files that a process has mapped."""
        found: dict[str, str] = {}  # path -> device number
        code: set[str] = set()
        try:
            text = Path(f"{self._root}/proc/{pid}/maps").read_text(errors="surrogateescape")
        except OSError:
            return set()
        for line in text.splitlines():
            slash = line.find("/")
            if slash < 0:
                continue
            span, mode, _offset, device = line[:slash].split(None, 4)[:4]
            path = line[slash:]
            if "x" in mode or ".so" in path:
                code.add(path)
                continue
            begin, _, end = span.partition("-")
            is_large = int(end, 16) - int(begin, 16) >= _MIN_MAPPED
            if is_large and not device.startswith("00:") and self._may_be_data(path):
                major, _, minor = device.partition(":")
                found[path] = f"{int(major, 16)}:{int(minor, 16)}"
        return {number for path, number in found.items() if path not in code}

    def _may_be_data(self, path: str) -> bool:
        folder = path.rpartition("/")[0]
        known = self._folders.get(folder)
        if known is None:
            if len(self._folders) >= _MAX_FOLDERS:
                self._folders.clear()
            known = self._folders[folder] = is_data(f"{folder}/x") and "/var/log/" not in f"{folder}/"
        return known


def _facts(file: str) -> tuple[int, int]:
    """Mount id and flags of an open file."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, 4096).decode("ascii", "replace")
    finally:
        os.close(descriptor)
    facts = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    return int(facts.get("mnt_id", "")), int(facts.get("flags", "0"), 8)
