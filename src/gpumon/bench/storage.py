"""Measures one storage: every pattern in turn, with what its device did meanwhile."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

from gpumon.bench import words
from gpumon.bench.access import BLOCK, find_access, room_bytes
from gpumon.bench.files import Place
from gpumon.bench.measure import MOST, SECONDS, Figures, measure
from gpumon.bench.plan import WHOLE, Piece, sequential, whole_files
from gpumon.bench.result import Measured, Pattern
from gpumon.system.block import DiskFacts
from gpumon.system.ceilings import Ceiling, Ceilings
from gpumon.system.cgroup import Cgroup
from gpumon.system.page_cache import cached_bytes
from gpumon.system.storage import Storage, StorageMap

SEQUENTIAL_PARALLEL: Final = 8
OTHERS: Final = 0.2
"""Of its traffic: with more of others', a figure is what they left over, and not kept."""
CACHED: Final = 0.1
"""Of what was read: with more from a cache above the device, a figure is not the device's, and not kept."""
_LEAST_ROOM: Final = 64 << 20
_SECTOR: Final = 512

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    parallel: int
    seconds: float = SECONDS
    most: int = MOST


def measure_storage(
    place: Place,
    settings: Settings,
    storage_map: StorageMap,
    rng: random.Random,
    progress: Progress = lambda _text: None,
) -> Measured:
    """Read the files of one storage by every pattern; where that is impossible or says nothing, why."""
    storage, devices = place.storage, storage_map.devices
    facts = devices.facts(storage.device) if storage.device else DiskFacts()
    found = Measured(storage, facts, files=len(place.files), size=place.size, left_out=dict(place.left_out))
    if is_memory(storage, storage_map):
        return replace(found, sentence=words.in_memory(found))
    if not place.files:
        return replace(found, sentence=words.no_files(found))
    try:
        access = find_access(place.files, _block_size(storage))
    except OSError as error:
        return replace(found, sentence=words.unreadable(found, error.strerror or str(error)), is_failed=True)
    found = replace(found, access=access.mode, alignment=access.alignment if access.mode == "direct" else None)
    room = room_bytes() if access.mode == "buffered" else None
    if room is not None and room < _LEAST_ROOM:
        return replace(found, sentence=words.no_room(found, room))
    measured = []
    plans = _plans(place, settings.parallel, rng)
    for number, (name, parallel, unit, pieces) in enumerate(plans):

        def report(share: float, text: str = f"{words.pattern(name, parallel)} ({number + 1} of {len(plans)})") -> None:
            progress(f"{found.name}: {text}, {share:.0%}")

        if access.mode != "direct":
            pieces = _not_cached(pieces, room, len(plans) - number)
        if not pieces:
            continue
        before = _counters(storage)
        figures = measure(pieces, access, parallel, seconds=settings.seconds, most=settings.most, progress=report)
        measured.append(_pattern(name, parallel, unit, figures, before, _counters(storage)))
        room = None if room is None else max(0, room - figures.size)
        if figures.is_cut and not figures.reads:
            break
    limits = [
        (item.limit.value, item.unit, item.limit.source)
        for item in Cgroup(devices=devices).disk_limits()
        if item.direction == "read" and item.device in storage.layers
    ]
    is_told = access.mode == "direct" or _is_told(place)
    found = replace(found, patterns=measured, is_failed=_is_failed(measured), limits=limits)
    return replace(found, sentence=words.sentence(found), notes=list(words.notes(found, is_told=is_told)))


def keep(found: Measured, ceilings: Ceilings, measured: str, path: str) -> Measured:
    """Keep what this storage gave, for the reports of runs; says why where it does not."""
    if not found.storage.device or found.storage.kind != "block" or not found.patterns:
        return found
    if found.limits:
        return replace(found, notes=[*found.notes, "Not kept for reports: the limit's figures are not the disk's."])
    good = [
        Ceiling(pattern.name, pattern.parallel, pattern.figures.bytes_per_s, operations)
        for pattern in found.patterns
        if (operations := _operations_per_s(pattern)) and is_the_devices(pattern)
    ]
    if not good or found.access == "buffered":
        return replace(found, notes=[*found.notes, "Not kept for reports: no figure is the disk's own alone."])
    try:
        file = ceilings.keep(found.storage.device, good, measured=measured, path=path)
    except OSError as error:
        return replace(found, notes=[*found.notes, f"Not kept for reports: {error.filename}: {error.strerror}."])
    return replace(found, stored=str(file) if file else None)


def is_the_devices(pattern: Pattern) -> bool:
    """Whether a figure is what the device gives, not what others left, a cache added, or this program could ask for."""
    figures = pattern.figures
    return (
        figures.reads > 0
        and not figures.is_cut
        and not figures.is_own_limit
        and (pattern.others_bytes_per_s or 0.0) < OTHERS * figures.bytes_per_s
        and (pattern.cached_fraction or 0.0) < CACHED
    )


def is_memory(storage: Storage, storage_map: StorageMap) -> bool:
    """Whether a storage is RAM: such a file system, or loop devices whose files lie in one."""
    if storage.kind == "memory":
        return True
    files = [storage_map.devices.backing_file(disk) for disk in storage.disks]
    return bool(files) and all(file is not None and storage_map.of_path(file).kind == "memory" for file in files)


def _plans(place: Place, parallel: int, rng: random.Random) -> list[tuple[str, int, str, list[Piece]]]:
    """(pattern, readers, what is read in one go, pieces), each with other data where there is enough."""
    small = sum(file.size <= WHOLE for file in place.files)
    unit = words.unit(small, len(place.files) - small)
    blocks = words.unit(1, 0) if max(file.size for file in place.files) <= BLOCK else words.unit(0, 1)
    in_order = sequential(place.files, 2, rng)
    by_chance = whole_files(place.files, 2, rng)
    plans = [
        ("sequential", 1, blocks, in_order[0]),
        ("sequential", SEQUENTIAL_PARALLEL, blocks, in_order[1]),
        ("random", 1, unit, by_chance[0]),
        ("random", parallel, unit, by_chance[1]),
    ]
    return plans if parallel > 1 else plans[:-1]


def _not_cached(pieces: Sequence[Piece], room: int | None, parts: int) -> list[Piece]:
    """The pieces of which nothing is in the page cache; one of *parts* of them where only *room* bytes may enter it."""
    chosen = []
    for piece in pieces:
        try:
            descriptor = os.open(piece.file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        if not cached_bytes(descriptor, piece.offset, piece.length):
            chosen.append(piece)
        os.close(descriptor)
    if room is None:
        return chosen
    share = min(room, sum(piece.length for piece in chosen)) / parts
    ends = accumulate(piece.length for piece in chosen)
    return [piece for piece, end in zip(chosen, ends, strict=True) if end <= share]


def _is_told(place: Place) -> bool:
    """Whether the kernel tells this user what is cached of these files."""
    try:
        descriptor = os.open(place.files[0].path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    told = cached_bytes(descriptor, 0, 1) is not None
    os.close(descriptor)
    return told


def _pattern(
    name: str, parallel: int, unit: str, figures: Figures, before: _Counters | None, after: _Counters | None
) -> Pattern:
    if before is None or after is None or not figures.size:
        return Pattern(name, parallel, figures, unit)
    read = after.read - before.read
    ours = min(1.0, figures.pages_size / read) if read else 0.0
    others = max(0, read - figures.pages_size) + after.written - before.written
    from_disks = min(read, after.read_below - before.read_below)
    return Pattern(
        name,
        parallel,
        figures,
        unit,
        device_operations=round((after.operations - before.operations) * ours),
        others_bytes_per_s=others / figures.seconds,
        cached_fraction=max(0.0, 1 - from_disks / figures.size),
    )


def _operations_per_s(pattern: Pattern) -> float:
    figures = pattern.figures
    return (pattern.device_operations or 0) / figures.seconds if figures.seconds > 0 else 0.0


def _is_failed(patterns: Sequence[Pattern]) -> bool:
    harmless = {"vanished", "became shorter"}
    return any(not pattern.figures.reads or set(pattern.figures.problems) - harmless for pattern in patterns)


@dataclass(frozen=True)
class _Counters:
    """Of the device that the file system is on, and of the disks below: since boot, in bytes."""

    operations: int
    read: int
    written: int
    read_below: int


def _counters(storage: Storage) -> _Counters | None:
    """None where no device is known."""
    tops = [_counted(device) for device in ([storage.device] if storage.device else storage.disks)]
    below = [_counted(device) for device in storage.disks]
    if not tops or not below or None in tops or None in below:
        return None
    operations, read, written = (sum(numbers) for numbers in zip(*filter(None, tops), strict=True))
    return _Counters(operations, read, written, sum(numbers[1] for numbers in filter(None, below)))


def _counted(device: str) -> tuple[int, int, int] | None:
    """(reads, bytes read, bytes written) of a device."""
    try:
        with open(f"/sys/class/block/{device}/stat") as file:
            fields = file.read().split()
        return int(fields[0]), int(fields[2]) * _SECTOR, int(fields[6]) * _SECTOR
    except (OSError, ValueError, IndexError):
        return None


def _block_size(storage: Storage) -> int:
    """The largest logical block of the devices that it passes; 0: not known."""
    largest = 0
    for device in storage.layers:
        try:
            with open(f"/sys/class/block/{device}/queue/logical_block_size") as file:
                largest = max(largest, int(file.read()))
        except (OSError, ValueError):
            continue
    return largest
