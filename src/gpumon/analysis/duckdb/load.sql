-- One file of OTLP lines, $path, into the storage tables. List comprehensions instead of lambdas: their syntax
-- changed between releases of DuckDB.
create or replace macro attribute_list(source) as
    from_json(source, '[{"key":"VARCHAR","value":{"stringValue":"VARCHAR","intValue":"VARCHAR","doubleValue":"VARCHAR","boolValue":"VARCHAR"}}]');
create or replace macro text_of(v) as coalesce(v.stringValue, v.intValue, v.doubleValue, v.boolValue, '');
create or replace macro attribute_map(items) as
    case when items is null then map() else
    map([item."key" for item in items], [coalesce(item."value".stringValue, item."value".intValue, item."value".doubleValue, item."value".boolValue, '') for item in items]) end;
create or replace macro at_unix(nanos) as make_timestamp_ns(try_cast(nanos as bigint));
