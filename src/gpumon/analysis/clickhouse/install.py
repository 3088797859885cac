"""Puts our tables and views into a database, and looks whether they are there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from gpumon.analysis.clickhouse.address import Address
from gpumon.analysis.clickhouse.server import Server
from gpumon.analysis.clickhouse.tables import COLUMNS, READ, TIMES, Layout, on_cluster
from gpumon.analysis.clickhouse.text import identifier, literal
from gpumon.analysis.views import VIEWS, Statement, statements
from gpumon.errors import RunError
from gpumon.version import __version__


@dataclass
class Installed:
    """What an installation did."""

    created: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """What was done, for people."""
        for what, names in (("created", self.created), ("replaced", self.replaced), ("there already", self.there)):
            if names:
                yield f"{what}: {', '.join(names)}"
        yield from (f"note: {note}" for note in self.notes)


def layout_of(tables: bool, ttl_days: int | None, cluster: str | None, is_replicated: bool) -> Layout | None:
    """The layout that somebody asks for; None: no tables of ours.

    Raises:
        ValueError: what is asked for needs `--tables`.
    """
    if tables:
        return Layout(ttl_days, cluster, is_replicated)
    if ttl_days is not None or is_replicated:
        raise ValueError(f"{'--ttl-days' if ttl_days is not None else '--replicated'} is about tables: add --tables")
    return None


def script(layout: Layout | None = None, cluster: str | None = None) -> str:
    """Every statement, as `clickhouse-client` reads them: with *layout* our tables, in any case the views."""
    sql = [_of_clickhouse(statement, cluster) for statement in statements("clickhouse")]
    return (tables_script(layout) if layout is not None else "") + "".join(f"\n{each};\n" for each in sql)


def tables_script(layout: Layout) -> str:
    """The statements of our tables alone."""
    head = "-- OpenTelemetry's tables as gpumon lays them out, in the database that the client is in.\n"
    return head + "".join(f"\n{statement};\n" for _, statement in layout.statements())


def ensure_database(address: Address, cluster: str | None = None) -> bool:
    """Create the database where it is not there; whether it was created."""
    with Server(replace(address, database="")) as server:
        if server.query(f"select 1 from system.databases where name = {literal(address.database)}").rows:
            return False
        server.command(f"create database if not exists {identifier(address.database)}{on_cluster(cluster)}")
        return True


def install(server: Server, *, layout: Layout | None = None, cluster: str | None = None) -> Installed:
    """Create what is not there: with *layout* our tables, in any case the views.

    Raises:
        RunError: a table that the views read is missing, or the server refused a statement.
    """
    done = Installed()
    before = _tables(server)
    if layout is not None:
        for name, sql in layout.statements():
            server.command(sql)
            if name in before:
                done.there.append(name)
            elif name not in done.created:
                done.created.append(name)
    _check_tables(server, done)
    is_current = all(before.get(name, "").endswith(_mark()) for name in VIEWS)
    if is_current:
        done.there += VIEWS
        return done
    for statement in statements("clickhouse"):
        server.command(_of_clickhouse(statement, cluster))
        if statement.kind == "view":
            (done.replaced if statement.name in before else done.created).append(statement.name)
    return done


def check_views(server: Server) -> None:
    """Make sure that the views are there, and are those of this gpumon.

    Raises:
        RunError: they are not; with the command that repairs it.
    """
    found = _tables(server)
    repair = f"`gpumon views install '{server.address}'`"
    if missing := [name for name in VIEWS if name not in found]:
        which = "no views of gpumon" if len(missing) == len(VIEWS) else f"no view {missing[0]}"
        raise RunError(f"{which} in {server.address}: {repair} creates them")
    if other := next((found[name] for name in VIEWS if not found[name].endswith(_mark())), None):
        raise RunError(f"the views in {server.address} are of another gpumon ({other}): {repair} replaces them")


def _tables(server: Server) -> dict[str, str]:
    """Tables and views of the database, with their comments."""
    rows = server.query("select name, comment from system.tables where database = currentDatabase()").rows
    return {name: comment or "without a version" for name, comment in rows}


def _check_tables(server: Server, done: Installed) -> None:
    wanted = ", ".join(map(literal, READ))
    rows = server.query(
        "select table, name, type from system.columns "
        f"where database = currentDatabase() and table in ({wanted}) order by table, position"
    ).rows
    found: dict[str, dict[str, str]] = {}
    for table, name, kind in rows:
        found.setdefault(table, {})[name] = kind
    if missing := [table for table in READ if table not in found]:
        raise RunError(
            f"no table {', '.join(missing)} in {server.address}: the Collector's exporter creates its own when it "
            "starts; `--tables` creates ours"
        )
    if "EventName" not in found["otel_logs"]:
        raise RunError(
            f"otel_logs in {server.address} is of an old exporter: "
            "`ALTER TABLE otel_logs ADD COLUMN EventName String` repairs it"
        )
    if any(kind.startswith("JSON") for columns in found.values() for kind in columns.values()):
        raise RunError(f"the attributes in {server.address} are JSON (the exporter's `json: true`): not supported")
    if coarse := [table for table in READ if re.fullmatch(r"DateTime(\(.*)?", found[table].get(TIMES[table], ""))]:
        done.notes.append(
            f"{', '.join(coarse)}: times are whole seconds, as the Collector's exporter makes them; "
            "tables of ours (`--tables`, in a new database) keep nanoseconds"
        )
    if strange := [f"{table}.{name}" for table in READ for name in COLUMNS[table] if name not in found[table]]:
        done.notes.append(f"columns that the exporter fills and that are not there: {', '.join(strange)}")


def _of_clickhouse(statement: Statement, cluster: str | None) -> str:
    head = f"create or replace {statement.kind} {statement.name}"
    sql = statement.sql.replace(head, head + on_cluster(cluster), 1)
    return sql if statement.kind == "function" else f"{sql}\ncomment {literal(f'gpumon {__version__} {_mark()}')}"


def _mark() -> str:
    """Of the views' text: the same as long as they are."""
    text = "\n".join(statement.sql for statement in statements("clickhouse"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
