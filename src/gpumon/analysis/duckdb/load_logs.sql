-- The log records of one file of OTLP lines, {path}, into the storage tables. Attributes stay JSON text until they are
-- known to be new. List comprehensions, because DuckDB changed the syntax of lambdas between releases.
create or replace temp table entries as
select concat(e.schemaUrl, e.resource::varchar) as source, e.resource as resource, coalesce(e.schemaUrl, '') as schema_url, e.scopeLogs as scopes
from (
    select unnest(resourceLogs) as e
    from read_json('{path}', format = 'newline_delimited', records = true, maximum_object_size = {longest}, columns = {
        resourceLogs: 'STRUCT(resource JSON, schemaUrl VARCHAR, scopeLogs STRUCT("scope" STRUCT("name" VARCHAR, "version" VARCHAR),
            logRecords STRUCT(timeUnixNano VARCHAR, observedTimeUnixNano VARCHAR, severityNumber VARCHAR, severityText VARCHAR, body JSON, traceId VARCHAR, spanId VARCHAR, eventName VARCHAR, attributes JSON)[])[])[]'
    })
);

insert into resources
select (select count(*) from resources) + row_number() over () - 1, source, attribute_map(attribute_list(resource -> '$.attributes')), schema_url
from (
    select source, any_value(resource) as resource, any_value(schema_url) as schema_url from entries
    where source not in (select source from resources)
    group by source
);

insert into logs
with scopes as (
    select r.resource_id, unnest(e.scopes) as s from entries e join resources r on r.source = e.source
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
