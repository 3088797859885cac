"""Where the training reads its data from: paths that were named or found, and files seen in use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from gpumon import metrics as m
from gpumon.collectors.base import register
from gpumon.config import Config
from gpumon.metrics import AttributeValue, Reading
from gpumon.system import processes
from gpumon.system.data_paths import is_data
from gpumon.system.datasets import DATASETS, Datasets
from gpumon.system.processes import WORKERS
from gpumon.system.storage import STORAGE, Storage, StorageMap

_MAX_PROCESSES: Final = 8  # looked at per tick; the next tick goes on with the others
_MAX_FILES: Final = 256  # descriptors per process
_MAPS_AT: Final = (2, 4, 8)  # looks at a process with which its mappings are read too: a thousand lines
_MAPS_EVERY: Final = 16  # and later
_MIN_MAPPED: Final = 1 << 20  # bytes of a mapped file that count as data
_MAX_REMEMBERED: Final = 4096


@register("dataset")
class DatasetCollector:
    """The data sets' places and what they are stored on.

    Source: `data_paths`, data set objects, and /proc/PID/{fd,fdinfo,maps} of the training's processes: files
    open for reading and large mapped files. No file is opened, no file system asked.
    Shape: one reading per place.
    """

    interval_s = 2.0
    may_block = False

    def __init__(
        self,
        config: Config | None = None,
        *,
        proc: str = "/proc",
        root_pid: int | None = None,
        datasets: Datasets = DATASETS,
        storage_map: StorageMap = STORAGE,
    ) -> None:
        config = config or Config()
        self._proc = proc
        self._root_pid = root_pid
        self._datasets = datasets
        self._storage_map = storage_map
        self._excluded = (os.path.realpath(config.run_dir),) if config.run_dir else ()
        self._known: dict[str, bool] = {}  # path -> it needs no second look
        self._held: set[str] = set()  # data files that the trainer held open at the last tick
        self._looks: dict[int, int] = {}
        self._ticks = 0
        for path in config.data_paths:
            datasets.add_path(path)

    def collect(self) -> Iterable[Reading]:
        if not self._datasets.named:
            self._discover()
        for storage in self._datasets.places():
            at: dict[str, AttributeValue] = {m.DATA_PATH: storage.path, m.STORAGE_KIND: storage.kind}
            told = {
                m.SYSTEM_DEVICE: storage.device,
                m.SYSTEM_FILESYSTEM_MOUNTPOINT: storage.mount_point,
                m.SYSTEM_FILESYSTEM_TYPE: storage.file_system,
            }
            at.update({key: value for key, value in told.items() if value})
            yield Reading(m.DATASET_INFO, 1.0, at)

    # -- files in use ---------------------------------------------------------------------------------

    def _discover(self) -> None:
        self._ticks += 1
        root = self._root_pid or os.getpid()
        pids = processes.tree(root, self._proc)
        turn = self._ticks * _MAX_PROCESSES
        chosen = [pids[(turn + index) % len(pids)] for index in range(min(_MAX_PROCESSES, len(pids)))]
        if len(self._known) > _MAX_REMEMBERED:
            self._known.clear()
        held: set[str] = set()
        for pid in chosen:
            for path, storage in self._open_files(pid):
                # The trainer opens many a file once: configurations, weights. Data it holds on to.
                if pid in WORKERS or path in self._held:
                    self._add(path, storage)
                elif pid == root:
                    held.add(path)
            looks = self._looks[pid] = self._looks.get(pid, 0) + 1
            if looks in _MAPS_AT or looks % _MAPS_EVERY == 0:
                for path in self._mapped_files(pid):
                    self._add(path, self._storage_map.of_path(path))
        if root in chosen:
            self._held = held
        if len(self._looks) > 4 * len(pids) + 64:
            self._looks = {pid: looks for pid, looks in self._looks.items() if pid in pids}

    def _add(self, path: str, storage: Storage) -> None:
        self._known[path] = True
        if storage.kind in ("block", "network", "container"):
            self._datasets.add_file(path, storage)

    def _open_files(self, pid: int) -> Iterator[tuple[str, Storage]]:
        """Data files that a process has open for reading only."""
        try:
            numbers = os.listdir(f"{self._proc}/{pid}/fd")[:_MAX_FILES]  # noqa: PTH208
        except OSError:
            return
        for number in numbers:
            try:
                path = os.readlink(f"{self._proc}/{pid}/fd/{number}")  # noqa: PTH115
                if not path.startswith("/") or self._known.get(path):
                    continue
                if not is_data(path, self._excluded):
                    self._known[path] = True
                    continue
                facts = _fdinfo(f"{self._proc}/{pid}/fdinfo/{number}")
            except (OSError, ValueError, KeyError):
                continue
            flags = int(facts["flags"], 8)
            if flags & os.O_ACCMODE == os.O_RDONLY and not flags & (os.O_DIRECTORY | getattr(os, "O_PATH", 0)):
                yield path, self._storage_map.of_mount(int(facts["mnt_id"]), pid)

    def _mapped_files(self, pid: int) -> Iterator[str]:
        """Data files that a process has mapped: large, not written back, without code in them."""
        try:
            lines = Path(f"{self._proc}/{pid}/maps").read_text(errors="surrogateescape").splitlines()
        except OSError:
            return
        sizes: dict[str, int] = {}
        code: set[str] = set()
        for line in lines:
            slash = line.find("/")
            if slash < 0:
                continue
            path = line[slash:]
            if self._known.get(path) or path in code:
                continue
            span, mode = line[:slash].split(None, 2)[:2]
            if "x" in mode or mode in ("rw-s", "-w-s") or not is_data(path, self._excluded):
                code.add(path)
                continue
            begin, _, end = span.partition("-")
            sizes[path] = sizes.get(path, 0) + int(end, 16) - int(begin, 16)
        for path in code:
            self._known[path] = True
        yield from (path for path, size in sizes.items() if size >= _MIN_MAPPED and path not in code)


def _fdinfo(file: str) -> dict[str, str]:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, 4096).decode("ascii", "replace")
    finally:
        os.close(descriptor)
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
