-- Spans with gpumon's attributes as columns.
-- Grain:   one row per span.
-- Columns: begin_s [seconds since 1970]; duration_s [seconds]; null where a span does not have the attribute.
create or replace view stg_spans as
select
    gpumon_run_id("ResourceAttributes", "SpanAttributes") as run_id,
    gpumon_rank("ResourceAttributes", "SpanAttributes") as rank,
    gpumon_instance("ResourceAttributes", "SpanAttributes") as instance,
    "TraceId" as trace_id, "SpanId" as span_id, "ParentSpanId" as parent_span_id, "SpanName" as name,
    gpumon_unix_s("Timestamp") as begin_s, "Duration" / 1e9 as duration_s,
    case when "StatusCode" = 'Error' then 1 else 0 end as is_failed,
    nullif("SpanAttributes"['gpumon.phase'], '') as phase,
    nullif("SpanAttributes"['gpumon.stage'], '') as stage,
    gpumon_integer("SpanAttributes"['gpumon.step.number']) as step,
    gpumon_integer("SpanAttributes"['gpumon.epoch']) as epoch,
    gpumon_integer("SpanAttributes"['gpumon.batch.size']) as samples,
    nullif("SpanAttributes"['gpumon.keep.reason'], '') as keep_reason,
    case when "SpanAttributes"['gpumon.step.first_of_epoch'] = 'true' then 1 else 0 end as is_first_of_epoch,
    case when "SpanAttributes"['gpumon.step.slow'] = 'true' then 1 else 0 end as is_slow,
    nullif("SpanAttributes"['gpumon.window.disk.device'], '') as disk,
    gpumon_number("SpanAttributes"['gpumon.window.disk.await']) as disk_await_s,
    gpumon_number("SpanAttributes"['gpumon.window.disk.utilization']) as disk_utilization,
    gpumon_number("SpanAttributes"['gpumon.window.gpu.utilization']) as gpu_utilization,
    gpumon_number("SpanAttributes"['gpumon.window.io.pressure']) as io_pressure
from otel_traces
