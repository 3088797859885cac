"""The error counters of every disk that was ever seen, by serial number: what grew, and when."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpumon.system.state import read_state, write_state

FILE: Final = "smart.json"
_MAX_CHANGES: Final = 64  # kept per counter; the oldest are merged into the first
_MAX_DISKS: Final = 1024
_REWRITE_S: Final = 3600.0  # how often "last seen" alone is worth a write


@dataclass(frozen=True)
class Growth:
    """One counter of one disk over all the time that it is known."""

    first: int
    first_at_s: float  # since 1970
    last: int
    recent: int  # growth within the time that was asked for


class SmartMemory:
    """First value, last value and changes of counters, in one small file that outlives restarts.

    Shape: {serial number: {"seen": s, "counters": {name: [[s, value], …]}}}, one entry per change.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._disks: dict[str, dict[str, Any]] = _valid(read_state(file))
        self._is_changed = False
        self._written_at = 0.0
        self.problem = ""
        """Why it could not be written, empty where it could."""

    def update(
        self, disk: str, counters: Mapping[str, int], *, within_s: float, now: float | None = None
    ) -> dict[str, Growth]:
        """Remember today's counters of a disk; return what is known of each."""
        now = time.time() if now is None else now
        known = self._disks.setdefault(disk, {"seen": now, "counters": {}})
        known["seen"] = now
        found = {}
        for name, value in counters.items():
            changes: list[list[float]] = known["counters"].setdefault(name, [])
            if not changes or changes[-1][1] != value:
                changes.append([now, value])
                self._is_changed = True
                if len(changes) > _MAX_CHANGES:
                    del changes[1]
            # What it was when the time that counts began; its first value where it is not known for as long.
            before = next((old for at, old in reversed(changes) if at <= now - within_s), changes[0][1])
            found[name] = Growth(int(changes[0][1]), changes[0][0], value, max(0, value - int(before)))
        return found

    def save(self, now: float | None = None) -> None:
        """Write what changed; where that is not possible the memory is of this process only, and `problem` says so."""
        now = time.time() if now is None else now
        if not self._is_changed and now - self._written_at < _REWRITE_S:
            return
        if len(self._disks) > _MAX_DISKS:
            by_age = sorted(self._disks, key=lambda disk: float(self._disks[disk]["seen"]))
            for disk in by_age[: len(self._disks) - _MAX_DISKS]:
                del self._disks[disk]
        # Another process (an agent, a training of root's) may know disks that this one does not.
        others = _valid(read_state(self._file))
        try:
            write_state(self._file, {**others, **self._disks})
        except OSError as error:
            self.problem = f"{self._file}: {error.strerror or error}"
        else:
            self._is_changed, self._written_at, self.problem = False, now, ""


def _valid(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries that have the shape; a damaged one is forgotten."""
    valid = {}
    for disk, known in state.items():
        try:
            counters = {
                str(name): [[float(at), int(value)] for at, value in changes]
                for name, changes in known["counters"].items()
                if changes
            }
            valid[disk] = {"seen": float(known["seen"]), "counters": counters}
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            continue
    return valid
