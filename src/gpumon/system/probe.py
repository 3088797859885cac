"""How long one small read takes while the disk is at rest: what tells a slow disk from a busy one."""

from __future__ import annotations

import mmap
import os
import random
import statistics
import time
from collections.abc import Iterable, Iterator

from gpumon.system.storage import Storage

_BLOCK = 4096
_READS = 3
_MAX_ENTRIES = 256  # names looked at while searching files in a folder
_MIN_WALL_S = 0.02  # shorter than that, the kernel's milliseconds say nothing about a queue


def probe(storage: Storage, files: Iterable[str], sys: str = "/sys") -> tuple[float, float] | None:
    """Measure (seconds of a 4 KiB direct read, median of 3; requests of others in flight meanwhile).

    *files*: data files, or folders that hold some, on *storage*. Reads at random offsets, past the page cache
    and without disturbing it. None where that is impossible: no block device, no file, no direct reads.
    """
    if storage.kind != "block" or not storage.device or not hasattr(os, "O_DIRECT"):
        return None
    stat = f"{sys}/class/block/{storage.device}/stat"
    chosen = list(_data_files(files))
    if not chosen:
        return None
    took: list[float] = []
    in_flight: list[int] = []
    buffer = mmap.mmap(-1, _BLOCK)  # direct reads want an aligned buffer
    try:
        before, began = _counters(stat), time.monotonic()
        for number in range(_READS):
            in_flight.append(_counters(stat)[0])
            seconds = _read_s(chosen[number % len(chosen)], buffer)
            if seconds is not None:
                took.append(seconds)
        after, wall_s = _counters(stat), time.monotonic() - began
    finally:
        buffer.close()
    if not took:
        return None
    queue = sum(in_flight) / len(in_flight)
    if wall_s >= _MIN_WALL_S and after[1] >= before[1]:
        # Request seconds of all per second, less our own.
        queue = max(0.0, ((after[1] - before[1]) / 1e3 - sum(took)) / wall_s)
    return statistics.median(took), queue


def _read_s(file: str, buffer: mmap.mmap) -> float | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        blocks = max(1, os.fstat(descriptor).st_size // _BLOCK)
        offset = random.randrange(blocks) * _BLOCK
        began = time.perf_counter()
        read = os.preadv(descriptor, [buffer], offset)
        return time.perf_counter() - began if read else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _counters(stat: str) -> tuple[int, int]:
    """(requests in flight, ms of all requests) of a device."""
    try:
        with open(stat) as file:
            fields = file.read().split()
        return int(fields[8]), int(fields[10])
    except (OSError, ValueError, IndexError):
        return 0, 0


def _data_files(paths: Iterable[str]) -> Iterator[str]:
    """Up to three files that really lie on the disk: not empty, not sparse."""
    found = 0
    for path in _files(paths):
        try:
            info = os.stat(path)  # noqa: PTH116
        except OSError:
            continue
        if info.st_size and info.st_blocks * 512 >= 0.9 * min(info.st_size, 1 << 40):
            yield path
            found += 1
            if found == _READS:
                return


def _files(paths: Iterable[str]) -> Iterator[str]:
    budget, paths = _MAX_ENTRIES, list(paths)
    for path in paths:
        if os.path.isfile(path):  # noqa: PTH113
            yield path
    folders = [path for path in paths if os.path.isdir(path)]  # noqa: PTH112
    while folders and budget > 0:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    budget -= 1
                    if entry.is_file(follow_symlinks=True):
                        yield entry.path
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    if budget <= 0:
                        break
        except OSError:
            continue
