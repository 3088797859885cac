-- The spans of one file of OTLP lines, {path}, into the storage tables. Attributes stay JSON text until they are
-- known to be new. List comprehensions, because DuckDB changed the syntax of lambdas between releases.
create or replace temp table entries as
select concat(e.schemaUrl, e.resource::varchar) as source, e.resource as resource, coalesce(e.schemaUrl, '') as schema_url, e.scopeSpans as scopes
from (
    select unnest(resourceSpans) as e
    from read_json('{path}', format = 'newline_delimited', records = true, maximum_object_size = {longest}, columns = {
        resourceSpans: 'STRUCT(resource JSON, schemaUrl VARCHAR, scopeSpans STRUCT("scope" STRUCT("name" VARCHAR, "version" VARCHAR),
            spans STRUCT(traceId VARCHAR, spanId VARCHAR, parentSpanId VARCHAR, traceState VARCHAR, "name" VARCHAR, kind VARCHAR, startTimeUnixNano VARCHAR, endTimeUnixNano VARCHAR,
                attributes JSON, status STRUCT(code VARCHAR, message VARCHAR),
                events STRUCT(timeUnixNano VARCHAR, "name" VARCHAR, attributes JSON)[],
                links STRUCT(traceId VARCHAR, spanId VARCHAR, attributes JSON)[])[])[])[]'
    })
);

insert into resources
select (select count(*) from resources) + row_number() over () - 1, source, attribute_map(attribute_list(resource -> '$.attributes')), schema_url
from (
    select source, any_value(resource) as resource, any_value(schema_url) as schema_url from entries
    where source not in (select source from resources)
    group by source
);

insert into spans
with scopes as (
    select r.resource_id, unnest(e.scopes) as s from entries e join resources r on r.source = e.source
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
drop table entries;
