"""One run of a file that holds several: a Collector's file goes on from run to run, and holds the nodes' agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpumon.analysis.source import Execute
from gpumon.errors import RunError

SHOWN = 5
BEFORE_S, AFTER_S = 90.0, 60.0
"""What a node's agent exported so long before and after a run belongs to it: disk health comes once a minute."""

_RUN_OF_SERIES = "gpumon_run_id(r.attributes, s.attributes)"
_SERIES = "from series s join resources r using (resource_id)"
_AGENTS = f"""select r.resource_id from resources r
    where coalesce(r.attributes['gpumon.run.id'], '') = '' and r.attributes['gpumon.node.id'] in (
        select gpumon_node(r.attributes, s.attributes) {_SERIES} where {_RUN_OF_SERIES} = $1
    ) and r.attributes['gpumon.node.id'] <> ''"""
"""The resources of agents on the run's nodes. The application's may name its node, too: then its rows name the run."""
_RUN_OF_ROW = """gpumon_run_id(
    (select r.attributes from resources r where r.resource_id = {table}.resource_id), {table}.attributes
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
    _forget_others(execute, chosen)
    if wanted is not None or len(known) < 2:
        return ""
    return f"it holds {len(known)} runs, this is the newest, {chosen}; another one: gpumon report '{name}?run=ID'"


def _forget_others(execute: Execute, run: Known) -> None:
    """Of other runs, of nodes' agents elsewhere or at another time, and of everybody else whose rows are there."""
    which = [run.id, run.begin_s - BEFORE_S, run.end_s + AFTER_S]
    for table in ("numbers", "histograms"):
        execute(
            f"""delete from {table} where series_id not in (select s.series_id {_SERIES} where {_RUN_OF_SERIES} = $1)
            and not (
                series_id in (select s.series_id {_SERIES} where {_RUN_OF_SERIES} = '' and resource_id in ({_AGENTS}))
                and gpumon_unix_s(time_unix) between $2 and $3
            )""",
            which,
        )
    for table, time in (("spans", "start_unix"), ("logs", "time_unix")):
        own = _RUN_OF_ROW.format(table=table)
        # A part of a step is known by its trace where recordings of older versions have no more.
        is_own = f"({own} = $1 or trace_id in (select trace_id from {table} where trace_id <> '' and {own} = $1))"
        execute(
            f"""delete from {table} where not {is_own} and not (
                {own} = '' and resource_id in ({_AGENTS}) and gpumon_unix_s({time}) between $2 and $3
            )""",
            which,
        )


def _choose(known: Sequence[Known], wanted: str, name: str) -> Known:
    found = [run for run in known if run.id == wanted] or [run for run in known if run.id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(map(str, (found or known)[:SHOWN])) or "none"
    if found:
        raise RunError(f"'{wanted}' begins the id of {len(found)} runs in '{name}': {shown}")
    raise RunError(f"no run '{wanted}' in '{name}'; there are: {shown}")
