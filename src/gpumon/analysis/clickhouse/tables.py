"""Our tables: those that the Collector's ClickHouse exporter fills, with times of metrics in nanoseconds.

The exporter's own tables keep whole seconds there, in which two exports of a second are one. Names and types of the
columns are the exporter's, which inserts with `create_schema: false`; keys, codecs and indexes are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpumon.analysis.clickhouse.text import identifier, literal

MAP = "Map(LowCardinality(String), String)"
TIME = "DateTime64(9)"
_WORD = "LowCardinality(String)"
_ATTRIBUTES = ("ResourceAttributes", "ScopeAttributes", "SpanAttributes", "LogAttributes", "Attributes")

_METRIC = {
    "ResourceAttributes": MAP,
    "ResourceSchemaUrl": "String",
    "ScopeName": "String",
    "ScopeVersion": "String",
    "ScopeAttributes": MAP,
    "ScopeDroppedAttrCount": "UInt32",
    "ScopeSchemaUrl": "String",
    "ServiceName": _WORD,
    "MetricName": _WORD,
    "MetricDescription": "String",
    "MetricUnit": "String",
    "Attributes": MAP,
    "StartTimeUnix": TIME,
    "TimeUnix": TIME,
}
_EXEMPLARS = {
    "Exemplars.FilteredAttributes": f"Array({MAP})",
    "Exemplars.TimeUnix": f"Array({TIME})",
    "Exemplars.Value": "Array(Float64)",
    "Exemplars.SpanId": "Array(String)",
    "Exemplars.TraceId": "Array(String)",
}
_EXTREMES = {"Min": "Float64", "Max": "Float64", "AggregationTemporality": "Int32"}

COLUMNS: dict[str, dict[str, str]] = {
    "otel_metrics_gauge": {**_METRIC, "Value": "Float64", "Flags": "UInt32", **_EXEMPLARS},
    "otel_metrics_sum": {
        **_METRIC,
        "Value": "Float64",
        "Flags": "UInt32",
        **_EXEMPLARS,
        "AggregationTemporality": "Int32",
        "IsMonotonic": "Bool",
    },
    "otel_metrics_histogram": {
        **_METRIC,
        "Count": "UInt64",
        "Sum": "Float64",
        "BucketCounts": "Array(UInt64)",
        "ExplicitBounds": "Array(Float64)",
        **_EXEMPLARS,
        "Flags": "UInt32",
        **_EXTREMES,
    },
    "otel_metrics_exponential_histogram": {
        **_METRIC,
        "Count": "UInt64",
        "Sum": "Float64",
        "Scale": "Int32",
        "ZeroCount": "UInt64",
        "PositiveOffset": "Int32",
        "PositiveBucketCounts": "Array(UInt64)",
        "NegativeOffset": "Int32",
        "NegativeBucketCounts": "Array(UInt64)",
        **_EXEMPLARS,
        "Flags": "UInt32",
        **_EXTREMES,
    },
    "otel_metrics_summary": {
        **_METRIC,
        "Count": "UInt64",
        "Sum": "Float64",
        "ValueAtQuantiles.Quantile": "Array(Float64)",
        "ValueAtQuantiles.Value": "Array(Float64)",
        "Flags": "UInt32",
    },
    "otel_traces": {
        "Timestamp": TIME,
        "TraceId": "String",
        "SpanId": "String",
        "ParentSpanId": "String",
        "TraceState": "String",
        "SpanName": _WORD,
        "SpanKind": _WORD,
        "ServiceName": _WORD,
        "ResourceAttributes": MAP,
        "ScopeName": "String",
        "ScopeVersion": "String",
        "SpanAttributes": MAP,
        "Duration": "UInt64",
        "StatusCode": _WORD,
        "StatusMessage": "String",
        "Events.Timestamp": f"Array({TIME})",
        "Events.Name": f"Array({_WORD})",
        "Events.Attributes": f"Array({MAP})",
        "Links.TraceId": "Array(String)",
        "Links.SpanId": "Array(String)",
        "Links.TraceState": "Array(String)",
        "Links.Attributes": f"Array({MAP})",
    },
    "otel_logs": {
        "Timestamp": TIME,
        "TraceId": "String",
        "SpanId": "String",
        "TraceFlags": "UInt8",
        "SeverityText": _WORD,
        "SeverityNumber": "UInt8",
        "ServiceName": _WORD,
        "Body": "String",
        "ResourceSchemaUrl": _WORD,
        "ResourceAttributes": MAP,
        "ScopeSchemaUrl": _WORD,
        "ScopeName": "String",
        "ScopeVersion": _WORD,
        "ScopeAttributes": MAP,
        "LogAttributes": MAP,
        "EventName": "String",
    },
    "otel_traces_trace_id_ts": {"TraceId": "String", "Start": "DateTime", "End": "DateTime"},
}
"""By table, in the exporter's order. The last one tells in which seconds a trace is, for a search by its id."""

READ = ("otel_metrics_gauge", "otel_metrics_sum", "otel_metrics_histogram", "otel_traces", "otel_logs")
"""Those that the views and reports read."""

ATTRIBUTES = {
    **{table: "Attributes" for table in COLUMNS if table.startswith("otel_metrics_")},
    "otel_traces": "SpanAttributes",
    "otel_logs": "LogAttributes",
}
"""The column of a row's own attributes."""
TIMES = {table: "TimeUnix" if table.startswith("otel_metrics_") else "Timestamp" for table in ATTRIBUTES}
"""The column of a row's time."""

_KEYS = {
    "otel_traces": "ServiceName, SpanName, toDateTime(Timestamp)",
    "otel_logs": "ServiceName, toStartOfFiveMinutes(Timestamp), Timestamp",
    "otel_traces_trace_id_ts": "TraceId, Start",
}
_METRIC_KEY = "ServiceName, MetricName, toStartOfHour(TimeUnix), cityHash64(Attributes), TimeUnix"
_SHARDS = {"otel_traces": "cityHash64(TraceId)", "otel_traces_trace_id_ts": "cityHash64(TraceId)"}
_BY_PROCESS = "cityHash64(ResourceAttributes['gpumon.run.id'], ResourceAttributes['service.instance.id'])"
_TRACE_TIMES = "otel_traces_trace_id_ts"


@dataclass(frozen=True)
class Layout:
    """How tables are made."""

    ttl_days: int | None = None
    """Rows go after so many days; None: they stay."""
    cluster: str | None = None
    """Every table is a Distributed one over `<table>_local` on each node of the cluster."""
    is_replicated: bool = False
    """ReplicatedMergeTree; needs ClickHouse Keeper and the macros `shard` and `replica`."""

    def statements(self) -> Iterator[tuple[str, str]]:
        """(table, statement) of everything, each of which does nothing where it is there already."""
        for table in COLUMNS:
            yield table, self._storage(table)
        yield f"{_TRACE_TIMES}_mv", self._trace_times()
        if self.cluster is not None:
            for table in COLUMNS:
                yield table, self._distributed(table, self.cluster)

    def _local(self, table: str) -> str:
        return table if self.cluster is None else f"{table}_local"

    def _storage(self, table: str) -> str:
        columns = COLUMNS[table]
        time = TIMES.get(table, "Start")
        lines = [f"`{name}` {kind}{_codec(kind)}" for name, kind in columns.items()]
        lines += list(_indexes(columns))
        ttl = "" if self.ttl_days is None else f"\nttl toDate({time}) + toIntervalDay({self.ttl_days})"
        key = _KEYS.get(table, _METRIC_KEY)
        body = ",\n    ".join(lines)
        return (
            f"create table if not exists {self._local(table)}{self._on_cluster}\n(\n    {body}\n)\n"
            f"engine = {self._engine}\npartition by toDate({time})\norder by ({key}){ttl}\n"
            "settings ttl_only_drop_parts = 1"
        )

    def _trace_times(self) -> str:
        return (
            f"create materialized view if not exists {_TRACE_TIMES}_mv{self._on_cluster}\n"
            f"to {self._local(_TRACE_TIMES)} as\n"
            "select TraceId, toDateTime(min(Timestamp)) as Start, toDateTime(max(Timestamp)) as End\n"
            f"from {self._local('otel_traces')}\nwhere TraceId <> ''\ngroup by TraceId"
        )

    def _distributed(self, table: str, cluster: str) -> str:
        local, shard = self._local(table), _SHARDS.get(table, _BY_PROCESS)
        return (
            f"create table if not exists {table}{self._on_cluster} as {local}\n"
            f"engine = Distributed({literal(cluster)}, currentDatabase(), {local}, {shard})"
        )

    @property
    def _on_cluster(self) -> str:
        return on_cluster(self.cluster)

    @property
    def _engine(self) -> str:
        if not self.is_replicated:
            return "MergeTree"
        return "ReplicatedMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')"


def of_run(table: str, run: str) -> str:
    """The condition that a row is of a run; where the provider is the application's, rows say it themselves."""
    maps = ("ResourceAttributes", ATTRIBUTES[table])
    return " or ".join(f"{name}['gpumon.run.id'] = {literal(run)}" for name in maps)


def of_agents(table: str, nodes: Iterable[str]) -> str:
    """The condition that a row is of an agent on one of *nodes*: of what names a node only agents belong to no run."""
    names = ", ".join(map(literal, nodes))
    own = ATTRIBUTES[table]
    return (
        f"ResourceAttributes['gpumon.run.id'] = '' and {own}['gpumon.run.id'] = '' "
        f"and ResourceAttributes['gpumon.node.id'] in ({names})"
    )


def on_cluster(cluster: str | None) -> str:
    return "" if cluster is None else f" on cluster {identifier(cluster)}"


def _codec(kind: str) -> str:
    return " codec(Delta, ZSTD(1))" if kind in (TIME, "DateTime", "UInt64") else " codec(ZSTD(1))"


def _indexes(columns: dict[str, str]) -> Iterator[str]:
    """What a run, a trace or an attribute is found by."""
    for name in _ATTRIBUTES:
        if name in columns:
            yield f"index idx_{name}_keys mapKeys({name}) type bloom_filter(0.01) granularity 1"
            yield f"index idx_{name}_values mapValues({name}) type bloom_filter(0.01) granularity 1"
    if "TraceId" in columns:
        yield "index idx_TraceId TraceId type bloom_filter(0.001) granularity 1"
    if "Duration" in columns:
        yield "index idx_Duration Duration type minmax granularity 1"
    if "TimeUnix" in columns:
        yield "index idx_TimeUnix TimeUnix type minmax granularity 1"
