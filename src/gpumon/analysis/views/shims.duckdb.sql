create or replace macro gpumon_unix_s(t) as epoch_ns(t) / 1e9;
create or replace macro gpumon_number(s) as try_cast(s as double);
create or replace macro gpumon_integer(s) as try_cast(s as bigint);
create or replace macro gpumon_nullable(x) as x;
create or replace macro gpumon_text(x) as cast(x as varchar);
create or replace macro gpumon_run_id(resource, attributes) as
    coalesce(nullif(resource['gpumon.run.id'], ''), nullif(attributes['gpumon.run.id'], ''), '');
create or replace macro gpumon_rank(resource, attributes) as
    cast(coalesce(try_cast(resource['gpumon.rank'] as double), try_cast(attributes['gpumon.rank'] as double), 0) as integer);
create or replace macro gpumon_node(resource, attributes) as
    coalesce(nullif(resource['gpumon.node.id'], ''), nullif(attributes['gpumon.node.id'], ''), '');
create or replace macro gpumon_host(resource, attributes) as
    coalesce(nullif(resource['host.name'], ''), nullif(attributes['host.name'], ''), '');
create or replace macro gpumon_instance(resource, attributes) as coalesce(
    nullif(resource['service.instance.id'], ''),
    nullif(resource['process.pid'], ''),
    concat('rank ', coalesce(nullif(resource['gpumon.rank'], ''), nullif(attributes['gpumon.rank'], ''), '0'))
);
