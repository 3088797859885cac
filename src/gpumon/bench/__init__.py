"""`gpumon bench`: how fast the storage under a path can be read, without root and without touching the page cache."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Final

from gpumon.bench.cached import cached_reads
from gpumon.bench.files import Place, search
from gpumon.bench.measure import MOST, SECONDS
from gpumon.bench.result import Bench
from gpumon.bench.storage import Settings, is_memory, keep, measure_storage
from gpumon.errors import GpumonError, NoDataError
from gpumon.system.ceilings import Ceilings
from gpumon.system.cgroup import Cgroup
from gpumon.system.storage import StorageMap

MOST_READERS: Final = 8
_READERS_PER_CPU: Final = 2  # a loader's workers wait more than they compute


def bench(
    path: str | os.PathLike[str],
    *,
    parallel: int | None = None,
    seconds: float = SECONDS,
    most: int = MOST,
    progress: Callable[[str], None] = lambda _text: None,
    ceilings: Ceilings | None = None,
) -> Bench:
    """Measure the storage of a file, or of a sample of a folder's files, and keep the result for reports.

    Args:
        parallel: readers of the pattern that is a loader's; default: as many as the usable CPUs suggest.
        seconds: the most that one pattern takes; *most*: the bytes that it reads.
        progress: told what is going on.
        ceilings: where to keep the result.
    Raises:
        GpumonError: there is no such path, it cannot be read, does not answer, or has no file to read.
    """
    if not hasattr(os, "O_DIRECT") or not hasattr(os, "preadv"):
        raise NoDataError("gpumon bench reads past the page cache as Linux does it; this system has no such reads")
    text, storage_map, rng = os.fsdecode(path), StorageMap(), random.Random()
    own = storage_map.of_path(text)
    if "://" in text and own.kind == "network":
        raise GpumonError(f"{text} is no path of this machine: name a file or folder")
    progress(f"looking for files in {text}")
    found = search(text, storage_map, rng)
    places = found.places
    if is_memory(own, storage_map) and all(place.storage.mount_point != own.mount_point for place in places):
        places = [*places, Place(own)]
    if not any(place.files or is_memory(place.storage, storage_map) for place in places):
        raise GpumonError(_nothing(text, places, found.unreadable_folders))
    settings = Settings(parallel or default_readers(), seconds, most)
    measured = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    known = ceilings or Ceilings()
    storages = [
        keep(measure_storage(place, settings, storage_map, rng, progress), known, measured, os.path.abspath(text))  # noqa: PTH100
        for place in places
    ]
    return Bench(text, measured, settings.parallel, cached_reads(), storages, found.is_whole)


def default_readers() -> int:
    """As many as a loader that suits this machine has workers: two per usable CPU, at most eight."""
    return max(2, min(MOST_READERS, round(_READERS_PER_CPU * Cgroup().usable_cpus())))


def _nothing(path: str, places: list[Place], unreadable_folders: int) -> str:
    from gpumon.bench.words import left_out

    reasons = left_out(sum((place.left_out for place in places), start=type(places[0].left_out)()) if places else {})
    folders = f"; {unreadable_folders} folders cannot be read" if unreadable_folders else ""
    return f"{path} holds no file that could be measured{reasons}{folders}"


__all__ = ["Bench", "bench", "default_readers"]
