"""Recorded runs into DuckDB: OTLP lines from a run directory, or from a Collector's file exporter.

The tables have the column names of the Collector's ClickHouse exporter (`otel_traces`,
`otel_metrics_gauge|sum|histogram`, `otel_logs`). Only what is new is read, by byte offset, up to the last
newline: a run that is still being written can be followed with `Loader.refresh`.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import duckdb

from gpumon.analysis.one_run import keep_one, split
from gpumon.analysis.source import Execute
from gpumon.analysis.views import create_views, hold_rows
from gpumon.errors import RunError
from gpumon.telemetry.run_json import read_run

RUNS_DIRECTORY = Path("gpumon-runs")
MEMORY_LIMIT = "256MB"
"""Of DuckDB's own memory; what does not fit goes to the temporary directory."""
CHUNK_BYTES = 16 * 2**20
"""As much is parsed at once; several chunks in flight would only cost memory."""
LONGEST_LINE = 16 * 2**20

_FILE = re.compile(
    r"(?P<stem>(?:traces|metrics|logs)\.\d+\.\d+)(?:\.(?P<number>\d+))?\.jsonl(?P<packed>\.gz)?|(?P<other>.+)\.jsonl(\.gz)?"
)
"""A file of gpumon's, live or closed as a segment; or any other file of lines."""
_LAST = 10**9
_SIGNALS = ("resourceMetrics", "resourceSpans", "resourceLogs")


@dataclass
class Damage:
    """Lines of one file that are no OTLP: where the first one is, how many there are."""

    first_line: int
    lines: int = 1

    def __str__(self) -> str:
        more = f" ({self.lines} lines in all)" if self.lines > 1 else ""
        return f"line {self.first_line} is damaged, skipped{more}"


@dataclass
class _Place:
    """How far one live file, with the segments that it was closed into, has been read."""

    segment: int = 0
    inode: int = 0
    offset: int = 0
    line: int = 0

    def next_segment(self, number: int) -> None:
        self.segment, self.inode, self.offset, self.line = number, 0, 0, 0


@dataclass
class Run:
    """A loaded run: `connection` holds its tables and views."""

    path: Path
    connection: duckdb.DuckDBPyConnection
    info: dict[str, Any]
    """`run.json`; empty for a single file."""
    damaged: dict[str, Damage] = field(default_factory=dict)
    lines: int = 0
    note: str = ""
    """What is to be said of it: that it is one of several."""
    directory: tempfile.TemporaryDirectory[str] | None = None
    """What does not fit into memory; goes with the run."""

    @property
    def execute(self) -> Execute:
        execute: Execute = self.connection.execute
        return execute


def load(path: str | os.PathLike[str] | None = None) -> Run:
    """Load a run once; None: the newest one under `gpumon-runs/`.

    Raises:
        RunError: there is no run at *path*; the text is one line for the user.
    """
    loader = Loader(newest_run() if path is None else Path(path))
    loader.refresh()
    return loader.run


class Loader:
    """Reads a run, again and again while it grows."""

    def __init__(self, path: Path) -> None:
        self._wanted: str | None = None
        if not path.exists():
            file, self._wanted = split(str(path))
            path = Path(file)
        check(path)
        try:
            self._directory = tempfile.TemporaryDirectory(prefix="gpumon-")
        except OSError as error:
            raise RunError(f"no room for temporary files: {error.strerror or error}") from error
        connection = duckdb.connect(
            config={
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": self._directory.name,
                "threads": min(4, os.cpu_count() or 1),
                "autoinstall_known_extensions": False,
            }
        )
        connection.execute("set timezone = 'UTC'; set preserve_insertion_order = false")
        connection.execute(_sql("tables.sql"))
        create_views(connection.execute, "duckdb")
        self._statements = {
            "resourceMetrics": _sql("load_metrics.sql"),
            "resourceSpans": _sql("load_spans.sql"),
            "resourceLogs": _sql("load_logs.sql"),
        }
        self._places: dict[str, _Place] = {}
        self._holds_rows = False
        self.run = Run(path, connection, {}, directory=self._directory)

    def refresh(self) -> int:
        """Read what was added since the last call; returns the number of lines.

        Raises:
            RunError: nothing in the files is OTLP.
        """
        before = self.run.lines
        path = self.run.path
        if path.is_dir():
            self.run.info = read_run(path)
            for stem in _stems(path):
                self._follow(path, stem)
        else:
            place = self._places.setdefault(path.name, _Place())
            self._read(path, place)
        if not self.run.lines and self.run.damaged and not self.run.info:
            raise RunError(f"no OTLP lines in '{path}': {_first_damage(self.run.damaged)}")
        if self.run.lines > before and not self.run.info:  # no run directory: a Collector's files
            self.run.note = keep_one(self.run.connection.execute, self._wanted, str(path))
        if self.run.lines > before or not self._holds_rows:
            hold_rows(self.run.connection.execute, again=self._holds_rows)
            self._holds_rows = True
        return self.run.lines - before

    def close(self) -> None:
        self.run.connection.close()
        self._directory.cleanup()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self, directory: Path, stem: str) -> None:
        """Read the closed segments of *stem* that are new, then its live file."""
        place = self._places.setdefault(stem, _Place())
        for number, path in sorted(_segments(directory, stem).items()):
            if number >= place.segment:
                if number > place.segment:
                    place.next_segment(number)
                place.inode = 0  # a packed segment has another inode and the same bytes
                self._read(path, place)
                place.next_segment(number + 1)
        live = directory / f"{stem}.jsonl"
        if live.exists():
            self._read(live, place)

    def _read(self, path: Path, place: _Place) -> None:
        try:
            with _opened(path) as file:
                status = os.fstat(file.fileno())
                packed = path.suffix == ".gz"
                if not packed:
                    if place.inode not in (0, status.st_ino) or status.st_size < place.offset:
                        place.offset = place.line = 0  # another file of the same name
                    place.inode = status.st_ino
                file.seek(place.offset)
                for chunk in _whole_lines(file):
                    self._insert(path.name, chunk, place.line)
                    place.offset += len(chunk)
                    place.line += chunk.count(b"\n")
        except FileNotFoundError:
            return  # closed, packed or dropped meanwhile; the next refresh finds it
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self._damage(path.name, place.line + 1)
        except OSError as error:
            raise RunError(f"cannot read '{path}': {error.strerror or error}") from error

    def _insert(self, name: str, chunk: bytes, line: int) -> None:
        """Load whole lines, the first of which is number *line* + 1."""
        if self._try(chunk):
            self.run.lines += chunk.count(b"\n")
            return
        good: list[tuple[int, bytes]] = []
        for number, text in enumerate(chunk.splitlines(keepends=True), line + 1):
            if _is_otlp(text):
                good.append((number, text))
            elif text.strip():
                self._damage(name, number)
        self._insert_or_halve(name, good)

    def _insert_or_halve(self, name: str, lines: list[tuple[int, bytes]]) -> None:
        """Load lines of which some may be refused; halves until the refused ones stand alone."""
        if not lines:
            return
        if self._try(b"".join(text for _, text in lines)):
            self.run.lines += len(lines)
        elif len(lines) == 1:
            self._damage(name, lines[0][0])
        else:
            middle = len(lines) // 2
            self._insert_or_halve(name, lines[:middle])
            self._insert_or_halve(name, lines[middle:])

    def _try(self, chunk: bytes) -> bool:
        """Load the chunk as a whole, or nothing of it."""
        statements = [sql for signal, sql in self._statements.items() if signal.encode() in chunk]
        if not statements:
            return not chunk.strip()
        part = Path(self._directory.name, "part.jsonl")
        try:
            part.write_bytes(chunk)
        except OSError as error:
            raise RunError(f"no room for temporary files in '{part.parent}': {error.strerror}") from error
        longest = LONGEST_LINE
        if len(chunk) > longest:
            longest = max(longest, max(map(len, chunk.split(b"\n"))) + 2)
        connection = self.run.connection
        connection.execute("begin")
        try:
            for sql in statements:
                path = str(part).replace("'", "''")
                connection.execute(sql.replace("{path}", path).replace("{longest}", str(longest)))
        except (duckdb.InvalidInputException, duckdb.ConversionException, duckdb.ConstraintException):
            connection.execute("rollback")
            return False
        except duckdb.Error as error:
            with contextlib.suppress(duckdb.Error):
                connection.execute("rollback")
            raise RunError(f"cannot load '{self.run.path}': {str(error).splitlines()[0]}") from error
        connection.execute("commit")
        return True

    def _damage(self, name: str, line: int) -> None:
        if name in self.run.damaged:
            self.run.damaged[name].lines += 1
        else:
            self.run.damaged[name] = Damage(line)


def whole_lines(run: Path) -> Iterator[tuple[str, int, bytes]]:
    """(file, number, text) of every whole line of a run; each process' in the order of its writing.

    Raises:
        RunError: there is no run, or a file cannot be read.
    """
    check(run)
    for path in _files(run):
        number = 0
        try:
            with _opened(path) as file:
                for text in file:
                    number += 1
                    if text.endswith(b"\n"):
                        yield path.name, number, text
        except FileNotFoundError:
            continue  # dropped meanwhile, to keep the run within its size
        except (EOFError, zlib.error, gzip.BadGzipFile):
            yield path.name, number + 1, b"{"  # damaged from here on
        except OSError as error:
            raise RunError(f"cannot read '{path}': {error.strerror or error}") from error


def _files(run: Path) -> Iterator[Path]:
    if not run.is_dir():
        yield run
        return
    for stem in _stems(run):
        yield from (path for _, path in sorted(_segments(run, stem).items()))
        if (live := run / f"{stem}.jsonl").exists():
            yield live


def newest_run(root: Path = RUNS_DIRECTORY) -> Path:
    """The run under *root* that started last.

    Raises:
        RunError: there is none.
    """
    runs = recorded_runs(root)
    if not runs:
        raise RunError(f"no recorded runs under '{root}/'; record one with `gpumon run -- python train.py`")
    return max(runs, key=lambda path: (str(read_run(path).get("started") or ""), path.name))


def recorded_runs(root: Path = RUNS_DIRECTORY) -> list[Path]:
    """The run directories under *root*, by name."""
    with contextlib.suppress(OSError):
        return sorted(path for path in root.iterdir() if path.is_dir() and _is_run(path))
    return []


def check(path: Path) -> None:
    """Make sure that *path* may be a run.

    Raises:
        RunError: it is not; with what was looked for and the runs that there are.
    """
    if path.is_file():
        if path.stat().st_size == 0:
            raise RunError(f"'{path}' is empty: no OTLP lines")
        return
    if not path.is_dir() or not _is_run(path):
        raise RunError(f"no run at '{path}' (looked for run.json or *.jsonl). {_runs_near(path)}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise RunError(f"cannot read '{path}': Permission denied")


def _runs_near(path: Path) -> str:
    for root in (path, path / RUNS_DIRECTORY, RUNS_DIRECTORY):
        if runs := recorded_runs(root):
            newest = newest_run(root)
            return (
                f"Recorded runs here: {newest} ({len(runs)})."
                if len(runs) == 1
                else (f"Recorded runs here: {root}/… ({len(runs)}), the newest {newest}.")
            )
    return "No recorded runs here; `gpumon run -- python train.py` records one."


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file() or bool(_stems(path))


def _stems(directory: Path) -> list[str]:
    """Names of live files, without their ending, whether they are there or all closed."""
    matches = (_FILE.fullmatch(path.name) for path in directory.iterdir())
    return sorted({match["stem"] or match["other"] for match in matches if match})


def _segments(directory: Path, stem: str) -> dict[int, Path]:
    """Closed segments by number; where one is being packed, its plain form is the whole one."""
    found: dict[int, Path] = {}
    for path in sorted(directory.iterdir(), reverse=True):  # `.jsonl` comes after `.jsonl.gz`
        match = _FILE.fullmatch(path.name)
        if match and (match["stem"] or match["other"]) == stem and path.name != f"{stem}.jsonl":
            # Without a number: what was live when the run was archived, the last one of its process.
            found[int(match["number"] or _LAST)] = path
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as file:
        if path.suffix == ".gz":
            with gzip.open(file) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield file


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Chunks that end with a newline; what follows the last newline is left for later."""
    rest = b""
    while block := file.read(CHUNK_BYTES):
        end = block.rfind(b"\n") + 1
        if not end:
            rest += block
            continue
        yield rest + block[:end]
        rest = block[end:]


def _is_otlp(text: bytes) -> bool:
    try:
        line = json.loads(text)
    except ValueError:
        return False
    return isinstance(line, dict) and any(isinstance(line.get(signal), list) for signal in _SIGNALS)


def _first_damage(damaged: dict[str, Damage]) -> str:
    name, damage = next(iter(damaged.items()))
    return f"{name}: {damage}"


def _sql(name: str) -> str:
    return (Path(__file__).parent / "duckdb" / name).read_text(encoding="utf-8")
