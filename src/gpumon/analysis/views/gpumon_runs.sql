-- The runs that there are.
-- Grain:   one row per (run_id); '' is what belongs to no run, such as a node's agent.
-- Columns: service: of any process; begin_s, end_s [seconds since 1970]: its first and last export;
--          steps: training steps, as the process that made most of them counted.
create or replace view gpumon_runs as
with
told as (
    select "ResourceAttributes" as resource, "Attributes" as attributes, gpumon_unix_s("TimeUnix") as at_s,
        case when "Attributes"['gpumon.stage'] = 'train' then "Value" else 0.0 end as steps
    from otel_metrics_sum
    where "MetricName" = 'gpumon.step.count'
    union all
    select "ResourceAttributes" as resource, "Attributes" as attributes, gpumon_unix_s("TimeUnix") as at_s, 0.0 as steps
    from otel_metrics_gauge
    where "MetricName" = 'gpumon.collector.up'
)
select
    gpumon_run_id(resource, attributes) as run_id,
    max(coalesce(resource['service.name'], '')) as service,
    min(at_s) as begin_s, max(at_s) as end_s, max(steps) as steps
from told
group by gpumon_run_id(resource, attributes)
