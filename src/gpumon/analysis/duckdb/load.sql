-- The OTLP lines of one file, {path}, into the storage tables. Attributes stay JSON text until they are known
-- to be new. List comprehensions, because DuckDB changed the syntax of lambdas between releases.
create or replace temp table lines as
select * from read_json('{path}', format = 'newline_delimited', records = true, maximum_object_size = {longest},
    columns = {
        resourceMetrics: 'STRUCT(resource JSON, schemaUrl VARCHAR, scopeMetrics STRUCT("scope" STRUCT("name" VARCHAR, "version" VARCHAR),
            metrics STRUCT("name" VARCHAR, description VARCHAR, unit VARCHAR,
                gauge STRUCT(dataPoints STRUCT(attributes JSON, startTimeUnixNano VARCHAR, timeUnixNano VARCHAR, asDouble VARCHAR, asInt VARCHAR, flags UINTEGER)[]),
                sum STRUCT(aggregationTemporality VARCHAR, isMonotonic BOOLEAN, dataPoints STRUCT(attributes JSON, startTimeUnixNano VARCHAR, timeUnixNano VARCHAR, asDouble VARCHAR, asInt VARCHAR, flags UINTEGER)[]),
                histogram STRUCT(aggregationTemporality VARCHAR, dataPoints STRUCT(attributes JSON, startTimeUnixNano VARCHAR, timeUnixNano VARCHAR, "count" VARCHAR, "sum" VARCHAR, bucketCounts VARCHAR[], explicitBounds VARCHAR[], "min" VARCHAR, "max" VARCHAR, flags UINTEGER)[]))[])[])[]',
        resourceSpans: 'STRUCT(resource JSON, schemaUrl VARCHAR, scopeSpans STRUCT("scope" STRUCT("name" VARCHAR, "version" VARCHAR),
            spans STRUCT(traceId VARCHAR, spanId VARCHAR, parentSpanId VARCHAR, traceState VARCHAR, "name" VARCHAR, kind VARCHAR, startTimeUnixNano VARCHAR, endTimeUnixNano VARCHAR,
                attributes JSON, status STRUCT(code VARCHAR, message VARCHAR),
                events STRUCT(timeUnixNano VARCHAR, "name" VARCHAR, attributes JSON)[],
                links STRUCT(traceId VARCHAR, spanId VARCHAR, attributes JSON)[])[])[])[]',
        resourceLogs: 'STRUCT(resource JSON, schemaUrl VARCHAR, scopeLogs STRUCT("scope" STRUCT("name" VARCHAR, "version" VARCHAR),
            logRecords STRUCT(timeUnixNano VARCHAR, observedTimeUnixNano VARCHAR, severityNumber VARCHAR, severityText VARCHAR, body JSON, traceId VARCHAR, spanId VARCHAR, eventName VARCHAR, attributes JSON)[])[])[]'
    });

create or replace temp table entries as
select 'metrics' as signal, coalesce(e.resource::varchar, '') as resource, coalesce(e.schemaUrl, '') as schema_url,
    e.scopeMetrics as metrics, null as spans, null as logs
from (select unnest(resourceMetrics) as e from lines)
union all by name
select 'spans' as signal, coalesce(e.resource::varchar, '') as resource, coalesce(e.schemaUrl, '') as schema_url, e.scopeSpans as spans
from (select unnest(resourceSpans) as e from lines)
union all by name
select 'logs' as signal, coalesce(e.resource::varchar, '') as resource, coalesce(e.schemaUrl, '') as schema_url, e.scopeLogs as logs
from (select unnest(resourceLogs) as e from lines);
drop table lines;

insert into resources
select (select count(*) from resources) + row_number() over () - 1, source, attribute_map(attribute_list(resource -> '$.attributes')), schema_url
from (
    select distinct concat(schema_url, resource) as source, nullif(resource, '')::json as resource, schema_url from entries
    where concat(schema_url, resource) not in (select source from resources)
);

create or replace temp table points as
with scopes as (
    select r.resource_id, unnest(e.metrics) as s from entries e join resources r on r.source = concat(e.schema_url, e.resource)
    where e.signal = 'metrics'
), metrics as (
    select resource_id, s."scope" as scope, unnest(s.metrics) as m from scopes
), numbers as (
    select resource_id, scope, m, 'gauge' as kind, null as temporality, null as is_monotonic, unnest(m.gauge.dataPoints) as p
    from metrics where m.gauge is not null
    union all
    select resource_id, scope, m, 'sum', m.sum.aggregationTemporality, coalesce(m.sum.isMonotonic, false), unnest(m.sum.dataPoints)
    from metrics where m.sum is not null
)
select
    concat_ws(chr(31), resource_id, scope."name", scope."version", m."name", m.unit, kind, temporality, is_monotonic, p.attributes::varchar) as source,
    resource_id, coalesce(scope."name", '') as scope_name, coalesce(scope."version", '') as scope_version,
    m."name" as metric, coalesce(m.description, '') as description, coalesce(m.unit, '') as unit, kind,
    temporality_number(temporality) as temporality, is_monotonic, p.attributes as attributes,
    at_unix(p.startTimeUnixNano) as start_unix, at_unix(p.timeUnixNano) as time_unix,
    coalesce(try_cast(p.asDouble as double), try_cast(p.asInt as double)) as value, coalesce(p.flags, 0) as flags
from numbers;

create or replace temp table histogram_points as
with scopes as (
    select r.resource_id, unnest(e.metrics) as s from entries e join resources r on r.source = concat(e.schema_url, e.resource)
    where e.signal = 'metrics'
), metrics as (
    select resource_id, s."scope" as scope, unnest(s.metrics) as m from scopes
), points as (
    select resource_id, scope, m, unnest(m.histogram.dataPoints) as p from metrics where m.histogram is not null
)
select
    concat_ws(chr(31), resource_id, scope."name", scope."version", m."name", m.unit, 'histogram', m.histogram.aggregationTemporality, p.attributes::varchar) as source,
    resource_id, coalesce(scope."name", '') as scope_name, coalesce(scope."version", '') as scope_version,
    m."name" as metric, coalesce(m.description, '') as description, coalesce(m.unit, '') as unit, 'histogram' as kind,
    temporality_number(m.histogram.aggregationTemporality) as temporality, null::boolean as is_monotonic, p.attributes as attributes,
    at_unix(p.startTimeUnixNano) as start_unix, at_unix(p.timeUnixNano) as time_unix,
    coalesce(try_cast(p."count" as ubigint), 0) as count, coalesce(try_cast(p."sum" as double), 0) as sum,
    [cast(c as ubigint) for c in coalesce(p.bucketCounts, [])] as bucket_counts,
    [cast(b as double) for b in coalesce(p.explicitBounds, [])] as explicit_bounds,
    try_cast(p."min" as double) as min, try_cast(p."max" as double) as max, coalesce(p.flags, 0) as flags
from points;

insert into series
select (select count(*) from series) + row_number() over () - 1, source, resource_id, kind, scope_name, scope_version, metric,
    description, unit, attribute_map(attribute_list(attributes)), temporality, is_monotonic
from (
    select source, any_value(resource_id) as resource_id, any_value(kind) as kind, any_value(scope_name) as scope_name,
        any_value(scope_version) as scope_version, any_value(metric) as metric, any_value(description) as description,
        any_value(unit) as unit, any_value(attributes) as attributes, any_value(temporality) as temporality,
        any_value(is_monotonic) as is_monotonic
    from (
        select source, resource_id, kind, scope_name, scope_version, metric, description, unit, attributes, temporality, is_monotonic from points
        union all
        select source, resource_id, kind, scope_name, scope_version, metric, description, unit, attributes, temporality, is_monotonic from histogram_points
    )
    where source not in (select source from series)
    group by source
);

insert into numbers
select s.series_id, p.start_unix, p.time_unix, p.value, p.flags from points p join series s using (source)
where p.value is not null and p.time_unix is not null;

insert into histograms
select s.series_id, p.start_unix, p.time_unix, p.count, p.sum, p.bucket_counts, p.explicit_bounds, p.min, p.max, p.flags
from histogram_points p join series s using (source)
where p.time_unix is not null;
drop table points;
drop table histogram_points;

insert into spans
with scopes as (
    select r.resource_id, unnest(e.spans) as s from entries e join resources r on r.source = concat(e.schema_url, e.resource)
    where e.signal = 'spans'
), spans as (
    select resource_id, s."scope" as scope, unnest(s.spans) as t from scopes
)
select
    resource_id, coalesce(scope."name", ''), coalesce(scope."version", ''), coalesce(t.traceId, ''), coalesce(t.spanId, ''),
    coalesce(t.parentSpanId, ''), coalesce(t.traceState, ''), coalesce(t."name", ''), span_kind(t.kind), at_unix(t.startTimeUnixNano),
    greatest(0, try_cast(t.endTimeUnixNano as bigint) - try_cast(t.startTimeUnixNano as bigint)),
    attribute_map(attribute_list(t.attributes)), status_code(t.status.code), coalesce(t.status.message, ''),
    [at_unix(e.timeUnixNano) for e in coalesce(t.events, [])], [coalesce(e."name", '') for e in coalesce(t.events, [])],
    [attribute_map(attribute_list(e.attributes)) for e in coalesce(t.events, [])],
    [coalesce(l.traceId, '') for l in coalesce(t.links, [])], [coalesce(l.spanId, '') for l in coalesce(t.links, [])],
    [attribute_map(attribute_list(l.attributes)) for l in coalesce(t.links, [])]
from spans
where at_unix(t.startTimeUnixNano) is not null;

insert into logs
with scopes as (
    select r.resource_id, unnest(e.logs) as s from entries e join resources r on r.source = concat(e.schema_url, e.resource)
    where e.signal = 'logs'
), records as (
    select resource_id, s."scope" as scope, unnest(s.logRecords) as l from scopes
)
select
    resource_id, coalesce(scope."name", ''), coalesce(scope."version", ''),
    coalesce(at_unix(nullif(l.timeUnixNano, '0')), at_unix(l.observedTimeUnixNano)), coalesce(l.traceId, ''), coalesce(l.spanId, ''),
    coalesce(l.severityText, ''), coalesce(try_cast(l.severityNumber as integer), 0),
    coalesce(l.body ->> '$.stringValue', l.body::varchar, ''), coalesce(l.eventName, ''), attribute_map(attribute_list(l.attributes))
from records;
drop table entries;
