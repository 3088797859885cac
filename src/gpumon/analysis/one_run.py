"""One run of a file that holds several: a Collector's file goes on from run to run, and holds the nodes' agents."""

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

BEFORE_S, AFTER_S = 90.0, 60.0
"""What a node's agent exported so long before and after a run belongs to it: disk health comes once a minute."""

_IS_AGENT = "coalesce(attributes['gpumon.run.id'], '') = '' and coalesce(attributes['gpumon.node.id'], '') <> ''"
_IS_ELSEWHERE = f"""{_IS_AGENT} and attributes['gpumon.node.id'] not in (
    select gpumon_node(r.attributes, s.attributes) from series s join resources r using (resource_id)
    where gpumon_run_id(r.attributes, s.attributes) = ?
)"""


@dataclass(frozen=True)
class Known:
    """A run in the file."""

    id: str
    service: str
    begin_s: float
    end_s: float

    def __str__(self) -> str:
        return f"{self.id} ({self.service})" if self.service else self.id


def split(path: str) -> tuple[str, str | None]:
    """`FILE?run=ID` as file and id; None where none is named."""
    file, mark, run = path.partition("?run=")
    return (file, run) if mark and run else (path, None)


def keep_one(execute: Execute, wanted: str | None, name: str) -> str:
    """Forget all runs but one: the one whose id is or begins with *wanted*, else the newest. Returns what to say of it.

    Of nodes' agents only what they exported on its nodes, meanwhile, is kept.

    Raises:
        RunError: there is no such run, or there are several.
    """
    rows = execute(
        "select run_id, service, begin_s, end_s from gpumon_runs where run_id <> '' order by begin_s desc, run_id"
    ).fetchall()
    known = [Known(*row) for row in rows]
    chosen = _choose(known, wanted, name) if wanted is not None else next(iter(known), None)
    if chosen is None:
        return ""
    _forget_other_agents(execute, chosen)
    if len(known) < 2:
        return ""
    for table in ("numbers", "histograms"):
        execute(f"delete from {table} where {_SERIES}", [chosen.id])
    for table in ("spans", "logs"):
        execute(f"delete from {table} where {_OWN.format(table=table)}", [chosen.id])
    if wanted is not None:
        return ""
    return f"it holds {len(known)} runs, this is the newest, {chosen}; another one: gpumon report '{name}?run=ID'"


def _forget_other_agents(execute: Execute, run: Known) -> None:
    for table in ("numbers", "histograms", "spans", "logs"):
        execute(f"delete from {table} where {_from(table, _IS_ELSEWHERE)}", [run.id])
        time = "start_unix" if table == "spans" else "time_unix"
        execute(
            f"delete from {table} where {_from(table, _IS_AGENT)} and gpumon_unix_s({time}) not between ? and ?",
            [run.begin_s - BEFORE_S, run.end_s + AFTER_S],
        )


def _from(table: str, condition: str) -> str:
    """That a row is from one of the resources which meet *condition*."""
    resources = f"resource_id in (select resource_id from resources where {condition})"
    return resources if table in ("spans", "logs") else f"series_id in (select series_id from series where {resources})"


def _choose(known: Sequence[Known], wanted: str, name: str) -> Known:
    found = [run for run in known if run.id == wanted] or [run for run in known if run.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(map(str, (found or known)[:SHOWN])) or "none"
    if found:
        raise RunError(f"'{wanted}' begins the id of {len(found)} runs in '{name}': {shown}")
    raise RunError(f"no run '{wanted}' in '{name}'; there are: {shown}")
