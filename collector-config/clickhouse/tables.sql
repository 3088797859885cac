-- OpenTelemetry's tables as gpumon lays them out, in the database that the client is in.

create table if not exists otel_metrics_gauge
(
    `ResourceAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ResourceSchemaUrl` String codec(ZSTD(1)),
    `ScopeName` String codec(ZSTD(1)),
    `ScopeVersion` String codec(ZSTD(1)),
    `ScopeAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ScopeDroppedAttrCount` UInt32 codec(ZSTD(1)),
    `ScopeSchemaUrl` String codec(ZSTD(1)),
    `ServiceName` LowCardinality(String) codec(ZSTD(1)),
    `MetricName` LowCardinality(String) codec(ZSTD(1)),
    `MetricDescription` String codec(ZSTD(1)),
    `MetricUnit` String codec(ZSTD(1)),
    `Attributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `StartTimeUnix` DateTime64(9) codec(Delta, ZSTD(1)),
    `TimeUnix` DateTime64(9) codec(Delta, ZSTD(1)),
    `Value` Float64 codec(ZSTD(1)),
    `Flags` UInt32 codec(ZSTD(1)),
    `Exemplars.FilteredAttributes` Array(Map(LowCardinality(String), String)) codec(ZSTD(1)),
    `Exemplars.TimeUnix` Array(DateTime64(9)) codec(ZSTD(1)),
    `Exemplars.Value` Array(Float64) codec(ZSTD(1)),
    `Exemplars.SpanId` Array(String) codec(ZSTD(1)),
    `Exemplars.TraceId` Array(String) codec(ZSTD(1)),
    index idx_ResourceAttributes_keys mapKeys(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ResourceAttributes_values mapValues(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_keys mapKeys(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_values mapValues(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_Attributes_keys mapKeys(Attributes) type bloom_filter(0.01) granularity 1,
    index idx_Attributes_values mapValues(Attributes) type bloom_filter(0.01) granularity 1,
    index idx_TimeUnix TimeUnix type minmax granularity 1
)
engine = MergeTree
partition by toDate(TimeUnix)
order by (ServiceName, MetricName, toStartOfHour(TimeUnix), cityHash64(Attributes), TimeUnix)
settings ttl_only_drop_parts = 1;

create table if not exists otel_metrics_sum
(
    `ResourceAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ResourceSchemaUrl` String codec(ZSTD(1)),
    `ScopeName` String codec(ZSTD(1)),
    `ScopeVersion` String codec(ZSTD(1)),
    `ScopeAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ScopeDroppedAttrCount` UInt32 codec(ZSTD(1)),
    `ScopeSchemaUrl` String codec(ZSTD(1)),
    `ServiceName` LowCardinality(String) codec(ZSTD(1)),
    `MetricName` LowCardinality(String) codec(ZSTD(1)),
    `MetricDescription` String codec(ZSTD(1)),
    `MetricUnit` String codec(ZSTD(1)),
    `Attributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `StartTimeUnix` DateTime64(9) codec(Delta, ZSTD(1)),
    `TimeUnix` DateTime64(9) codec(Delta, ZSTD(1)),
    `Value` Float64 codec(ZSTD(1)),
    `Flags` UInt32 codec(ZSTD(1)),
    `Exemplars.FilteredAttributes` Array(Map(LowCardinality(String), String)) codec(ZSTD(1)),
    `Exemplars.TimeUnix` Array(DateTime64(9)) codec(ZSTD(1)),
    `Exemplars.Value` Array(Float64) codec(ZSTD(1)),
    `Exemplars.SpanId` Array(String) codec(ZSTD(1)),
    `Exemplars.TraceId` Array(String) codec(ZSTD(1)),
    `AggregationTemporality` Int32 codec(ZSTD(1)),
    `IsMonotonic` Bool codec(ZSTD(1)),
    index idx_ResourceAttributes_keys mapKeys(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ResourceAttributes_values mapValues(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_keys mapKeys(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_values mapValues(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_Attributes_keys mapKeys(Attributes) type bloom_filter(0.01) granularity 1,
    index idx_Attributes_values mapValues(Attributes) type bloom_filter(0.01) granularity 1,
    index idx_TimeUnix TimeUnix type minmax granularity 1
)
engine = MergeTree
partition by toDate(TimeUnix)
order by (ServiceName, MetricName, toStartOfHour(TimeUnix), cityHash64(Attributes), TimeUnix)
settings ttl_only_drop_parts = 1;

create table if not exists otel_metrics_histogram
(
    `ResourceAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ResourceSchemaUrl` String codec(ZSTD(1)),
    `ScopeName` String codec(ZSTD(1)),
    `ScopeVersion` String codec(ZSTD(1)),
    `ScopeAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ScopeDroppedAttrCount` UInt32 codec(ZSTD(1)),
    `ScopeSchemaUrl` String codec(ZSTD(1)),
    `ServiceName` LowCardinality(String) codec(ZSTD(1)),
    `MetricName` LowCardinality(String) codec(ZSTD(1)),
    `MetricDescription` String codec(ZSTD(1)),
    `MetricUnit` String codec(ZSTD(1)),
    `Attributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `StartTimeUnix` DateTime64(9) codec(Delta, ZSTD(1)),
    `TimeUnix` DateTime64(9) codec(Delta, ZSTD(1)),
    `Count` UInt64 codec(Delta, ZSTD(1)),
    `Sum` Float64 codec(ZSTD(1)),
    `BucketCounts` Array(UInt64) codec(ZSTD(1)),
    `ExplicitBounds` Array(Float64) codec(ZSTD(1)),
    `Exemplars.FilteredAttributes` Array(Map(LowCardinality(String), String)) codec(ZSTD(1)),
    `Exemplars.TimeUnix` Array(DateTime64(9)) codec(ZSTD(1)),
    `Exemplars.Value` Array(Float64) codec(ZSTD(1)),
    `Exemplars.SpanId` Array(String) codec(ZSTD(1)),
    `Exemplars.TraceId` Array(String) codec(ZSTD(1)),
    `Flags` UInt32 codec(ZSTD(1)),
    `Min` Float64 codec(ZSTD(1)),
    `Max` Float64 codec(ZSTD(1)),
    `AggregationTemporality` Int32 codec(ZSTD(1)),
    index idx_ResourceAttributes_keys mapKeys(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ResourceAttributes_values mapValues(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_keys mapKeys(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_values mapValues(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_Attributes_keys mapKeys(Attributes) type bloom_filter(0.01) granularity 1,
    index idx_Attributes_values mapValues(Attributes) type bloom_filter(0.01) granularity 1,
    index idx_TimeUnix TimeUnix type minmax granularity 1
)
engine = MergeTree
partition by toDate(TimeUnix)
order by (ServiceName, MetricName, toStartOfHour(TimeUnix), cityHash64(Attributes), TimeUnix)
settings ttl_only_drop_parts = 1;

create table if not exists otel_metrics_exponential_histogram
(
    `ResourceAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ResourceSchemaUrl` String codec(ZSTD(1)),
    `ScopeName` String codec(ZSTD(1)),
    `ScopeVersion` String codec(ZSTD(1)),
    `ScopeAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ScopeDroppedAttrCount` UInt32 codec(ZSTD(1)),
    `ScopeSchemaUrl` String codec(ZSTD(1)),
    `ServiceName` LowCardinality(String) codec(ZSTD(1)),
    `MetricName` LowCardinality(String) codec(ZSTD(1)),
    `MetricDescription` String codec(ZSTD(1)),
    `MetricUnit` String codec(ZSTD(1)),
    `Attributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `StartTimeUnix` DateTime64(9) codec(Delta, ZSTD(1)),
    `TimeUnix` DateTime64(9) codec(Delta, ZSTD(1)),
    `Count` UInt64 codec(Delta, ZSTD(1)),
    `Sum` Float64 codec(ZSTD(1)),
    `Scale` Int32 codec(ZSTD(1)),
    `ZeroCount` UInt64 codec(Delta, ZSTD(1)),
    `PositiveOffset` Int32 codec(ZSTD(1)),
    `PositiveBucketCounts` Array(UInt64) codec(ZSTD(1)),
    `NegativeOffset` Int32 codec(ZSTD(1)),
    `NegativeBucketCounts` Array(UInt64) codec(ZSTD(1)),
    `Exemplars.FilteredAttributes` Array(Map(LowCardinality(String), String)) codec(ZSTD(1)),
    `Exemplars.TimeUnix` Array(DateTime64(9)) codec(ZSTD(1)),
    `Exemplars.Value` Array(Float64) codec(ZSTD(1)),
    `Exemplars.SpanId` Array(String) codec(ZSTD(1)),
    `Exemplars.TraceId` Array(String) codec(ZSTD(1)),
    `Flags` UInt32 codec(ZSTD(1)),
    `Min` Float64 codec(ZSTD(1)),
    `Max` Float64 codec(ZSTD(1)),
    `AggregationTemporality` Int32 codec(ZSTD(1)),
    index idx_ResourceAttributes_keys mapKeys(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ResourceAttributes_values mapValues(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_keys mapKeys(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_values mapValues(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_Attributes_keys mapKeys(Attributes) type bloom_filter(0.01) granularity 1,
    index idx_Attributes_values mapValues(Attributes) type bloom_filter(0.01) granularity 1,
    index idx_TimeUnix TimeUnix type minmax granularity 1
)
engine = MergeTree
partition by toDate(TimeUnix)
order by (ServiceName, MetricName, toStartOfHour(TimeUnix), cityHash64(Attributes), TimeUnix)
settings ttl_only_drop_parts = 1;

create table if not exists otel_metrics_summary
(
    `ResourceAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ResourceSchemaUrl` String codec(ZSTD(1)),
    `ScopeName` String codec(ZSTD(1)),
    `ScopeVersion` String codec(ZSTD(1)),
    `ScopeAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ScopeDroppedAttrCount` UInt32 codec(ZSTD(1)),
    `ScopeSchemaUrl` String codec(ZSTD(1)),
    `ServiceName` LowCardinality(String) codec(ZSTD(1)),
    `MetricName` LowCardinality(String) codec(ZSTD(1)),
    `MetricDescription` String codec(ZSTD(1)),
    `MetricUnit` String codec(ZSTD(1)),
    `Attributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `StartTimeUnix` DateTime64(9) codec(Delta, ZSTD(1)),
    `TimeUnix` DateTime64(9) codec(Delta, ZSTD(1)),
    `Count` UInt64 codec(Delta, ZSTD(1)),
    `Sum` Float64 codec(ZSTD(1)),
    `ValueAtQuantiles.Quantile` Array(Float64) codec(ZSTD(1)),
    `ValueAtQuantiles.Value` Array(Float64) codec(ZSTD(1)),
    `Flags` UInt32 codec(ZSTD(1)),
    index idx_ResourceAttributes_keys mapKeys(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ResourceAttributes_values mapValues(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_keys mapKeys(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_values mapValues(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_Attributes_keys mapKeys(Attributes) type bloom_filter(0.01) granularity 1,
    index idx_Attributes_values mapValues(Attributes) type bloom_filter(0.01) granularity 1,
    index idx_TimeUnix TimeUnix type minmax granularity 1
)
engine = MergeTree
partition by toDate(TimeUnix)
order by (ServiceName, MetricName, toStartOfHour(TimeUnix), cityHash64(Attributes), TimeUnix)
settings ttl_only_drop_parts = 1;

create table if not exists otel_traces
(
    `Timestamp` DateTime64(9) codec(Delta, ZSTD(1)),
    `TraceId` String codec(ZSTD(1)),
    `SpanId` String codec(ZSTD(1)),
    `ParentSpanId` String codec(ZSTD(1)),
    `TraceState` String codec(ZSTD(1)),
    `SpanName` LowCardinality(String) codec(ZSTD(1)),
    `SpanKind` LowCardinality(String) codec(ZSTD(1)),
    `ServiceName` LowCardinality(String) codec(ZSTD(1)),
    `ResourceAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ScopeName` String codec(ZSTD(1)),
    `ScopeVersion` String codec(ZSTD(1)),
    `SpanAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `Duration` UInt64 codec(Delta, ZSTD(1)),
    `StatusCode` LowCardinality(String) codec(ZSTD(1)),
    `StatusMessage` String codec(ZSTD(1)),
    `Events.Timestamp` Array(DateTime64(9)) codec(ZSTD(1)),
    `Events.Name` Array(LowCardinality(String)) codec(ZSTD(1)),
    `Events.Attributes` Array(Map(LowCardinality(String), String)) codec(ZSTD(1)),
    `Links.TraceId` Array(String) codec(ZSTD(1)),
    `Links.SpanId` Array(String) codec(ZSTD(1)),
    `Links.TraceState` Array(String) codec(ZSTD(1)),
    `Links.Attributes` Array(Map(LowCardinality(String), String)) codec(ZSTD(1)),
    index idx_ResourceAttributes_keys mapKeys(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ResourceAttributes_values mapValues(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_SpanAttributes_keys mapKeys(SpanAttributes) type bloom_filter(0.01) granularity 1,
    index idx_SpanAttributes_values mapValues(SpanAttributes) type bloom_filter(0.01) granularity 1,
    index idx_TraceId TraceId type bloom_filter(0.001) granularity 1,
    index idx_Duration Duration type minmax granularity 1
)
engine = MergeTree
partition by toDate(Timestamp)
order by (ServiceName, SpanName, toDateTime(Timestamp))
settings ttl_only_drop_parts = 1;

create table if not exists otel_logs
(
    `Timestamp` DateTime64(9) codec(Delta, ZSTD(1)),
    `TraceId` String codec(ZSTD(1)),
    `SpanId` String codec(ZSTD(1)),
    `TraceFlags` UInt8 codec(ZSTD(1)),
    `SeverityText` LowCardinality(String) codec(ZSTD(1)),
    `SeverityNumber` UInt8 codec(ZSTD(1)),
    `ServiceName` LowCardinality(String) codec(ZSTD(1)),
    `Body` String codec(ZSTD(1)),
    `ResourceSchemaUrl` LowCardinality(String) codec(ZSTD(1)),
    `ResourceAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `ScopeSchemaUrl` LowCardinality(String) codec(ZSTD(1)),
    `ScopeName` String codec(ZSTD(1)),
    `ScopeVersion` LowCardinality(String) codec(ZSTD(1)),
    `ScopeAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `LogAttributes` Map(LowCardinality(String), String) codec(ZSTD(1)),
    `EventName` String codec(ZSTD(1)),
    index idx_ResourceAttributes_keys mapKeys(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ResourceAttributes_values mapValues(ResourceAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_keys mapKeys(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_ScopeAttributes_values mapValues(ScopeAttributes) type bloom_filter(0.01) granularity 1,
    index idx_LogAttributes_keys mapKeys(LogAttributes) type bloom_filter(0.01) granularity 1,
    index idx_LogAttributes_values mapValues(LogAttributes) type bloom_filter(0.01) granularity 1,
    index idx_TraceId TraceId type bloom_filter(0.001) granularity 1
)
engine = MergeTree
partition by toDate(Timestamp)
order by (ServiceName, toStartOfFiveMinutes(Timestamp), Timestamp)
settings ttl_only_drop_parts = 1;

create table if not exists otel_traces_trace_id_ts
(
    `TraceId` String codec(ZSTD(1)),
    `Start` DateTime codec(Delta, ZSTD(1)),
    `End` DateTime codec(Delta, ZSTD(1)),
    index idx_TraceId TraceId type bloom_filter(0.001) granularity 1
)
engine = MergeTree
partition by toDate(Start)
order by (TraceId, Start)
settings ttl_only_drop_parts = 1;

create materialized view if not exists otel_traces_trace_id_ts_mv
to otel_traces_trace_id_ts as
select TraceId, toDateTime(min(Timestamp)) as Start, toDateTime(max(Timestamp)) as End
from otel_traces
where TraceId <> ''
group by TraceId;
