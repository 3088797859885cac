-- Queries need the settings join_use_nulls = 1 and aggregate_functions_null_for_empty = 1, so that what is
-- absent is null as in DuckDB, not 0.
create or replace function gpumon_unix_s as (t) -> toUnixTimestamp64Nano(toDateTime64(t, 9)) / 1e9;
create or replace function gpumon_number as (s) -> toFloat64OrNull(s);
create or replace function gpumon_integer as (s) -> toInt64OrNull(s);
create or replace function gpumon_nullable as (x) -> toNullable(x);
create or replace function gpumon_run_id as (r, a) ->
    coalesce(nullIf(r['gpumon.run.id'], ''), nullIf(a['gpumon.run.id'], ''), '');
create or replace function gpumon_rank as (r, a) ->
    toInt32(coalesce(toFloat64OrNull(r['gpumon.rank']), toFloat64OrNull(a['gpumon.rank']), 0));
create or replace function gpumon_instance as (r, a) -> coalesce(
    nullIf(r['service.instance.id'], ''),
    nullIf(r['process.pid'], ''),
    concat('rank ', coalesce(nullIf(r['gpumon.rank'], ''), nullIf(a['gpumon.rank'], ''), '0'))
);
