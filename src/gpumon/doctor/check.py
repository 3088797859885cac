"""What a check is, and what it says: one line, and where something is wrong the one command that repairs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from gpumon.doctor.place import Place

Status = Literal["ok", "warning", "failed", "absent"]
Where = Literal["here", "host", "receiver"]


@dataclass(frozen=True)
class Repair:
    """One command line. `where` it is to be run: here, on the machine that the container is on, at the receiver."""

    command: str
    where: Where = "here"


@dataclass(frozen=True)
class Result:
    """One line of a check: made by `ok`, `absent`, `warning` or `failed`, so that none fails without a repair."""

    status: Status
    summary: str
    repair: Repair | None = None


def ok(summary: str) -> Result:
    return Result("ok", _one_line(summary))


def absent(summary: str) -> Result:
    """There is no such thing here, and nothing is wrong with that."""
    return Result("absent", _one_line(summary))


def warning(summary: str, repair: Repair | str) -> Result:
    """It works, but less is seen, or it will be slow."""
    return Result("warning", _one_line(summary), _repair(repair))


def failed(summary: str, repair: Repair | str) -> Result:
    return Result("failed", _one_line(summary), _repair(repair))


def _one_line(text: str) -> str:
    """Messages of others, and names of files, may have several."""
    return " ".join(text.split())


def _repair(repair: Repair | str) -> Repair:
    repair = Repair(repair) if isinstance(repair, str) else repair
    return replace(repair, command=repair.command.replace("\n", "'$'\\n''"))  # in a quoted name; a shell reads it so


@dataclass(frozen=True)
class Check:
    """A check in the list: `run` reads and changes nothing, needs no root, and ends within `limit_s` or is given up.

    `stuck`: the repair of what does not answer.
    """

    name: str
    run: Callable[[Place], Result | Iterable[Result]]
    limit_s: float = 5.0
    stuck: Callable[[Place], Repair] = lambda place: Repair("GPUMON_STRICT=1 gpumon doctor")
