"""What a bench found, as values and as the JSON of `gpumon bench --json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gpumon.bench.measure import Figures
from gpumon.system.block import DiskFacts
from gpumon.system.storage import Storage

SCHEMA: Final = "gpumon.bench/1"


@dataclass(frozen=True)
class Pattern:
    """One way of reading, and what it gave."""

    name: str  # sequential, random
    parallel: int
    figures: Figures
    unit: str = "blocks of 1 MiB"  # what is read in one go
    device_operations: int | None = None  # requests that the device did for it; None: not known
    others_bytes_per_s: float | None = None  # what else was read from the device, or written to it, meanwhile
    cached_fraction: float | None = None  # of what was read: not from the device but from a cache above it

    def as_dict(self) -> dict[str, Any]:
        figures = self.figures
        latency = figures.latency_s
        return {
            "pattern": self.name,
            "parallel": self.parallel,
            "unit": self.unit,
            "bytes_per_s": figures.bytes_per_s,
            "lowest_bytes_per_s": figures.lowest_bytes_per_s,
            "highest_bytes_per_s": figures.highest_bytes_per_s,
            "bytes": figures.size,
            "seconds": figures.seconds,
            "reads": figures.reads,
            "latency_s": None if latency is None else {"p50": latency[0], "p99": latency[1]},
            "device_operations": self.device_operations,
            "others_bytes_per_s": self.others_bytes_per_s,
            "cached_fraction": self.cached_fraction,
            "problems": dict(figures.problems),
        }


@dataclass(frozen=True)
class Measured:
    """One storage: what it is, what was read of it, what it gave."""

    storage: Storage
    facts: DiskFacts = field(default_factory=DiskFacts)
    access: str | None = None  # direct, uncached, buffered; None: nothing was read
    alignment: int | None = None
    files: int = 0
    size: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    patterns: Sequence[Pattern] = ()
    limits: Sequence[tuple[float, str, str]] = ()  # on reading: value, bytes or operations per second, the file
    sentence: str = ""
    notes: Sequence[str] = ()
    stored: str | None = None
    is_failed: bool = False

    @property
    def name(self) -> str:
        storage = self.storage
        return storage.device or ", ".join(storage.disks) or storage.mount_point or storage.path

    def as_dict(self) -> dict[str, Any]:
        storage, facts = self.storage, self.facts
        return {
            "kind": storage.kind,
            "device": storage.device,
            "disks": list(storage.disks),
            "mount_point": storage.mount_point,
            "file_system": storage.file_system,
            "model": facts.model or None,
            "serial_number": facts.serial_number or None,
            "type": facts.type or None,
            "access": self.access,
            "alignment_bytes": self.alignment,
            "files": {"sampled": self.files, "bytes": self.size, "left_out": dict(self.left_out)},
            "patterns": [pattern.as_dict() for pattern in self.patterns],
            "limits": [
                {"value": value, "unit": "By/s" if unit == "bytes" else "{operation}/s", "source": source}
                for value, unit, source in self.limits
            ],
            "sentence": self.sentence,
            "notes": list(self.notes),
            "stored": self.stored,
            "failed": self.is_failed,
        }


@dataclass(frozen=True)
class Bench:
    """What `gpumon bench` says of a path."""

    path: str
    measured: str  # RFC 3339
    parallel: int
    cached_bytes_per_s: float | None
    storages: Sequence[Measured]
    is_whole: bool = True  # every file under the path was a candidate

    @property
    def is_failed(self) -> bool:
        return any(storage.is_failed for storage in self.storages)

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "path": self.path,
            "measured": self.measured,
            "parallel": self.parallel,
            "cached_bytes_per_s": self.cached_bytes_per_s,
            "all_files_seen": self.is_whole,
            "storages": [storage.as_dict() for storage in self.storages],
        }
