"""From a path to the storage behind it: which mount, which kind, which devices, down to the disks.

The mount is found in the kernel's mount table, never by asking the file system: a dead network mount
would hang whoever asks.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from gpumon.system.block import BlockDevices

_NETWORK: Final = frozenset(
    (
        *("nfs", "nfs3", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "9p", "virtiofs", "fuse", "fuse3"),
        *(
            "lustre",
            "lustre_lite",
            "ceph",
            "glusterfs",
            "beegfs",
            "beegfs_nodev",
            "gpfs",
            "afs",
            "kafs",
            "coda",
        ),
        *("orangefs", "pvfs2", "wekafs", "panfs", "quobyte", "vboxsf", "prl_fs", "vmhgfs", "davfs", "gfarm"),
    )
)
_MEMORY: Final = frozenset(("tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs"))
_CONTAINER: Final = frozenset(("overlay", "aufs", "unionfs"))
_STACKED: Final = frozenset(("ecryptfs", "shiftfs", "wrapfs", "nullfs"))  # the source is the folder below
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_SCHEME: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_IN_MEMORY: Final = re.compile(r"z?ram\d+$")
_TABLE_AGE_S = 5.0
_MAX_PATHS = 4096
_MAX_LINKS = 40
_MAX_DEPTH = 4  # of loop devices in files on loop devices


@dataclass(frozen=True)
class Storage:
    """Where a path is stored.

    `device` is the kernel's name of the block device that the file system is on: partitions as their whole
    disk, dm, md and loop as they are. `layers` are it and the devices below, top to bottom; `disks` those of
    them that have nothing below. All three are empty where no block device is known.
    """

    path: str
    kind: str  # block, network, memory, container, unknown
    device: str | None = None
    disks: tuple[str, ...] = ()
    mount_point: str = ""
    file_system: str = ""
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mount:
    """One line of /proc/PID/mountinfo."""

    id: int
    parent: int
    number: str  # "major:minor", major 0 where there is no block device
    root: str  # what of the file system is mounted: "/" or the folder of a bind mount
    mount_point: str
    file_system: str
    source: str
    options: str  # of the file system


class StorageMap:
    """Answers which storage is behind a path or a mount. Cached and thread-safe.

    *root* is where proc/ and sys/ are; tests hand in a tree of their own. A new mount of this process is seen
    at once, one of another mount namespace within 5 s.
    """

    def __init__(self, root: str | Path = "/", *, zpool: Callable[[str], Sequence[str]] | None = None) -> None:
        self._root = str(root).rstrip("/")
        self.devices = BlockDevices(root)
        self._zpool = zpool or zpool_devices
        self._lock = threading.RLock()
        self._tables: dict[str, _Table] = {}
        self._namespaces: dict[int, tuple[float, str]] = {}
        self._learned: dict[tuple[int, str, str], Storage] = {}
        self._changes = _MountChanges(f"{self._root}/proc/self/mountinfo")
        if not self._root:
            os.register_at_fork(after_in_child=self._renew_lock)

    def of_path(self, path: str | os.PathLike[str]) -> Storage:
        """The storage of a path of this process; it need not exist. URLs ("s3://…") are network storage."""
        text = os.fsdecode(path)
        if scheme := _SCHEME.match(text):
            if scheme[1] != "file":
                return Storage(text, "network", file_system=scheme[1].lower())
            text = text[len(scheme[0]) :]
        text = os.path.abspath(text)  # noqa: PTH100 - resolves no links
        with self._lock:
            table = self._table("self")
            found = table.paths.get(text)
            if found is None:
                mount = self._mount_of(text, table)
                found = replace(self._of(mount, table), path=text) if mount else Storage(text, "unknown")
                if len(table.paths) >= _MAX_PATHS:
                    table.paths.clear()
                table.paths[text] = found
            return found

    def of_mount(self, mnt_id: int, pid: int | None = None) -> Storage:
        """The storage of a mount by its `mnt_id:` of /proc/PID/fdinfo/FD; `path` is the mount point.

        Never touches the file system that is asked about.
        """
        with self._lock:
            key = "self" if pid is None else self._namespace(pid)
            table = self._table(key)
            mount = table.mounts.get(mnt_id)
            if mount is None:
                table = self._table(key, fresh=True)
                mount = table.mounts.get(mnt_id)
            return self._of(mount, table) if mount else Storage("", "unknown")

    def seen_by(self, pid: int, path: str) -> Storage:
        """The storage of a path as another process sees it, in its mount namespace and below its root.

        Only the kernel's tables are read: links in the path are not followed, no file system of that process is
        touched, whatever it mounted there.

        Raises:
            OSError: there is no such process, or we may not see it.
        """
        path = "/" + os.path.normpath(path).lstrip("/")
        table = _Table("".join(_covering(f"{self._root}/proc/{pid}/mountinfo", path)), self._root)
        # Below a root that is no mount point, the kernel tells only of the mounts further down.
        mount = self._mount_at(path, table) or max(
            reversed(table.mounts.values()), key=lambda mount: len(mount.mount_point), default=None
        )
        if mount is None:
            return Storage(path, "unknown")
        with self._lock:
            # The files below an overlay or a loop device are named as the machine sees them.
            return replace(self._resolve(mount, self._machines(), 0), path=path)

    def learn(self, path: str, storage: Storage) -> None:
        """Take it from somebody who sees more of the machine which storage the mount under *path* is."""
        with self._lock:
            table = self._table("self")
            mount = self._mount_of(os.path.abspath(path), table)  # noqa: PTH100 - resolves no links
            if mount is None:
                return
            self._learned[mount.id, mount.number, mount.mount_point] = replace(
                storage, path=mount.mount_point, mount_point=mount.mount_point, file_system=mount.file_system
            )
            for known in self._tables.values():
                known.storages.clear()
                known.paths.clear()

    # -- mount tables -------------------------------------------------------------------------------

    def _machines(self) -> _Table:
        """The mounts of the machine itself: those of process 1, where we are in a container or a service of our own."""
        own, machines = self._table("self"), self._table("1", files=f"{self._root}/proc/1/root")
        is_ours = not machines.mounts or machines.mounts.keys() & own.mounts.keys()  # no number is given twice
        return own if is_ours else machines

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()
        self._changes = _MountChanges(f"{self._root}/proc/self/mountinfo")

    def _namespace(self, pid: int) -> str:
        """Key of the mount table that a process sees: its own only where it is not ours."""
        at, key = self._namespaces.get(pid, (0.0, ""))
        now = time.monotonic()
        if not key or now - at > _TABLE_AGE_S:
            try:
                same = os.readlink(f"{self._root}/proc/{pid}/ns/mnt") == os.readlink(  # noqa: PTH115
                    f"{self._root}/proc/self/ns/mnt"
                )
            except OSError:
                same = not Path(f"{self._root}/proc/{pid}/mountinfo").exists()
            key = "self" if same else str(pid)
            if len(self._namespaces) > 1024:
                self._namespaces.clear()
            self._namespaces[pid] = (now, key)
        return key

    def _table(self, key: str, *, fresh: bool = False, files: str | None = None) -> _Table:
        table = self._tables.get(key)
        now = time.monotonic()
        changed = key == "self" and self._changes.happened()
        if table is not None and not changed and now - table.read_at < (0.1 if fresh else _TABLE_AGE_S):
            return table
        try:
            text = Path(f"{self._root}/proc/{key}/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            text = ""
        if table is None or table.text != text:
            if len(self._tables) > 64:
                self._tables.clear()
            table = self._tables[key] = _Table(text, self._root if files is None else files)
        table.read_at = now
        return table

    def _mount_of(self, path: str, table: _Table) -> Mount | None:
        """Follow a path down the mounts, and links as long as that touches no network file system."""
        mount = table.root
        if mount is None:
            return None
        at, rest, links = "", [part for part in path.split("/") if part], 0
        while rest:
            part = rest.pop(0)
            if part == "..":
                at = at.rpartition("/")[0]
                mount = self._mount_at(at or "/", table) or mount
                continue
            here = f"{at}/{part}"
            if links < _MAX_LINKS and mount.file_system not in ("autofs",) and _kind(mount) != "network":
                try:
                    target = os.readlink(table.files + here)  # noqa: PTH115
                except OSError:
                    pass
                else:
                    links += 1
                    rest[:0] = [step for step in target.split("/") if step not in ("", ".")]
                    if target.startswith("/"):
                        at, mount = "", table.root or mount
                    continue
            at = here
            mount = table.below(mount, at)
        return mount

    @staticmethod
    def _mount_at(path: str, table: _Table) -> Mount | None:
        """The mount that a path without links is on."""
        mount, at = table.root, ""
        for part in path.split("/"):
            if part and mount is not None:
                at = f"{at}/{part}"
                mount = table.below(mount, at)
        return mount

    # -- from a mount to its devices ------------------------------------------------------------------

    def _of(self, mount: Mount, table: _Table, depth: int = 0) -> Storage:
        found = table.storages.get(mount.id)
        if found is None:
            found = self._learned.get((mount.id, mount.number, mount.mount_point)) or self._resolve(mount, table, depth)
            table.storages[mount.id] = found
        return found

    def _resolve(self, mount: Mount, table: _Table, depth: int) -> Storage:
        storage = Storage(mount.mount_point, _kind(mount), None, (), mount.mount_point, mount.file_system, ())
        if storage.kind == "container":
            return self._container(mount, storage, table, depth)
        if mount.file_system in _STACKED and depth < _MAX_DEPTH:
            lower = self._mount_of(mount.source, table)
            if lower is not None and lower.id != mount.id:
                below = self._of(lower, table, depth + 1)
                return replace(below, path=mount.mount_point, mount_point=mount.mount_point)
        if storage.kind != "block":
            return storage
        if mount.file_system == "btrfs":
            device = self.devices.of_source(mount.source)
            tops = self.devices.of_btrfs(device)
            device = device or (tops[0] if len(tops) == 1 else None)
        elif mount.file_system == "zfs":
            names = (self.devices.of_source(path) for path in self._zpool(mount.source.partition("/")[0]))
            tops = list(dict.fromkeys(name for name in names if name))
            device = tops[0] if len(tops) == 1 else None
        elif mount.file_system == "bcachefs":
            names = (self.devices.of_source(path) for path in mount.source.split(":"))
            tops = [name for name in names if name]
            device = tops[0] if tops else None
        else:
            device = self.devices.of_number(mount.number)
            tops = [device] if device else []
        if device and _IN_MEMORY.match(device):
            return replace(storage, kind="memory")
        layers: list[str] = []
        disks: list[str] = []
        for top in tops:
            self._descend(top, layers, disks, table, depth)
        if device in layers:
            layers.insert(0, layers.pop(layers.index(device)))
        return replace(
            storage,
            device=device,
            layers=tuple(dict.fromkeys(layers)),
            disks=tuple(dict.fromkeys(disks)),
        )

    def _descend(self, name: str, layers: list[str], disks: list[str], table: _Table, depth: int) -> None:
        layers.append(name)
        if depth >= 8:
            return
        if lower := [device for device in self.devices.below(name) if device != name]:
            for device in lower:
                self._descend(device, layers, disks, table, depth + 1)
            return
        backing = self.devices.backing_file(name)
        if backing and depth < _MAX_DEPTH:
            mount = self._mount_of(backing, table)
            storage = self._of(mount, table, depth + 1) if mount else None
            if storage is not None and storage.layers and name not in storage.layers:
                layers.extend(storage.layers)
                disks.extend(storage.disks)
                return
        disks.append(name)

    def _container(self, mount: Mount, storage: Storage, table: _Table, depth: int) -> Storage:
        """An overlay: inside a container its folders are the host's and lead nowhere; on the host they do."""
        folders: list[str] = []
        for option in mount.options.split(","):
            key, _, value = option.partition("=")
            if key in ("upperdir", "lowerdir", "lowerdir+"):
                folders += [_unescape(folder) for folder in value.split(":") if folder.startswith("/")]
        lower: list[Storage] = []
        for folder in folders[:64]:
            below = self._mount_of(folder, table)
            if below is None or below.id == mount.id or depth >= _MAX_DEPTH or _kind(below) == "network":
                return storage
            places = (table.files + folder, self._root + folder)  # the former may be closed to us
            if not any(os.path.isdir(place) for place in places):  # noqa: PTH112
                return storage
            lower.append(self._of(below, table, depth + 1))
        if not lower or lower[0].kind != "block" or {item.device for item in lower} != {lower[0].device}:
            return storage
        return replace(storage, kind="block", device=lower[0].device, disks=lower[0].disks, layers=lower[0].layers)


class _MountChanges:
    """Whether the mount table changed since it was asked last: the kernel flags that on an open mountinfo."""

    def __init__(self, file: str) -> None:
        self._poll: select.poll | None = None
        self._file = None
        try:
            self._file = Path(file).open("rb")  # noqa: SIM115 - kept open
            poll = select.poll()
            poll.register(self._file, select.POLLPRI | select.POLLERR)
            self._poll = poll if file.startswith("/proc/") else None
        except (OSError, AttributeError):
            pass

    def happened(self) -> bool:
        return self._poll is None or bool(self._poll.poll(0))


class _Table:
    """The mounts of one namespace, and what was found out about them."""

    def __init__(self, text: str, files: str) -> None:
        self.text = text
        self.files = files  # where its paths are found: they begin below this folder
        self.read_at = 0.0
        self.mounts = {mount.id: mount for mount in map(parse_mount, text.splitlines()) if mount}
        self.paths: dict[str, Storage] = {}
        self.storages: dict[int, Storage] = {}
        self._children = {(mount.parent, mount.mount_point): mount for mount in self.mounts.values()}
        tops = [mount for mount in self.mounts.values() if mount.mount_point == "/" and mount.parent not in self.mounts]
        tops = tops or [mount for mount in self.mounts.values() if mount.mount_point == "/"]
        self.root = self.below(tops[0], "/") if tops else None

    def below(self, mount: Mount, path: str) -> Mount:
        """The mount that covers *path*, reached from the mount above it."""
        for _stacked in range(64):
            child = self._children.get((mount.id, path))
            if child is None or child is mount:
                break
            mount = child
        return mount


def parse_mount(line: str) -> Mount | None:
    """Parse a line of mountinfo; None for a line that is none."""
    before, separator, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if not separator or len(fields) < 6 or len(rest) < 2:
        return None
    return Mount(
        id=int(fields[0]),
        parent=int(fields[1]),
        number=fields[2],
        root=_unescape(fields[3]),
        mount_point=_unescape(fields[4]),
        file_system=rest[0],
        source=_unescape(rest[1]),
        options=" ".join(rest[2:]),
    )


def _covering(mountinfo: str, path: str) -> Iterator[str]:
    """The lines of the mounts that a path is below of."""
    with open(mountinfo, errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ", 5)
            point = _unescape(fields[4]) if len(fields) == 6 else ""
            if point == "/" or path == point or (point and path.startswith(point + "/")):
                yield line


def _kind(mount: Mount) -> str:
    file_system = mount.file_system
    if file_system in _NETWORK or file_system.startswith("fuse."):
        return "network"
    if file_system in _MEMORY:
        return "memory"
    if file_system in _CONTAINER:
        return "container"
    if file_system in ("btrfs", "zfs", "bcachefs") or not mount.number.startswith("0:"):
        return "block"
    return "unknown"


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def zfs_pools(root: str = "/") -> list[str]:
    """The ZFS pools of which this process sees a file system."""
    try:
        lines = Path(root, "proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    mounts = (mount for mount in map(parse_mount, lines) if mount and mount.file_system == "zfs")
    return list(dict.fromkeys(mount.source.partition("/")[0] for mount in mounts))


def zpool_devices(pool: str) -> list[str]:
    """Paths of a ZFS pool's devices, empty without the zpool command."""
    if not pool or shutil.which("zpool") is None:
        return []
    try:
        done = subprocess.run(
            ["zpool", "list", "-vHPL", pool],
            capture_output=True,
            text=True,
            timeout=5,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    names = (line.split()[0] for line in done.stdout.splitlines() if line.split())
    return [name for name in names if name.startswith("/")]


STORAGE = StorageMap()
"""The storage of this machine, shared by all that ask."""
