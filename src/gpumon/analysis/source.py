"""What reports ask: a run, in whatever engine holds its tables and views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Rows(Protocol):
    """The result of a query, as in Python's database API."""

    @property
    def description(self) -> Any:
        """The columns in order, each a tuple that begins with its name."""

    def fetchall(self) -> list[Any]: ...
    def fetchone(self) -> Any: ...


class Execute(Protocol):
    """Runs one SQL text with its parameters, which stand in it as `?`."""

    def __call__(self, sql: str, parameters: Sequence[Any] = (), /) -> Rows: ...


class Source(Protocol):
    """A run: what its queries see is of this run alone."""

    @property
    def path(self) -> Path | str:
        """Where it is, for people; without a password."""

    @property
    def info(self) -> Mapping[str, Any]:
        """`run.json`; empty where it is not known."""

    @property
    def damaged(self) -> Mapping[str, object]:
        """What could not be read, by file."""

    @property
    def execute(self) -> Execute: ...
