"""One run of a file that holds several: a Collector's file goes on from run to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpumon.analysis.source import Execute
from gpumon.errors import RunError

SHOWN = 5
_SERIES = """series_id in (
    select s.series_id from series s join resources r using (resource_id)
    where gpumon_run_id(r.attributes, s.attributes) not in ('', ?)
)"""
_OWN = """gpumon_run_id(
    (select r.attributes from resources r where r.resource_id = {table}.resource_id), {table}.attributes
) not in ('', ?)"""


@dataclass(frozen=True)
class Known:
    """A run in the file; what belongs to none (a node's agent) is every run's."""

    id: str
    service: str

    def __str__(self) -> str:
        return f"{self.id} ({self.service})" if self.service else self.id


def split(path: str) -> tuple[str, str | None]:
    """`FILE?run=ID` as file and id; None where none is named."""
    file, mark, run = path.partition("?run=")
    return (file, run) if mark and run else (path, None)


def keep_one(execute: Execute, wanted: str | None, name: str) -> str:
    """Forget all runs but one: the one whose id is or begins with *wanted*, else the newest. Returns what to say of it.

    Raises:
        RunError: there is no such run, or there are several.
    """
    rows = execute(
        "select run_id, service from gpumon_runs where run_id <> '' order by begin_s desc, run_id"
    ).fetchall()
    known = [Known(run_id, service) for run_id, service in rows]
    chosen = _choose(known, wanted, name) if wanted is not None else next(iter(known), None)
    if chosen is None or len(known) < 2:
        return ""
    for table in ("numbers", "histograms"):
        execute(f"delete from {table} where {_SERIES}", [chosen.id])
    for table in ("spans", "logs"):
        execute(f"delete from {table} where {_OWN.format(table=table)}", [chosen.id])
    if wanted is not None:
        return ""
    return f"it holds {len(known)} runs, this is the newest, {chosen}; another one: gpumon report '{name}?run=ID'"


def _choose(known: Sequence[Known], wanted: str, name: str) -> Known:
    found = [run for run in known if run.id == wanted] or [run for run in known if run.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(map(str, (found or known)[:SHOWN])) or "none"
    if found:
        raise RunError(f"'{wanted}' begins the id of {len(found)} runs in '{name}': {shown}")
    raise RunError(f"no run '{wanted}' in '{name}'; there are: {shown}")
