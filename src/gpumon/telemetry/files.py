"""The files of a run directory: OTLP JSON lines, one file per signal and process.

The live file `<signal>.<rank>.<pid>.jsonl` is plain lines, so that a reader may follow it; at 64 MiB it is
closed as the segment `<signal>.<rank>.<pid>.NNN.jsonl.gz`. The directory keeps at most 2 GiB: past it the
oldest closed trace segments go, then the oldest metric segments, counted in `run.json`.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import time
from pathlib import Path

from gpumon.telemetry.run_json import describe_run as describe_run  # re-exported
from gpumon.telemetry.run_json import edit_run, start_ticks
from gpumon.telemetry.run_json import new_run_directory as new_run_directory  # re-exported
from gpumon.telemetry.run_json import read_run as read_run  # re-exported

SEGMENT_BYTES = 64 * 2**20
RUN_BYTES = 2 * 2**30
SIGNALS = ("traces", "metrics", "logs")
ABANDONED_S = 600.0

_NAME = re.compile(r"(?P<signal>traces|metrics|logs)\.\d+\.(?P<pid>\d+)(?P<segment>\.\d+)?\.jsonl(\.gz)?")


class RunFiles:
    """Where a process writes its signals in a run directory."""

    def __init__(
        self, directory: Path, rank: int, *, segment_bytes: int = SEGMENT_BYTES, run_bytes: int = RUN_BYTES
    ) -> None:
        self.directory = directory
        self._files = {signal: LineFile(directory, signal, rank, segment_bytes, run_bytes) for signal in SIGNALS}

    def write(self, signal: str, line: str) -> bool:
        """Append *line*; False when it could not be kept, whole or at all: a full disk is never raised."""
        try:
            self._files[signal].write(line)
        except OSError:
            return False
        return True

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class LineFile:
    """Appends lines to a live file, closing segments as they fill.

    Every line is one unbuffered write, so a killed process leaves at most one torn line.
    """

    def __init__(self, directory: Path, signal: str, rank: int, segment_bytes: int, run_bytes: int) -> None:
        self._directory = directory
        self._stem = f"{signal}.{rank}.{os.getpid()}"
        self._segment_bytes = segment_bytes
        self._run_bytes = run_bytes
        self._segments = 0
        self._size = 0
        self._fd: int | None = None

    def write(self, line: str) -> None:
        """Append one line (without its newline).

        Raises:
            OSError: the disk is full or gone; nothing of this line was kept.
        """
        data = line.encode() + b"\n"
        if self._fd is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._directory / f"{self._stem}.jsonl", flags, 0o644)
            self._size = os.fstat(self._fd).st_size
        if self._size and self._size + len(data) > self._segment_bytes:
            self._close_segment()
            self.write(line)
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            # A full disk takes part of a line; the next line would end up behind that part.
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _close_segment(self) -> None:
        self.close()
        closed = self._segment()
        while closed.exists() or closed.with_name(closed.name + ".gz").exists():
            self._segments += 1  # an earlier process of the same pid wrote it
            closed = self._segment()
        (self._directory / f"{self._stem}.jsonl").rename(closed)
        with contextlib.suppress(OSError):  # the lines are safe; a full disk keeps them as they are
            _pack(closed)
        with contextlib.suppress(OSError):
            enforce_bound(self._directory, self._run_bytes)

    def _segment(self) -> Path:
        return self._directory / f"{self._stem}.{self._segments:03d}.jsonl"


def _pack(closed: Path) -> None:
    partial = closed.with_name(closed.name + ".gz.partial")
    try:
        with open(closed, "rb") as source, gzip.open(partial, "wb", compresslevel=3) as target:
            shutil.copyfileobj(source, target, 2**20)
        partial.replace(closed.with_name(closed.name + ".gz"))
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    closed.unlink()


def enforce_bound(directory: Path, run_bytes: int = RUN_BYTES) -> None:
    """Delete closed segments, oldest traces first, until the run fits; counts them in `run.json`."""
    files: dict[Path, os.stat_result] = {}
    for path in directory.iterdir():
        with contextlib.suppress(OSError):  # another process may have removed it
            files[path] = path.stat()
    excess = sum(status.st_size for status in files.values()) - run_bytes
    dropped: dict[str, int] = {}
    for signal in SIGNALS:
        closed = [path for path, status in files.items() if _is_closed(path, status, signal)]
        for path in sorted(closed, key=lambda path: files[path].st_mtime_ns):
            if excess <= 0:
                break
            try:
                path.unlink()
            except OSError:
                continue  # another process was quicker, and counts it
            excess -= files[path].st_size
            dropped[signal] = dropped.get(signal, 0) + 1
    if dropped:
        with edit_run(directory) as run:
            counts = run.setdefault("dropped", {})
            for signal, count in dropped.items():
                counts[signal] = counts.get(signal, 0) + count


def _is_closed(path: Path, status: os.stat_result, signal: str) -> bool:
    """Whether nobody writes to a file any more: a segment, or the last file of a process that is gone."""
    match = _NAME.fullmatch(path.name)
    if match is None or match["signal"] != signal:
        return False
    abandoned = time.time() - status.st_mtime > ABANDONED_S and start_ticks(int(match["pid"])) is None
    return bool(match["segment"]) or abandoned
