-- The metrics of one file of OTLP lines, {path}, into the storage tables. Attributes stay JSON text until they are
-- known to be new. List comprehensions, because DuckDB changed the syntax of lambdas between releases.
create or replace temp table entries as
select concat(e.schemaUrl, e.resource::varchar) as source, e.resource as resource, coalesce(e.schemaUrl, '') as schema_url, e.scopeMetrics as scopes
from (
    select unnest(resourceMetrics) as e
    from read_json('{path}', format = 'newline_delimited', records = true, maximum_object_size = {longest}, columns = {
        resourceMetrics: 'STRUCT(resource JSON, schemaUrl VARCHAR, scopeMetrics STRUCT("scope" STRUCT("name" VARCHAR, "version" VARCHAR),
            metrics STRUCT("name" VARCHAR, description VARCHAR, unit VARCHAR,
                gauge STRUCT(dataPoints STRUCT(attributes JSON, startTimeUnixNano VARCHAR, timeUnixNano VARCHAR, asDouble VARCHAR, asInt VARCHAR, flags UINTEGER)[]),
                sum STRUCT(aggregationTemporality VARCHAR, isMonotonic BOOLEAN, dataPoints STRUCT(attributes JSON, startTimeUnixNano VARCHAR, timeUnixNano VARCHAR, asDouble VARCHAR, asInt VARCHAR, flags UINTEGER)[]),
                histogram STRUCT(aggregationTemporality VARCHAR, dataPoints STRUCT(attributes JSON, startTimeUnixNano VARCHAR, timeUnixNano VARCHAR, "count" VARCHAR, "sum" VARCHAR, bucketCounts VARCHAR[], explicitBounds VARCHAR[], "min" VARCHAR, "max" VARCHAR, flags UINTEGER)[]))[])[])[]'
    })
);

insert into resources
select (select count(*) from resources) + row_number() over () - 1, source, attribute_map(attribute_list(resource -> '$.attributes')), schema_url
from (
    select source, any_value(resource) as resource, any_value(schema_url) as schema_url from entries
    where source not in (select source from resources)
    group by source
);

create or replace temp table points as
with scopes as (
    select r.resource_id, unnest(e.scopes) as s from entries e join resources r on r.source = e.source
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
    select r.resource_id, unnest(e.scopes) as s from entries e join resources r on r.source = e.source
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
drop table entries;
