"""A run in ClickHouse: which one is meant, and queries that see this one alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from gpumon.analysis.clickhouse.address import Address, parse
from gpumon.analysis.clickhouse.install import check_views
from gpumon.analysis.clickhouse.server import Answer, Server
from gpumon.analysis.clickhouse.tables import READ, TIMES, of_agents, of_run
from gpumon.analysis.clickhouse.text import literal
from gpumon.analysis.one_run import AFTER_S, BEFORE_S
from gpumon.analysis.source import Execute
from gpumon.analysis.views import SETTINGS
from gpumon.errors import RunError

SHOWN = 5
MARGIN_S = 86_400
"""Spans begin before the first export and end after the last; no step is a day long."""


@dataclass(frozen=True)
class KnownRun:
    """A row of `gpumon_runs`."""

    id: str
    service: str
    begin_s: float
    end_s: float
    steps: float

    def __str__(self) -> str:
        began = datetime.fromtimestamp(self.begin_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"{self.id} ({self.service or 'training'}, {began}, {self.steps:.0f} steps)"


@dataclass(frozen=True)
class ClickHouseRun:
    """A source for reports."""

    path: str
    execute: Execute
    info: Mapping[str, Any]
    damaged: Mapping[str, object]


@contextmanager
def open_run(url: str) -> Iterator[ClickHouseRun]:
    """The run that *url* names, else the newest of its database.

    Raises:
        RunError: there is none, or the database cannot be read.
    """
    address = parse(url)
    with Server(address) as server:
        check_views(server)
        run = choose(known_runs(server), address)
        yield ClickHouseRun(address.of_run(run.id), RunQueries(server, run), {}, {})


def known_runs(server: Server) -> list[KnownRun]:
    """Every run of the database, newest first."""
    rows = server.query(
        "select run_id, service, begin_s, end_s, steps from gpumon_runs where run_id <> '' order by begin_s desc"
    ).rows
    return [KnownRun(*row) for row in rows]


def choose(runs: Sequence[KnownRun], address: Address) -> KnownRun:
    """The run whose id is, or begins with, what the address says; the newest where it says nothing."""
    if not runs:
        raise RunError(f"no runs in {address}")
    if address.run is None:
        return runs[0]
    found = [run for run in runs if run.id == address.run] or [run for run in runs if run.id.startswith(address.run)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(map(str, (found or runs)[:SHOWN]))
    more = f" and {len(found or runs) - SHOWN} more" if len(found or runs) > SHOWN else ""
    if found:
        raise RunError(f"'{address.run}' begins the id of {len(found)} runs in {address}: {shown}{more}")
    raise RunError(f"no run '{address.run}' in {address}; there are: {shown}{more}")


class RunQueries:
    """Runs queries on rows of one run alone: the filter is on the tables below the views, which stay as they are.

    What agents exported on its nodes meanwhile belongs to it.
    """

    def __init__(self, server: Server, run: KnownRun) -> None:
        self._server = server
        nodes = _nodes(server, run)
        filters = {f"{server.address.database}.{table}": _condition(table, run, nodes) for table in READ}
        pairs = ", ".join(f"{literal(table)}: {literal(condition)}" for table, condition in filters.items())
        self._settings = f"settings {SETTINGS['clickhouse']}, additional_table_filters = {{{pairs}}}"

    def __call__(self, sql: str, parameters: Sequence[Any] = (), /) -> Answer:
        head, *rest = sql.split("?")
        given = {f"p{number}": value for number, value in enumerate(parameters)}
        text = head + "".join(
            f"{{{name}:{_type(value)}}}{part}" for (name, value), part in zip(given.items(), rest, strict=True)
        )
        return self._server.query(f"{text}\n{self._settings}", given)


def _nodes(server: Server, run: KnownRun) -> list[str]:
    table = "otel_metrics_gauge"
    rows = server.query(
        f"""select distinct
            if(ResourceAttributes['gpumon.node.id'] <> '', ResourceAttributes, Attributes)['gpumon.node.id'] as node
        from {table}
        where MetricName = 'gpumon.collector.up' and node <> ''
            and ({of_run(table, run.id)}) and {_between(table, run.begin_s - 1, run.end_s + 1)}
        order by node"""
    ).rows
    return [node for (node,) in rows]


def _condition(table: str, run: KnownRun, nodes: Sequence[str]) -> str:
    own = f"({of_run(table, run.id)}) and {_between(table, run.begin_s - MARGIN_S, run.end_s + MARGIN_S)}"
    if not nodes:
        return own
    return f"({own}) or ({of_agents(table, nodes)} and {_between(table, run.begin_s - BEFORE_S, run.end_s + AFTER_S)})"


def _between(table: str, begin_s: float, end_s: float) -> str:
    time = TIMES[table]
    return f"{time} >= toDateTime({int(begin_s)}) and {time} < toDateTime({int(end_s) + 1})"


def _type(value: object) -> str:
    return {str: "String", int: "Int64", float: "Float64"}[type(value)]
