-- Storage in DuckDB: what repeats on every point (resource, metric, attributes) is stored once. The tables
-- with the column names of the Collector's ClickHouse exporter are views over it.
create table resources (resource_id integer primary key, source varchar unique, attributes map(varchar, varchar), schema_url varchar);
create table series (
    series_id integer primary key, source varchar unique, resource_id integer, kind varchar, scope_name varchar,
    scope_version varchar, metric varchar, description varchar, unit varchar, attributes map(varchar, varchar),
    temporality integer, is_monotonic boolean
);
create table numbers (series_id integer, start_unix timestamp_ns, time_unix timestamp_ns, value double, flags uinteger);
create table histograms (
    series_id integer, start_unix timestamp_ns, time_unix timestamp_ns, count ubigint, sum double,
    bucket_counts ubigint[], explicit_bounds double[], min double, max double, flags uinteger
);
create table spans (
    resource_id integer, scope_name varchar, scope_version varchar, trace_id varchar, span_id varchar,
    parent_span_id varchar, trace_state varchar, name varchar, kind varchar, start_unix timestamp_ns,
    duration_ns ubigint, attributes map(varchar, varchar), status_code varchar, status_message varchar,
    event_times timestamp_ns[], event_names varchar[], event_attributes map(varchar, varchar)[],
    link_trace_ids varchar[], link_span_ids varchar[], link_attributes map(varchar, varchar)[]
);
create table logs (
    resource_id integer, scope_name varchar, scope_version varchar, time_unix timestamp_ns, trace_id varchar,
    span_id varchar, severity_text varchar, severity_number integer, body varchar, event_name varchar,
    attributes map(varchar, varchar)
);

create view otel_metrics_gauge as
select
    r.attributes as "ResourceAttributes", r.schema_url as "ResourceSchemaUrl", s.scope_name as "ScopeName",
    s.scope_version as "ScopeVersion", coalesce(r.attributes['service.name'], '') as "ServiceName",
    s.metric as "MetricName", s.description as "MetricDescription", s.unit as "MetricUnit",
    s.attributes as "Attributes", n.start_unix as "StartTimeUnix", n.time_unix as "TimeUnix", n.value as "Value",
    n.flags as "Flags"
from numbers n join series s using (series_id) join resources r using (resource_id)
where s.kind = 'gauge';

create view otel_metrics_sum as
select
    r.attributes as "ResourceAttributes", r.schema_url as "ResourceSchemaUrl", s.scope_name as "ScopeName",
    s.scope_version as "ScopeVersion", coalesce(r.attributes['service.name'], '') as "ServiceName",
    s.metric as "MetricName", s.description as "MetricDescription", s.unit as "MetricUnit",
    s.attributes as "Attributes", n.start_unix as "StartTimeUnix", n.time_unix as "TimeUnix", n.value as "Value",
    n.flags as "Flags", s.temporality as "AggregationTemporality", s.is_monotonic as "IsMonotonic"
from numbers n join series s using (series_id) join resources r using (resource_id)
where s.kind = 'sum';

create view otel_metrics_histogram as
select
    r.attributes as "ResourceAttributes", r.schema_url as "ResourceSchemaUrl", s.scope_name as "ScopeName",
    s.scope_version as "ScopeVersion", coalesce(r.attributes['service.name'], '') as "ServiceName",
    s.metric as "MetricName", s.description as "MetricDescription", s.unit as "MetricUnit",
    s.attributes as "Attributes", h.start_unix as "StartTimeUnix", h.time_unix as "TimeUnix", h.count as "Count",
    h.sum as "Sum", h.bucket_counts as "BucketCounts", h.explicit_bounds as "ExplicitBounds", h.flags as "Flags",
    h.min as "Min", h.max as "Max", s.temporality as "AggregationTemporality"
from histograms h join series s using (series_id) join resources r using (resource_id);

create view otel_traces as
select
    t.start_unix as "Timestamp", t.trace_id as "TraceId", t.span_id as "SpanId", t.parent_span_id as "ParentSpanId",
    t.trace_state as "TraceState", t.name as "SpanName", t.kind as "SpanKind",
    coalesce(r.attributes['service.name'], '') as "ServiceName", r.attributes as "ResourceAttributes",
    t.scope_name as "ScopeName", t.scope_version as "ScopeVersion", t.attributes as "SpanAttributes",
    t.duration_ns as "Duration", t.status_code as "StatusCode", t.status_message as "StatusMessage",
    t.event_times as "Events.Timestamp", t.event_names as "Events.Name", t.event_attributes as "Events.Attributes",
    t.link_trace_ids as "Links.TraceId", t.link_span_ids as "Links.SpanId", t.link_attributes as "Links.Attributes"
from spans t join resources r using (resource_id);

create view otel_logs as
select
    l.time_unix as "Timestamp", l.trace_id as "TraceId", l.span_id as "SpanId", l.severity_text as "SeverityText",
    l.severity_number as "SeverityNumber", coalesce(r.attributes['service.name'], '') as "ServiceName",
    l.body as "Body", r.schema_url as "ResourceSchemaUrl", r.attributes as "ResourceAttributes",
    l.scope_name as "ScopeName", l.scope_version as "ScopeVersion", l.attributes as "LogAttributes",
    l.event_name as "EventName"
from logs l join resources r using (resource_id);

create macro attribute_list(source) as from_json(
    source,
    '[{"key":"VARCHAR","value":{"stringValue":"VARCHAR","intValue":"VARCHAR","doubleValue":"VARCHAR","boolValue":"VARCHAR"}}]'
);
create macro attribute_map(items) as map(
    [item."key" for item in coalesce(items, [])],
    [coalesce(item."value".stringValue, item."value".intValue, item."value".doubleValue, item."value".boolValue, '')
     for item in coalesce(items, [])]
);
create macro at_unix(nanos) as make_timestamp_ns(try_cast(nanos as bigint));
create macro temporality_number(name) as
    case when name in ('2', 'AGGREGATION_TEMPORALITY_CUMULATIVE') then 2
    when name in ('1', 'AGGREGATION_TEMPORALITY_DELTA') then 1 else 0 end;
create macro span_kind(name) as
    case when name in ('2', 'SPAN_KIND_SERVER') then 'Server' when name in ('3', 'SPAN_KIND_CLIENT') then 'Client'
    when name in ('4', 'SPAN_KIND_PRODUCER') then 'Producer' when name in ('5', 'SPAN_KIND_CONSUMER') then 'Consumer'
    when name in ('1', 'SPAN_KIND_INTERNAL') then 'Internal' else 'Unspecified' end;
create macro status_code(name) as
    case when name in ('1', 'STATUS_CODE_OK') then 'Ok' when name in ('2', 'STATUS_CODE_ERROR') then 'Error' else 'Unset' end;
