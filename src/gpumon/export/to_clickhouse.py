"""Into ClickHouse: rows as the Collector's exporter writes them, counted there at the end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gpumon.analysis.clickhouse.address import parse
from gpumon.analysis.clickhouse.server import Server, ServerError
from gpumon.analysis.clickhouse.tables import ATTRIBUTES, COLUMNS, of_run
from gpumon.analysis.clickhouse.text import identifier, literal
from gpumon.errors import RunError
from gpumon.export.outcome import SIGNALS, Outcome
from gpumon.export.rows import Row, rows_of

BATCH_ROWS = 10_000
_SETTINGS = {"async_insert": 0, "distributed_foreground_insert": 1}
"""So that an insert is done when it is answered, and can be counted."""
_SIGNALS = {"otel_traces": "traces", "otel_logs": "logs"}
_TIME = re.compile(r"(?:Array\()?DateTime(?:64\((\d)[^)]*\))?")


class ClickHouseTarget:
    """The tables of a database; refuses a run that is in those of *signals* already, unless it is to be replaced."""

    def __init__(self, url: str, outcome: Outcome, *, signals: Sequence[str] = SIGNALS, replace: bool = False) -> None:
        address = parse(url)
        outcome.target = str(address)
        self._outcome = outcome
        self._signals, self._replace = signals, replace
        self._server = Server(address)
        self._shapes = _shapes(self._server)
        self._waiting: dict[str, list[Row]] = {}
        self._countable: dict[str, int] = {}  # rows by table that wait and are of a run
        self._sent: dict[str, int] = {}  # such rows that were taken
        self._runs: set[str] = set()  # that are in the rows to come
        self._begun: set[str] = set()

    def __enter__(self) -> ClickHouseTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def add(self, signal: str, line: dict[str, Any]) -> None:
        for table, row in list(rows_of(signal, line)):
            if table not in self._shapes:
                self._outcome.refuse(signal, 1, f"there is no table {table}")
                continue
            waiting = self._waiting.setdefault(table, [])
            waiting.append(row)
            resource, own = self._shapes[table].attributes(row)
            if run := resource.get("gpumon.run.id") or own.get("gpumon.run.id"):
                self._countable[table] = self._countable.get(table, 0) + 1
                self._runs.add(run)
            if len(waiting) >= BATCH_ROWS:
                self._flush(table)

    def finish(self) -> None:
        for table in list(self._waiting):
            self._flush(table)
        for table, wanted in self._sent.items():
            there = sum(self._count(table, run) for run in self._begun)
            if there != wanted:
                which = "fewer" if there < wanted else "more"
                self._outcome.doubt(
                    f"{table} has {there:,} rows of the run, {which} than the {wanted:,} that were sent"
                    + ("; is it older than the table's TTL?" if there < wanted else "")
                )

    def _flush(self, table: str) -> None:
        for run in sorted(self._runs - self._begun):
            self._begin(run)
        rows, signal, shape = self._waiting.pop(table), _SIGNALS.get(table, "metrics"), self._shapes[table]
        countable = self._countable.pop(table, 0)
        try:
            self._server.insert(table, shape.names, [shape.fit(row) for row in rows], _SETTINGS)
        except ServerError as error:
            if not error.code:
                raise
            self._outcome.refuse(signal, len(rows), error.why)
        else:
            self._outcome.sent[signal] += len(rows)
            self._sent[table] = self._sent.get(table, 0) + countable

    def _begin(self, run: str) -> None:
        """Make sure that nothing of a run is there yet."""
        tables = [table for table in self._shapes if _SIGNALS.get(table, "metrics") in self._signals]
        there = {table: count for table in tables if (count := self._count(table, run))}
        if there and not self._replace:
            raise RunError(
                f"run {run} is in {self._outcome.target} already ({sum(there.values()):,} rows); "
                "`--replace` deletes them first"
            )
        for table in there:
            self._server.command(f"delete from {identifier(table)} where {of_run(table, run)}")
        self._begun.add(run)

    def _count(self, table: str, run: str) -> int:
        (row,) = self._server.query(f"select count() from {identifier(table)} where {of_run(table, run)}").rows
        return int(row[0])


class _Shape:
    """A table's columns as they are there."""

    def __init__(self, table: str, kinds: dict[str, str]) -> None:
        wanted = list(COLUMNS[table])
        self.names = [name for name in wanted if name in kinds]
        self._places = [wanted.index(name) for name in self.names]
        self._own = wanted.index(ATTRIBUTES[table])
        self._resource = wanted.index("ResourceAttributes")
        self._divisors = {
            wanted.index(name): 10 ** (9 - int(match[1] or 0))
            for name in self.names
            if (match := _TIME.match(kinds[name])) and match[1] != "9"
        }

        self._is_whole = not self._divisors and self.names == wanted

    def attributes(self, row: Row) -> tuple[dict[str, str], dict[str, str]]:
        """Of the resource, and of the row itself."""
        return row[self._resource], row[self._own]

    def fit(self, row: Row) -> Sequence[Any]:
        """The values of the columns that are there, times in the units that they have there."""
        if self._is_whole:
            return row
        return [self._time(row[place], self._divisors.get(place)) for place in self._places]

    @staticmethod
    def _time(value: Any, divisor: int | None) -> Any:
        if divisor is None:
            return value
        return [each // divisor for each in value] if isinstance(value, list) else value // divisor


def _shapes(server: Server) -> dict[str, _Shape]:
    tables = ", ".join(literal(table) for table in ATTRIBUTES)
    rows = server.query(
        f"select table, name, type from system.columns where database = currentDatabase() and table in ({tables})"
    ).rows
    kinds: dict[str, dict[str, str]] = {}
    for table, name, kind in rows:
        kinds.setdefault(table, {})[name] = kind
    if not kinds:
        raise RunError(
            f"no tables for OpenTelemetry in {server.address}: `gpumon views install --tables '{server.address}'` "
            "creates them"
        )
    return {table: _Shape(table, columns) for table, columns in kinds.items()}
