"""ClickHouse's engine, and the real Collector in front of it, which writes what arrives three times over.

Into the database `theirs`, whose tables the Collector's exporter made; into `ours`, whose tables are gpumon's; into a
file of OTLP lines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from otel_collector import OTELCOL, free_port
from otlp_receiver import eventually
from peers import ClickHouse, Peer

DATABASES = ("ours", "theirs")

_CONFIG = """
receivers:
  otlp:
    protocols:
      http: {{endpoint: "127.0.0.1:{http}"}}
      grpc: {{endpoint: "127.0.0.1:{grpc}"}}
exporters:
  clickhouse/theirs: {{endpoint: "{clickhouse}/default", database: theirs, create_schema: true, compress: none}}
  clickhouse/ours: {{endpoint: "{clickhouse}/default", database: ours, create_schema: false, compress: none}}
  file: {{path: {file}, flush_interval: 50ms}}
extensions:
  health_check: {{endpoint: "127.0.0.1:{health}"}}
service:
  extensions: [health_check]
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    traces: {{receivers: [otlp], exporters: [clickhouse/theirs, clickhouse/ours, file]}}
    metrics: {{receivers: [otlp], exporters: [clickhouse/theirs, clickhouse/ours, file]}}
    logs: {{receivers: [otlp], exporters: [clickhouse/theirs, clickhouse/ours, file]}}
"""
TABLES = ("otel_metrics_gauge", "otel_metrics_sum", "otel_metrics_histogram", "otel_traces", "otel_logs")


class Gateway(Peer):
    """The Collector; `http` and `grpc` take OTLP, `file` is what it wrote."""

    def __init__(self, folder: Path, clickhouse: ClickHouse) -> None:
        assert OTELCOL is not None
        folder.mkdir(parents=True)
        self.clickhouse = clickhouse
        self.file = folder / "otlp.jsonl"
        ports = {name: free_port() for name in ("http", "grpc", "health")}
        self.http, self.grpc = (f"http://127.0.0.1:{ports[name]}" for name in ("http", "grpc"))
        config = folder / "config.yaml"
        config.write_text(_CONFIG.format(file=self.file, clickhouse=clickhouse.url, **ports))
        super().__init__(folder, [OTELCOL, "--config", config], f"http://127.0.0.1:{ports['health']}")

    def wait_for(self, run_id: str, spans: int, points: int, logs: int) -> None:
        """Until both databases have so much of a run, and not a row more."""
        wanted = {"spans": spans, "points": points, "logs": logs}
        for database in DATABASES:
            try:
                eventually(lambda database=database: self.count(database, run_id) == wanted, timeout_s=60)
            except AssertionError:
                found, said = self.count(database, run_id), self.log.read_text()[-3000:]
                raise AssertionError(f"{database} has {found}, not {wanted}\n{said}") from None

    def count(self, database: str, run_id: str) -> dict[str, int]:
        counts = dict.fromkeys(("points", "spans", "logs"), 0)
        for table in TABLES:
            name = {"otel_traces": "spans", "otel_logs": "logs"}.get(table, "points")
            own = {"spans": "SpanAttributes", "logs": "LogAttributes"}.get(name, "Attributes")
            (row,) = self.clickhouse.query(
                f"select toInt64(count()) as n from {database}.{table} where ResourceAttributes['gpumon.run.id'] = "
                f"'{run_id}' or {own}['gpumon.run.id'] = '{run_id}'"
            )
            counts[name] += int(row["n"])
        return counts


def address(clickhouse: ClickHouse, database: str, run_id: str = "") -> str:
    """As users write it."""
    return f"clickhouse://127.0.0.1:{clickhouse.port}/{database}" + (f"?run={run_id}" if run_id else "")


def items(run: Path) -> dict[str, int]:
    """How many spans, points and events of the run's own processes the plain files of its directory hold."""
    counts = dict.fromkeys(("spans", "points", "logs"), 0)
    for path in run.glob("*.*.jsonl"):
        for text in path.read_text().splitlines():
            for kind, count in _of_line(json.loads(text)):
                counts[kind] += count
    return counts


def _of_line(line: dict[str, Any]) -> list[tuple[str, int]]:
    found = []
    for resource in (resource for value in line.values() for resource in value):
        for scope in resource.get("scopeSpans", ()):
            found.append(("spans", len(scope["spans"])))
        for scope in resource.get("scopeLogs", ()):
            found.append(("logs", len(scope["logRecords"])))
        for scope in resource.get("scopeMetrics", ()):
            for metric in scope["metrics"]:
                data = next(metric[kind] for kind in ("gauge", "sum", "histogram") if kind in metric)
                found.append(("points", len(data["dataPoints"])))
    return found
