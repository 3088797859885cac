"""Writes the parts of docs/ that are facts of the code: `make docs`. A test fails where they differ.

docs/metrics.md     from gpumon.metrics.CATALOGUE
docs/commands.md    from `gpumon --help` and the help of every command
collector-config/clickhouse/tables.sql    from gpumon.analysis.clickhouse.tables
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
KINDS = {"gauge": "gauge", "counter": "counter", "updowncounter": "up-down counter", "histogram": "histogram"}


def metrics_page() -> str:
    from gpumon.metrics import CATALOGUE

    rows = [
        f"| `{metric.name}` | {KINDS[metric.kind]} | {metric.unit} | {metric.description} "
        f"| {' '.join(f'`{name}`' for name in metric.attributes)} |"
        for metric in CATALOGUE
    ]
    return "\n".join(
        [
            "# Metrics",
            "",
            "Written by `make docs` from `src/gpumon/metrics.py`.",
            "",
            "Names that OpenTelemetry defines (semantic conventions 1.44) are used as defined; the rest is `gpumon.*`.",
            "Units are UCUM base units; utilization is 0 to 1. What cannot be read is absent, never 0:",
            "`gpumon.collector.up` is 0 then, and its `gpumon.reason` says why.",
            "A gauge is the mean over the exporter's own window; `gpumon.disk.await` is time ÷ operations of it.",
            "",
            "| metric | kind | unit | meaning | attributes |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def commands_page() -> str:
    import click

    from gpumon.cli import commands

    settings = {**commands.context_settings, "max_content_width": 100, "terminal_width": 100}
    parts = ["# Commands", "", "Written by `make docs` from `gpumon --help`.", ""]
    context = click.Context(commands, info_name="gpumon", **settings)
    parts += ["## gpumon", "", "```text", commands.get_help(context), "```", ""]
    for name in sorted(commands.commands):
        parts += list(_help_of(commands.commands[name], name, context, settings))
    return "\n".join(line.rstrip() for line in "\n".join(parts).split("\n"))


def _help_of(command: Any, name: str, parent: Any, settings: dict[str, Any]) -> Iterator[str]:
    import click

    inner = click.Context(command, info_name=name, parent=parent, **settings)
    yield from (f"## {inner.command_path}", "", "```text", command.get_help(inner), "```", "")
    for below in sorted(getattr(command, "commands", ())):
        yield from _help_of(command.commands[below], below, inner, settings)


def tables_file() -> str:
    from gpumon.analysis.clickhouse.install import tables_script
    from gpumon.analysis.clickhouse.tables import Layout

    return tables_script(Layout())


PAGES = {
    "metrics.md": metrics_page,
    "commands.md": commands_page,
    "../collector-config/clickhouse/tables.sql": tables_file,
}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        print(f"wrote docs/{name}")
