"""Runs the views on ClickHouse (chdb) in a process of its own: chdb must never be imported where anything forks.

Input on stdin: {"tables": {table: JSON lines}, "views": [...]}; output: {view: [row, …]} as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

MAP = "Map(LowCardinality(String), String)"
METRIC = f"""ResourceAttributes {MAP}, ResourceSchemaUrl String, ScopeName String, ScopeVersion String,
    ServiceName LowCardinality(String), MetricName LowCardinality(String), MetricDescription String, MetricUnit String,
    Attributes {MAP}, StartTimeUnix DateTime64(9), TimeUnix DateTime64(9), Flags UInt32"""
TABLES = {
    "otel_metrics_gauge": f"{METRIC}, Value Float64",
    "otel_metrics_sum": f"{METRIC}, Value Float64, AggregationTemporality Int32, IsMonotonic Bool",
    "otel_metrics_histogram": f"""{METRIC}, Count UInt64, Sum Float64, BucketCounts Array(UInt64),
        ExplicitBounds Array(Float64), Min Float64, Max Float64, AggregationTemporality Int32""",
    "otel_traces": f"""Timestamp DateTime64(9), TraceId String, SpanId String, ParentSpanId String, TraceState String,
        SpanName LowCardinality(String), SpanKind LowCardinality(String), ServiceName LowCardinality(String),
        ResourceAttributes {MAP}, ScopeName String, ScopeVersion String, SpanAttributes {MAP}, Duration UInt64,
        StatusCode LowCardinality(String), StatusMessage String""",
}
"""The columns of the Collector's exporter, without codecs and indexes."""


def run_views(connection, views):
    """The rows of *views* on ClickHouse, over what a DuckDB connection has in its tables."""
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        for table in TABLES:
            file = Path(folder, "rows.json")
            connection.execute(f"copy (select * from {table}) to '{file}' (format json)")
            tables[table] = file.read_text()
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps({"tables": tables, "views": list(views)}),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def _main():
    from chdb.session import Session

    from gpumon.analysis.views import create_views

    asked = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        engine = Session(folder)

        def execute(sql, output="CSV"):
            return engine.query(sql, output).bytes().decode()

        execute("create database otel")
        execute("use otel")
        for setting in (
            "join_use_nulls = 1",
            "aggregate_functions_null_for_empty = 1",
            "date_time_input_format = 'best_effort'",
        ):
            execute(f"set {setting}")
        for table, columns in TABLES.items():
            execute(f"create table {table} ({columns}) engine = MergeTree order by tuple()")
            if lines := asked["tables"][table]:
                file = Path(folder, f"{table}.jsonl")
                file.write_text(lines)
                source = f"file('{file}', JSONEachRow, '{columns}')"
                execute(f"insert into {table} settings input_format_skip_unknown_fields = 1 select * from {source}")
        create_views(execute, "clickhouse")
        rows = {
            view: [json.loads(line) for line in execute(f"select * from {view}", "JSONEachRow").splitlines()]
            for view in asked["views"]
        }
        json.dump(rows, sys.stdout)
        engine.close()


if __name__ == "__main__":
    _main()
