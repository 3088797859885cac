"""Where the training's data is: paths that were named, found on data sets, or seen in use."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from gpumon.system.data_paths import paths_of
from gpumon.system.probe import probe
from gpumon.system.storage import STORAGE, Storage, StorageMap

__all__ = ["CHECKPOINTS", "DATASETS", "Datasets", "paths_of", "probe"]

logger = logging.getLogger(__name__)

MAX_PLACES: Final = 32
PROBE_PATIENCE_S: Final = 1.0  # what the start of a loader may be held up by a slow disk


class Datasets:
    """The places that data is read from, and how their disks did at rest. Thread-safe."""

    def __init__(self, storage_map: StorageMap = STORAGE, exists: Callable[[str], bool] = os.path.lexists) -> None:
        self._storage_map, self._exists = storage_map, exists
        self._absent: set[str] = set()  # paths that were named and are not there
        self._lock = threading.Lock()
        self._places: dict[str, Storage] = {}
        self._storages: dict[tuple[str, str | None, str], Storage] = {}
        self._probed: set[str] = set()
        self.named = False
        """True once the user named paths: then nobody needs to guess."""
        self.version = 0
        """Grows with every change."""
        self.unloaded: dict[str, tuple[float, float]] = {}
        """Device -> (seconds of a small direct read at rest, requests of others meanwhile)."""
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def add_path(self, path: str | os.PathLike[str], *, named: bool = True) -> Storage:
        """A file or folder that data is read from; *named* by the user rather than found.

        A name that is wrong would make the disk of the root directory the data's: it is told, and left out.
        """
        storage = self._storage_map.of_path(path)
        # Whether a file exists is not asked of a server, which may be dead.
        if named and storage.kind == "block" and not self._exists(storage.path):
            if storage.path not in self._absent:
                self._absent.add(storage.path)
                logger.warning("gpumon: there is no %s, named as the data's path: it is left out", storage.path)
            return storage
        with self._lock:
            self.named = self.named or named
            self._add(storage)
        return storage

    def add_storage(self, storage: Storage) -> None:
        """A mount that data was seen to come from."""
        with self._lock:
            if self._key(storage) not in self._storages:
                self._add(storage)

    def add_file(self, path: str, storage: Storage) -> None:
        """A data file that is in use: files of one storage are one place, the folder that holds them all."""
        with self._lock:
            folders = [place for place, known in self._places.items() if self._key(known) == self._key(storage)]
            if any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders):
                return
            folder = os.path.dirname(path)  # noqa: PTH120
            for other in folders:
                if self._places[other].path == storage.mount_point:
                    continue
                common = os.path.commonpath((folder, other))
                if len(common) > max(1, len(storage.mount_point)):
                    folder = common
                    del self._places[other]
            self._add(replace(storage, path=folder))

    def _add(self, storage: Storage) -> None:
        if len(self._places) >= MAX_PLACES or self._places.get(storage.path) == storage:
            return
        self._places[storage.path] = storage
        self._storages.setdefault(self._key(storage), storage)
        self.version += 1

    @staticmethod
    def _key(storage: Storage) -> tuple[str, str | None, str]:
        return storage.kind, storage.device, "" if storage.device else storage.mount_point

    def resolve(self) -> None:
        """Look again where the places without a device are: the storage map has learned of them."""
        with self._lock:
            for path, known in list(self._places.items()):
                if known.device is None:
                    self._places[path] = replace(self._storage_map.of_path(known.path), path=known.path)
            self._storages.clear()
            for storage in self._places.values():
                self._storages.setdefault(self._key(storage), storage)
            self.version += 1

    def paths(self) -> list[str]:
        """What is known, oldest first: files, folders, mount points."""
        with self._lock:
            return list(self._places)

    def places(self) -> list[Storage]:
        """One storage per path."""
        with self._lock:
            return list(self._places.values())

    def storages(self) -> list[Storage]:
        """One storage per device, or per mount where there is no device; oldest first."""
        with self._lock:
            return list(self._storages.values())

    def devices(self) -> set[str]:
        """Every block device that data passes: what the file systems are on, and all below."""
        return {layer for storage in self.storages() for layer in storage.layers}

    def discover(self, dataset: Any) -> list[str]:
        """Find the paths that a data set object holds, add them, and measure their disks once, at rest.

        For the moment before a loader starts its workers. Bounded: takes at most about a second.
        """
        found = paths_of(dataset, storage_map=self._storage_map)
        for path in found:
            if os.path.isfile(path):  # noqa: PTH113
                self.add_file(path, self._storage_map.of_path(path))
            else:
                self.add_path(path, named=False)
        self.measure()
        return found

    def measure(self, patience_s: float = PROBE_PATIENCE_S) -> None:
        """Measure the latency at rest of every disk with data that was not measured yet."""
        if sys.platform != "linux":
            return
        todo: dict[str, tuple[Storage, list[str]]] = {}
        for storage in self.places():
            if storage.kind == "block" and storage.device and storage.device not in self._probed:
                todo.setdefault(storage.device, (storage, []))[1].append(storage.path)
        threads = []
        for device, (storage, paths) in todo.items():
            self._probed.add(device)
            threads.append(
                threading.Thread(target=self._probe, args=(storage, paths), name="gpumon-probe", daemon=True)
            )
            threads[-1].start()
        until = time.monotonic() + patience_s
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _probe(self, storage: Storage, paths: Iterable[str]) -> None:
        result = probe(storage, paths)
        if result is not None and storage.device:
            self.unloaded[storage.device] = result

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._places.clear()
            self._storages.clear()
            self._probed.clear()
            self.unloaded.clear()
            self.named = False
            self.version += 1


DATASETS = Datasets()
"""The data sets of this process, known to all collectors."""
CHECKPOINTS = Datasets()
"""Where this process saves to: places that are written, of which the same is to be known."""
