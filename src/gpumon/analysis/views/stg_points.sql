-- Every point of a gauge or a counter, with the attributes that tell series apart as columns.
-- Grain:   one row per (run_id, rank, instance, metric, series, at_s).
-- Columns: at_s [seconds since 1970]; kind: gauge (updown counters too) or counter; value [UCUM unit of the metric];
--          part: what of the metric (phase, account, direction, CPU mode, state, resource); '' where nothing applies.
create or replace view stg_points as
with
points as (
    select "ResourceAttributes" as resource, "Attributes" as attributes, "MetricName" as metric, 'gauge' as kind,
        gpumon_unix_s("TimeUnix") as at_s, "Value" as value
    from otel_metrics_gauge
    where "Flags" % 2 = 0  -- else it says that its series has ended, and its value nothing
    union all
    select "ResourceAttributes" as resource, "Attributes" as attributes, "MetricName" as metric,
        case when "IsMonotonic" then 'counter' else 'gauge' end as kind,
        gpumon_unix_s("TimeUnix") as at_s, "Value" as value
    from otel_metrics_sum
    where "Flags" % 2 = 0 and ("AggregationTemporality" <> 1 or not "IsMonotonic")
    union all
    -- Sent as deltas: what they add up to, which is what everybody else sends.
    select "ResourceAttributes" as resource, "Attributes" as attributes, "MetricName" as metric, 'counter' as kind,
        gpumon_unix_s("TimeUnix") as at_s,
        sum("Value") over (
            partition by "MetricName", gpumon_text("ResourceAttributes"), gpumon_text("Attributes") order by "TimeUnix"
        ) as value
    from otel_metrics_sum
    where "Flags" % 2 = 0 and "AggregationTemporality" = 1 and "IsMonotonic"
)
select
    gpumon_run_id(resource, attributes) as run_id,
    gpumon_rank(resource, attributes) as rank,
    gpumon_instance(resource, attributes) as instance,
    metric, kind, at_s, value,
    coalesce(nullif(attributes['gpumon.stage'], ''), '') as stage,
    coalesce(
        nullif(attributes['system.device'], ''), nullif(attributes['hw.id'], ''),
        nullif(attributes['network.interface.name'], ''), nullif(attributes['gpumon.collector'], ''), ''
    ) as device,
    coalesce(
        nullif(attributes['gpumon.phase'], ''), nullif(attributes['gpumon.fetch.account'], ''),
        nullif(attributes['disk.io.direction'], ''), nullif(attributes['cpu.mode'], ''),
        nullif(attributes['network.io.direction'], ''), nullif(attributes['system.memory.state'], ''),
        nullif(
            concat(
                coalesce(attributes['gpumon.pressure.scope'], ''), '.', coalesce(attributes['gpumon.pressure.resource'], ''),
                '.', coalesce(attributes['gpumon.pressure.kind'], '')
            ), '..'
        ),
        nullif(
            concat(coalesce(attributes['gpumon.bench.pattern'], ''), '.', coalesce(attributes['gpumon.bench.parallel'], '')),
            '.'
        ),
        nullif(attributes['system.paging.fault.type'], ''), nullif(attributes['hw.gpu.task'], ''),
        nullif(attributes['gpumon.gpu.throttle.reason'], ''), nullif(attributes['gpumon.gpu.clock'], ''),
        nullif(attributes['gpumon.gpu.remap'], ''), nullif(attributes['hw.limit_type'], ''),
        nullif(attributes['hw.state'], ''), nullif(attributes['error.type'], ''),
        nullif(attributes['hw.physical_disk.smart_attribute'], ''), nullif(attributes['gpumon.smart.counter'], ''),
        nullif(attributes['gpumon.overhead'], ''),
        nullif(attributes['gpumon.signal'], ''), nullif(attributes['gpumon.reason'], ''), ''
    ) as part,
    coalesce(nullif(attributes['gpumon.process.role'], ''), '') as role,
    coalesce(nullif(attributes['gpumon.worker.id'], ''), '') as worker,
    coalesce(nullif(attributes['gpumon.fetch.call'], ''), '') as call,
    coalesce(nullif(attributes['gpumon.fetch.file_system'], ''), '') as file_system
from points
