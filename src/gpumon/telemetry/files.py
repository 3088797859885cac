"""The run directory: OTLP JSON lines, one file per signal and process, and `run.json` beside them.

Live files are plain lines, so that a reader may follow them; a segment is closed at 64 MiB and gzip'ed.
The directory keeps at most 2 GiB: past it the oldest closed trace segments go, then the oldest metric
segments, counted in `run.json`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

SCHEMA = "gpumon.run/1"
SEGMENT_BYTES = 64 * 2**20
RUN_BYTES = 2 * 2**30
SIGNALS = ("traces", "metrics", "logs")


def new_run_directory(root: Path, service: str) -> tuple[Path, str]:
    """Make `root/<start>-<service>-<short id>/`; returns it and the run's id."""
    run_id = uuid.uuid4().hex
    start = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
    slug = re.sub(r"[^A-Za-z0-9_.]+", "_", service).strip("_.")[:40] or "run"
    path = root / f"{start}-{slug}-{run_id[:6]}"
    path.mkdir(parents=True, exist_ok=False)
    return path, run_id


def read_run(directory: Path) -> dict[str, Any]:
    """The content of `run.json`; empty when it is missing or damaged."""
    try:
        content = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def edit_run(directory: Path) -> Iterator[dict[str, Any]]:
    """Change `run.json`: read, edit, replace in one piece, one process at a time."""
    with open(directory / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = read_run(directory)
        yield content
        temporary = directory / f".run.json.{os.getpid()}"
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(directory / "run.json")


def describe_run(directory: Path, run_id: str, service: str, command: list[str]) -> None:
    """Fill `run.json` at the start of a run; what stands there already stays."""
    with edit_run(directory) as run:
        for key, value in {
            "schema": SCHEMA,
            "id": run_id,
            "service": service,
            "started": now(),
            "host": os.uname().nodename,
            "command": command,
            "ended": None,
            "exit_code": None,
            "signal": None,
            "processes": [],
            "dropped": dict.fromkeys(SIGNALS, 0),
            "not_recorded": [],
        }.items():
            run.setdefault(key, value)


def now() -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class LineFile:
    """Appends lines to `<signal>.<rank>.<pid>.jsonl`, closing segments as they fill.

    Every line is written by one unbuffered write, so a killed process leaves at most one torn line.
    """

    def __init__(
        self,
        directory: Path,
        signal: str,
        rank: int,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        run_bytes: int = RUN_BYTES,
    ) -> None:
        self._directory = directory
        self._signal = signal
        self._stem = f"{signal}.{rank}.{os.getpid()}"
        self._segment_bytes = segment_bytes
        self._run_bytes = run_bytes
        self._segments = 0
        self._written = 0
        self._fd: int | None = None

    def write(self, line: str) -> None:
        """Append one line (without its newline).

        Raises:
            OSError: the disk is full or gone; nothing else of this line was kept.
        """
        data = line.encode() + b"\n"
        if self._fd is None:
            self._fd = os.open(
                self._directory / f"{self._stem}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
            )
            self._written = os.fstat(self._fd).st_size
        while data:
            count = os.write(self._fd, data)
            self._written += count
            data = data[count:]
        if self._written >= self._segment_bytes:
            self._close_segment()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _close_segment(self) -> None:
        self.close()
        live = self._directory / f"{self._stem}.jsonl"
        closed = self._directory / f"{self._stem}.{self._segments:03d}.jsonl"
        self._segments += 1
        live.rename(closed)
        packed = closed.with_name(closed.name + ".gz")
        partial = closed.with_name(closed.name + ".gz.partial")
        with open(closed, "rb") as source, gzip.open(partial, "wb", compresslevel=3) as target:
            shutil.copyfileobj(source, target, 2**20)
        partial.replace(packed)
        closed.unlink()
        enforce_bound(self._directory, self._run_bytes)


def enforce_bound(directory: Path, run_bytes: int = RUN_BYTES) -> None:
    """Delete closed segments, oldest traces first, until the run fits; counts them in `run.json`."""
    sizes: dict[Path, tuple[float, int]] = {}
    for path in directory.iterdir():
        with contextlib.suppress(OSError):  # another process may have removed it
            status = path.stat()
            sizes[path] = (status.st_mtime, status.st_size)
    excess = sum(size for _, size in sizes.values()) - run_bytes
    if excess <= 0:
        return
    dropped = dict.fromkeys(SIGNALS, 0)
    for signal in ("traces", "metrics", "logs"):
        closed = [path for path in sizes if path.name.startswith(signal + ".") and path.suffix == ".gz"]
        for path in sorted(closed, key=lambda item: sizes[item][0]):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= sizes[path][1]
            dropped[signal] += 1
    with edit_run(directory) as run:
        counts = run.setdefault("dropped", {})
        for signal, count in dropped.items():
            counts[signal] = counts.get(signal, 0) + count


class RunFiles:
    """Where a process writes its signals in a run directory; a full disk is counted, never raised."""

    def __init__(self, directory: Path, rank: int, on_dropped: Callable[[str, int], None], **bounds: int) -> None:
        self._files = {signal: LineFile(directory, signal, rank, **bounds) for signal in SIGNALS}
        self._on_dropped = on_dropped

    def write(self, signal: str, line: str, items: int) -> bool:
        """Append a line that holds *items* spans, points or records; False when it could not be kept."""
        try:
            self._files[signal].write(line)
        except OSError:
            self._on_dropped(signal, items)
            return False
        return True

    def close(self) -> None:
        for file in self._files.values():
            file.close()


