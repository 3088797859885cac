"""Where rows go: lines of CSV or JSON, on stdout or in a file that is appended to and rotated."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, Protocol

from gpumon.errors import GpumonError
from gpumon.sample.fields import Field
from gpumon.sample.window import Window

KEPT: Final = 5  # older files beside FILE: FILE.1 is the newest of them
_FIRST: Final = ("time", "device", "type")


class Format:
    """Rows as text. The columns are `time`, `device`, `type` and the fields, by the names that were asked for."""

    def __init__(self, kind: str, fields: Sequence[Field]) -> None:
        self._is_csv = kind == "csv"
        self._fields = fields
        self.header = _csv([[*_FIRST, *(field.name for field in fields)]]) if self._is_csv else ""

    def rows(self, windows: Iterable[Window]) -> str:
        """One line per device."""
        rows = [(self._first(window), [field.of(window) for field in self._fields]) for window in windows]
        if self._is_csv:
            texts = [
                [*first, *(field.text(value) for field, value in zip(self._fields, values, strict=True))]
                for first, values in rows
            ]
            return _csv(texts)
        names = [*_FIRST, *(field.name for field in self._fields)]
        objects = [dict(zip(names, (*first, *values), strict=True)) for first, values in rows]
        return "".join(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in objects)

    def _first(self, window: Window) -> tuple[str, str, str]:
        at = datetime.fromtimestamp(window.at_s, timezone.utc).isoformat(timespec="milliseconds")
        return at, window.device, window.type


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class Output(Protocol):
    """Takes the header, then the rows of each tick; what was written is seen at once."""

    descriptor: int | None
    """To be watched for a reader that leaves."""

    def begin(self, header: str) -> None: ...

    def write(self, rows: str) -> None: ...


class Stdout:
    """Rows on stdout."""

    def __init__(self) -> None:
        try:
            self.descriptor: int | None = sys.stdout.fileno()
        except OSError:
            self.descriptor = None  # captured by a test or a notebook

    def begin(self, header: str) -> None:
        self.write(header)

    def write(self, rows: str) -> None:
        sys.stdout.write(rows)
        sys.stdout.flush()


@dataclass
class RotatedFile:
    """Rows at the end of a file. Before it grows past *limit_bytes* it becomes FILE.1, and so on up to KEPT.

    Raises:
        GpumonError: it cannot be written, or holds something else than rows with these columns.
    """

    path: Path
    limit_bytes: int  # 0: never rotated
    descriptor: int | None = None
    _header: bytes = b""

    def begin(self, header: str) -> None:
        self._header = header.encode()
        try:
            if self.path.exists() and self.path.stat().st_size:
                self._check()
            else:
                self._append(self._header)
        except OSError as error:
            raise GpumonError(f"cannot write {self.path}: {error.strerror}") from error

    def write(self, rows: str) -> None:
        data = rows.encode()
        try:
            size = self.path.stat().st_size if self.path.exists() else 0
            if self.limit_bytes and size > len(self._header) and size + len(data) > self.limit_bytes:
                self._rotate()
                size = 0
            self._append(data if size else self._header + data)
        except OSError as error:
            raise GpumonError(f"cannot write {self.path}: {error.strerror}") from error

    def _check(self) -> None:
        """The file that is there goes on with the same columns; a line that was cut off is ended first."""
        with self.path.open("rb") as file:
            first = file.readline()
            file.seek(-1, os.SEEK_END)
            is_cut = file.read(1) != b"\n"
        if first.rstrip(b"\r\n") != self._header.rstrip(b"\n") if self._header else not first.startswith(b"{"):
            raise GpumonError(f"{self.path} holds something else than rows with these columns: name another file")
        if is_cut:
            self._append(b"\n")

    def _append(self, data: bytes) -> None:
        # Opened each time: rows go on in a new file when somebody moves this one away.
        with self.path.open("ab") as file:
            file.write(data)

    def _rotate(self) -> None:
        for number in range(KEPT - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self.path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
