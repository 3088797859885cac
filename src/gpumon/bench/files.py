"""The files to read: a sample of those under a path, by the storage that each lies on."""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from gpumon.bench.aside import Aside
from gpumon.bench.extents import is_sparse, unlike_data
from gpumon.errors import GpumonError
from gpumon.system.storage import Storage, StorageMap

MAX_FILES: Final = 4096
"""Looked into per search: enough that a few seconds of reading meet other files than the last."""
_MAX_NAMES: Final = 50_000
_WALK_S: Final = 2.0
_LOOK_S: Final = 2.0
_PATIENCE_S: Final = 10.0  # of storage that has not answered at all
_LOOKERS: Final = 8
_PSEUDO: Final = frozenset(
    (
        *(
            "proc",
            "sysfs",
            "cgroup",
            "cgroup2",
            "cpuset",
            "devpts",
            "debugfs",
            "tracefs",
            "securityfs",
            "pstore",
            "bpf",
        ),
        *("mqueue", "configfs", "fusectl", "binfmt_misc", "efivarfs", "nsfs", "rpc_pipefs", "selinuxfs", "nfsd"),
    )
)
"""File systems of the kernel's own making: no data set lies there."""
_OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | getattr(os, "O_NOATIME", 0)


@dataclass(frozen=True)
class Sample:
    """A file that can be read."""

    path: str
    size: int


@dataclass
class Place:
    """One storage, the sample of files on it, and how many files were left out, by reason."""

    storage: Storage
    files: list[Sample] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass
class Search:
    """What was seen under a path. `is_whole`: there is nothing more than that."""

    names: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    is_whole: bool = False
    unreadable_folders: int = 0


def search(path: str, storage_map: StorageMap, rng: random.Random) -> Search:
    """Look for files under *path*, for some seconds; a network file system that is dead holds nobody up longer.

    Raises:
        GpumonError: there is no such path, it cannot be read, or does not answer.
    """
    found = Search()
    problems: list[str] = []
    began = time.monotonic()
    walk = Aside([lambda: problems.extend(_walk(path, found, storage_map, rng, began + _WALK_S))])
    is_done = walk.wait(began + _WALK_S + 0.5) or walk.wait(began + _PATIENCE_S, lambda: bool(found.names))
    if not is_done and not found.names:
        raise GpumonError(f"{path} does not answer: no name was read within {_PATIENCE_S:.0f} s")
    if problems:
        raise GpumonError(problems[0])
    names = list(found.names)
    rng.shuffle(names)
    by_device: dict[int, Place] = {}
    todo = iter(names[:MAX_FILES])
    began = time.monotonic()

    def look() -> None:
        for name in todo:
            _look_at(name, by_device, storage_map)
            if time.monotonic() > began + _LOOK_S:
                return

    looking = Aside(look for _ in range(_LOOKERS))
    if not looking.wait(began + _LOOK_S + 0.5):
        looking.wait(began + _PATIENCE_S, lambda: any(place.files for place in list(by_device.values())))
    found.places = _by_storage(list(by_device.values()))
    found.is_whole = found.is_whole and len(names) <= MAX_FILES
    return found


def _walk(path: str, found: Search, storage_map: StorageMap, rng: random.Random, until: float) -> Iterator[str]:
    """Collect names of files, folders in random order; yields why the path itself cannot be read."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError as error:
        yield f"cannot read {path}: {error.strerror}"
        return
    if stat.S_ISREG(mode):
        found.names.append(path)
        found.is_whole = True
        return
    if not stat.S_ISDIR(mode):
        yield f"{path} is neither a file nor a folder: name one on the storage to measure"
        return
    folders, is_cut = [path], False
    is_data: dict[int, bool] = {}  # by file system
    while folders and not is_cut:
        at = rng.randrange(len(folders))
        folders[at], folders[-1] = folders[-1], folders[at]
        folder = folders.pop()
        try:
            number = os.stat(folder).st_dev  # noqa: PTH116
            if number not in is_data:
                is_data[number] = storage_map.of_path(folder).file_system not in _PSEUDO
            if not is_data[number]:
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file():
                        found.names.append(entry.path)
                    if len(found.names) >= _MAX_NAMES or time.monotonic() > until:
                        is_cut = True
                        break
        except OSError as error:
            found.unreadable_folders += 1
            if folder == path:
                yield f"cannot read {path}: {error.strerror}"
    found.is_whole = not is_cut


def _look_at(name: str, by_device: dict[int, Place], storage_map: StorageMap) -> None:
    """File a name with its storage, if reading it says something of that."""
    try:
        info = os.stat(name)  # noqa: PTH116
    except OSError:
        return
    place = by_device.get(info.st_dev)
    if place is None:
        place = by_device.setdefault(info.st_dev, Place(storage_map.of_path(name)))
    if not stat.S_ISREG(info.st_mode):
        return
    if not info.st_size:
        place.left_out["empty"] += 1
    elif place.storage.kind == "memory":
        place.files.append(Sample(name, info.st_size))
    elif is_sparse(info) and not (place.storage.kind == "network" and not info.st_blocks):
        # File systems served by a program often know no blocks at all.
        place.left_out["sparse"] += 1
    else:
        reason = _look_into(name, info.st_size)
        if reason is None:
            place.files.append(Sample(name, info.st_size))
        else:
            place.left_out[reason] += 1


def _look_into(name: str, size: int) -> str | None:
    try:
        descriptor = open_quietly(name, _OPEN)
    except FileNotFoundError:
        return "vanished"
    except OSError:
        return "unreadable"
    try:
        return unlike_data(descriptor, size)
    except OSError:
        return "unreadable"
    finally:
        os.close(descriptor)


def open_quietly(name: str, flags: int) -> int:
    """Open a file without touching its access time where the kernel grants that: to its owner."""
    try:
        return os.open(name, flags)
    except OSError as error:
        plain = flags & ~getattr(os, "O_NOATIME", 0)
        if plain == flags or error.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return os.open(name, plain)


def _by_storage(places: list[Place]) -> list[Place]:
    """One place per device, or per mount where there is no device: subvolumes have numbers of their own."""
    merged: dict[tuple[object, ...], Place] = {}
    for place in places:
        storage = place.storage
        if storage.file_system in _PSEUDO and not place.files:
            continue
        key = (storage.kind, storage.device or storage.disks or storage.mount_point)
        known = merged.setdefault(key, Place(storage))
        known.files += place.files
        known.left_out += place.left_out
    for place in merged.values():
        place.files.sort(key=lambda file: file.path)
    return sorted(merged.values(), key=lambda place: (place.storage.kind == "memory", -place.size))
