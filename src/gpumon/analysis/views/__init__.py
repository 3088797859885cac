"""The SQL views: one text for DuckDB and ClickHouse; `shims.<engine>.sql` holds what the engines name differently.

Portable subset: `case when` inside aggregates, `nullif(map['key'], '')` for a key that may be missing,
`gpumon_nullable` inside `lag`, every subquery named, no alias that hides a column it is made of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VIEWS = (
    "stg_points",
    "stg_counters",
    "stg_windows",
    "stg_histograms",
    "stg_spans",
    "gpumon_runs",
    "gpumon_processes",
    "gpumon_totals",
    "gpumon_phases",
    "gpumon_datasets",
    "gpumon_disks",
    "gpumon_gpus",
    "gpumon_collectors",
    "gpumon_limits",
    "gpumon_fetch_accounts",
    "gpumon_fetches",
    "stg_agent_windows",
    "gpumon_device_windows",
    "gpumon_windows",
    "gpumon_correlations",
    "gpumon_disk_health",
    "gpumon_physical_disks",
    "gpumon_steps",
    "gpumon_slow_steps",
)
"""In the order in which they build on each other."""


HELD = ("stg_windows", "stg_counters")
"""Views that most others read more than once: an embedded engine keeps their rows (`hold_rows`)."""


SETTINGS = {"duckdb": "", "clickhouse": "join_use_nulls = 1, aggregate_functions_null_for_empty = 1"}
"""What a query needs so that what is absent is null; the views have it in themselves."""


@dataclass(frozen=True)
class Statement:
    """One statement: `create or replace <kind> <name> …`."""

    kind: str  # view, or what the engine calls a function
    name: str
    sql: str


def statements(engine: str) -> Iterator[Statement]:
    """The shims of *engine* (`duckdb` or `clickhouse`) and every view, in order."""
    for sql in re.sub(r"^--.*\n", "", text(f"shims.{engine}"), flags=re.M).split(";"):
        if match := re.match(r"\s*create or replace (\w+) (\w+)", sql):
            yield Statement(match[1], match[2], sql.strip())
    settings = f"\nsettings {SETTINGS[engine]}" if SETTINGS[engine] else ""
    for name in VIEWS:
        yield Statement("view", name, text(name).rstrip() + settings)


def create_views(execute: Callable[[str], Any], engine: str) -> None:
    """Create the shims of *engine* and every view; one statement per call."""
    for statement in statements(engine):
        execute(statement.sql)


def hold_rows(execute: Callable[[str], Any], *, again: bool) -> None:
    """Turn the views in `HELD` into tables of their rows as of now; *again*: they are tables already."""
    for name in HELD:
        execute(f"drop {'table' if again else 'view'} {name}")
        execute(text(name).replace("create or replace view", "create table", 1))


def text(name: str) -> str:
    """The SQL of one view."""
    return (Path(__file__).parent / f"{name}.sql").read_text(encoding="utf-8")
