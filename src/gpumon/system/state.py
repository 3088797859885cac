"""What gpumon remembers between runs: small JSON files in one folder, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def state_dir(environment: Mapping[str, str] | None = None) -> Path:
    """The folder: `GPUMON_STATE_DIR`, systemd's `STATE_DIRECTORY`, /var/lib/gpumon of root, else XDG's."""
    environment = os.environ if environment is None else environment
    if chosen := environment.get("GPUMON_STATE_DIR"):
        return Path(chosen)
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/gpumon")
    home = environment.get("XDG_STATE_HOME") or str(Path(environment.get("HOME") or "/nonexistent") / ".local/state")
    return Path(home) / "gpumon"


def read_state(file: Path) -> dict[str, Any]:
    """What a state file holds; empty where there is none or it is damaged: memory is lost, nothing else."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_state(file: Path, value: Mapping[str, Any]) -> None:
    """Replace a state file; a crash in between leaves the old one.

    Raises:
        OSError: the folder cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as out:
            json.dump(value, out, separators=(",", ":"))
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
