-- Limits that hold a run back, with the file that sets them.
-- Grain:   one row per (run_id, rank, metric, device, direction, source).
-- Columns: lowest [unit of the metric].
create or replace view gpumon_limits as
select
    gpumon_run_id("ResourceAttributes", "Attributes") as run_id,
    gpumon_rank("ResourceAttributes", "Attributes") as rank,
    "MetricName" as metric,
    coalesce("Attributes"['system.device'], '') as device,
    coalesce("Attributes"['disk.io.direction'], '') as direction,
    coalesce("Attributes"['gpumon.limit.source'], '') as source,
    min("Value") as lowest
from otel_metrics_gauge
where "MetricName" in ('gpumon.disk.limit.io', 'gpumon.disk.limit.operations', 'gpumon.cpu.quota', 'gpumon.memory.limit')
group by
    gpumon_run_id("ResourceAttributes", "Attributes"),
    gpumon_rank("ResourceAttributes", "Attributes"),
    "MetricName", coalesce("Attributes"['system.device'], ''), coalesce("Attributes"['disk.io.direction'], ''),
    coalesce("Attributes"['gpumon.limit.source'], '')
