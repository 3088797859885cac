-- Spans with gpumon's attributes as columns.
-- Grain:   one row per span.
-- Columns: begin_s [seconds since 1970]; duration_s [seconds]; null where a span does not have the attribute.
create or replace view stg_spans as
select
    coalesce(nullif("ResourceAttributes"['gpumon.run.id'], ''), nullif("SpanAttributes"['gpumon.run.id'], ''), '') as run_id,
    cast(coalesce(gpumon_number("ResourceAttributes"['gpumon.rank']), gpumon_number("SpanAttributes"['gpumon.rank']), 0) as integer) as rank,
    coalesce(nullif("ResourceAttributes"['service.instance.id'], ''), nullif("ResourceAttributes"['process.pid'], ''), '') as instance,
    "TraceId" as trace_id, "SpanId" as span_id, "ParentSpanId" as parent_span_id, "SpanName" as name,
    gpumon_unix_s("Timestamp") as begin_s, "Duration" / 1e9 as duration_s,
    case when "StatusCode" = 'Error' then 1 else 0 end as is_failed,
    nullif("SpanAttributes"['gpumon.phase'], '') as phase,
    nullif("SpanAttributes"['gpumon.stage'], '') as stage,
    cast(gpumon_number("SpanAttributes"['gpumon.step.number']) as bigint) as step,
    cast(gpumon_number("SpanAttributes"['gpumon.epoch']) as bigint) as epoch,
    cast(gpumon_number("SpanAttributes"['gpumon.batch.size']) as bigint) as samples,
    nullif("SpanAttributes"['gpumon.keep.reason'], '') as keep_reason,
    case when "SpanAttributes"['gpumon.step.first_of_epoch'] = 'true' then 1 else 0 end as is_first_of_epoch,
    case when "SpanAttributes"['gpumon.step.slow'] = 'true' then 1 else 0 end as is_slow,
    nullif("SpanAttributes"['gpumon.window.disk.device'], '') as disk,
    gpumon_number("SpanAttributes"['gpumon.window.disk.await']) as disk_await_s,
    gpumon_number("SpanAttributes"['gpumon.window.disk.utilization']) as disk_utilization,
    gpumon_number("SpanAttributes"['gpumon.window.gpu.utilization']) as gpu_utilization,
    gpumon_number("SpanAttributes"['gpumon.window.io.pressure']) as io_pressure
from otel_traces
