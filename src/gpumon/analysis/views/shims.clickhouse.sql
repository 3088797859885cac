-- SQL functions, which ClickHouse writes out into the views when it creates them: nobody who reads needs them.
create or replace function gpumon_unix_s as (t) -> toUnixTimestamp64Nano(toDateTime64(t, 9)) / 1e9;
create or replace function gpumon_number as (s) -> toFloat64OrNull(s);
create or replace function gpumon_integer as (s) -> toInt64OrNull(s);
create or replace function gpumon_nullable as (x) -> toNullable(x);
create or replace function gpumon_text as (x) -> toString(x);
create or replace function gpumon_run_id as (r, a) ->
    coalesce(nullIf(r['gpumon.run.id'], ''), nullIf(a['gpumon.run.id'], ''), '');
create or replace function gpumon_rank as (r, a) ->
    toInt32(coalesce(toFloat64OrNull(r['gpumon.rank']), toFloat64OrNull(a['gpumon.rank']), 0));
create or replace function gpumon_node as (r, a) ->
    coalesce(nullIf(r['gpumon.node.id'], ''), nullIf(a['gpumon.node.id'], ''), '');
create or replace function gpumon_host as (r, a) ->
    coalesce(nullIf(r['host.name'], ''), nullIf(a['host.name'], ''), '');
create or replace function gpumon_instance as (r, a) -> coalesce(
    nullIf(r['service.instance.id'], ''),
    nullIf(r['process.pid'], ''),
    concat('rank ', coalesce(nullIf(r['gpumon.rank'], ''), nullIf(a['gpumon.rank'], ''), '0'))
);
