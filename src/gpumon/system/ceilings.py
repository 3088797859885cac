"""What `gpumon bench` measured of each disk, kept between runs and found again by what the disk is, not by its name."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from gpumon.system.block import BlockDevices
from gpumon.system.state import read_state, state_dir, write_state

SCHEMA: Final = "gpumon.ceilings/1"
_OF_ROOT: Final = Path("/var/lib/gpumon")
_MAX_DEPTH: Final = 8


@dataclass(frozen=True)
class Ceiling:
    """What a disk gave when it was read by one pattern, so many reads at a time."""

    pattern: str  # sequential, random
    parallel: int
    bytes_per_s: float
    operations_per_s: float  # requests to the device


class Ceilings:
    """The measured ceilings of this machine's disks, one small file each in `state_dir()`/ceilings.

    Args:
        root: where proc/ and sys/ are.
        folders: where to look, and in the first of which to keep; default: the own state, then that of root.
    """

    def __init__(self, root: str | Path = "/", folders: Iterable[Path] | None = None) -> None:
        self._root = Path(root)
        self._devices = BlockDevices(root)
        self._folders = [folder / "ceilings" for folder in (_folders(os.environ) if folders is None else folders)]

    def keep(self, device: str, ceilings: Iterable[Ceiling], *, measured: str, path: str) -> Path | None:
        """Replace what is known of a disk; the file that holds it, None where nothing tells the disk from another.

        Raises:
            OSError: it cannot be written.
        """
        identity = self.identity(device)
        if identity is None:
            return None
        file = self._folders[0] / _name(identity)
        told = [asdict(ceiling) for ceiling in ceilings]
        write_state(
            file,
            {
                "schema": SCHEMA,
                "identity": identity,
                "device": device,
                "measured": measured,
                "path": path,
                "ceilings": told,
            },
        )
        return file

    def of(self, device: str) -> list[Ceiling]:
        """What was measured of the disk that has this name now; empty where nothing was."""
        folders = [folder for folder in self._folders if folder.is_dir()]
        identity = self.identity(device) if folders else None
        if identity is None:
            return []
        states = (read_state(folder / _name(identity)) for folder in folders)
        known = [state for state in states if state.get("schema") == SCHEMA and state.get("identity") == identity]
        if not known:
            return []
        newest = max(known, key=lambda state: str(state.get("measured")))
        return list(_parse(newest.get("ceilings")))

    def identity(self, device: str) -> str | None:
        """What tells this disk from any other that may get its name: WWN, serial number, UUID, and its size.

        A disk without any of these (loop devices, some virtual disks) is known until it is set up anew or the
        machine starts again.
        """
        return self._identity(device, 0)

    def _identity(self, device: str, depth: int) -> str | None:
        if not self._devices.exists(device):
            return None
        folder = self._root / "sys/class/block" / device
        size = self._devices.size_bytes(device)
        below = [lower for lower in self._devices.below(device) if lower != device]
        uuid = _first(folder, "dm/uuid", "md/uuid")
        if (uuid or below) and depth < _MAX_DEPTH:
            # The same volume may have moved to other disks.
            own = uuid or self._until_restart(folder)
            parts = [self._identity(lower, depth + 1) for lower in below]
            if own is None or None in parts:
                return None
            return f"{own} {size} on ({', '.join(sorted(filter(None, parts)))})"
        if wwn := _first(folder, "wwid", "device/wwid"):
            return f"wwn:{wwn} {size}"
        facts = self._devices.facts(device)
        if facts.serial_number:
            return f"serial:{' '.join(facts.serial_number.split())} {facts.model} {size}"
        own = self._until_restart(folder)
        return own and f"{own} {size}"

    def _until_restart(self, folder: Path) -> str | None:
        """The kernel numbers every disk that it sets up (5.15 and later); before that, its name has to do."""
        boot = _read(self._root / "proc/sys/kernel/random/boot_id")
        number = _read(folder / "diskseq") or f"{folder.name} {_read(folder / 'dev')}"
        return f"boot:{boot} {number}" if boot else None


def _folders(environment: Mapping[str, str]) -> list[Path]:
    own = state_dir(environment)
    if environment.get("GPUMON_STATE_DIR") or own == _OF_ROOT:
        return [own]
    return [own, _OF_ROOT]


def _parse(told: Any) -> Iterator[Ceiling]:
    for item in told if isinstance(told, list) else []:
        try:
            found = Ceiling(
                str(item["pattern"]),
                int(item["parallel"]),
                float(item["bytes_per_s"]),
                float(item["operations_per_s"]),
            )
        except (KeyError, TypeError, ValueError):
            continue
        if min(found.bytes_per_s, found.operations_per_s) > 0 and math.isfinite(found.bytes_per_s):
            yield found


def _name(identity: str) -> str:
    return f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"


def _first(folder: Path, *names: str) -> str:
    texts = (" ".join(_read(folder / name).split()) for name in names)
    return next((text for text in texts if text), "")


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
