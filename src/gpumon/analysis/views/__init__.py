"""The SQL views: one text for DuckDB and ClickHouse; `shims.<engine>.sql` holds what the engines name differently.

Portable subset: `case when` inside aggregates, `nullif(map['key'], '')` for a key that may be missing,
`gpumon_nullable` inside `lag`, every subquery named, no alias that hides a column it is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

VIEWS = (
    "stg_points",
    "stg_counters",
    "stg_windows",
    "stg_histograms",
    "stg_spans",
    "gpumon_totals",
    "gpumon_phases",
    "gpumon_datasets",
    "gpumon_disks",
    "gpumon_gpus",
    "gpumon_collectors",
    "gpumon_limits",
    "gpumon_fetch_accounts",
    "gpumon_fetches",
    "gpumon_device_windows",
    "gpumon_windows",
    "gpumon_correlations",
    "gpumon_disk_health",
    "gpumon_steps",
    "gpumon_slow_steps",
)
"""In the order in which they build on each other."""


HELD = ("stg_windows", "stg_counters")
"""Views that most others read more than once: an embedded engine keeps their rows (`hold_rows`)."""


def create_views(execute: Callable[[str], Any], engine: str) -> None:
    """Create the shims of *engine* (`duckdb` or `clickhouse`) and every view; one statement per call."""
    for statement in text(f"shims.{engine}").split(";"):
        if statement.strip():
            execute(statement)
    for name in VIEWS:
        execute(text(name))


def hold_rows(execute: Callable[[str], Any], *, again: bool) -> None:
    """Turn the views in `HELD` into tables of their rows as of now; *again*: they are tables already."""
    for name in HELD:
        execute(f"drop {'table' if again else 'view'} {name}")
        execute(text(name).replace("create or replace view", "create table", 1))


def text(name: str) -> str:
    """The SQL of one view."""
    return (Path(__file__).parent / f"{name}.sql").read_text(encoding="utf-8")
