-- Limits that hold a run back, with the file that sets them.
-- Grain:   one row per (run_id, rank, metric, device, direction, source).
-- Columns: lowest [unit of the metric].
create or replace view gpumon_limits as
select
    coalesce(nullif("ResourceAttributes"['gpumon.run.id'], ''), nullif("Attributes"['gpumon.run.id'], ''), '') as run_id,
    cast(coalesce(gpumon_number("ResourceAttributes"['gpumon.rank']), gpumon_number("Attributes"['gpumon.rank']), 0) as integer) as rank,
    "MetricName" as metric,
    coalesce("Attributes"['system.device'], '') as device,
    coalesce("Attributes"['disk.io.direction'], '') as direction,
    coalesce("Attributes"['gpumon.limit.source'], '') as source,
    min("Value") as lowest
from otel_metrics_gauge
where "MetricName" in ('gpumon.disk.limit.io', 'gpumon.disk.limit.operations', 'gpumon.cpu.quota', 'gpumon.memory.limit')
group by
    coalesce(nullif("ResourceAttributes"['gpumon.run.id'], ''), nullif("Attributes"['gpumon.run.id'], ''), ''),
    cast(coalesce(gpumon_number("ResourceAttributes"['gpumon.rank']), gpumon_number("Attributes"['gpumon.rank']), 0) as integer),
    "MetricName", coalesce("Attributes"['system.device'], ''), coalesce("Attributes"['disk.io.direction'], ''),
    coalesce("Attributes"['gpumon.limit.source'], '')
