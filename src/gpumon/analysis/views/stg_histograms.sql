-- The last state of every histogram; of one that is sent as deltas all of them, which add up to it.
-- Grain:   one row per (run_id, rank, instance, metric, stage, device), of deltas per at_s as well.
-- Columns: total, counts, bounds, minimum, maximum [unit of the metric]; counts has one bucket more than bounds.
create or replace view stg_histograms as
with
points as (
    select
        gpumon_run_id("ResourceAttributes", "Attributes") as run_id,
        gpumon_rank("ResourceAttributes", "Attributes") as rank,
        gpumon_instance("ResourceAttributes", "Attributes") as instance,
        "MetricName" as metric,
        coalesce(nullif("Attributes"['gpumon.stage'], ''), '') as stage,
        coalesce(nullif("Attributes"['gpumon.collector'], ''), '') as device,
        gpumon_unix_s("TimeUnix") as at_s, "Count" as number, "Sum" as total, "BucketCounts" as counts,
        "ExplicitBounds" as bounds, "AggregationTemporality" as temporality,
        -- The Collector's exporter writes 0 where a histogram does not say.
        case when "Count" > 0 and ("Max" <> 0 or "Sum" = 0) then "Min" end as minimum,
        case when "Count" > 0 and ("Max" <> 0 or "Sum" = 0) then "Max" end as maximum
    from otel_metrics_histogram
),
numbered as (
    select
        run_id, rank, instance, metric, stage, device, at_s, number, total, counts, bounds, minimum, maximum, temporality,
        row_number() over (partition by run_id, rank, instance, metric, stage, device order by at_s desc, number desc) as age
    from points
)
select run_id, rank, instance, metric, stage, device, at_s, number, total, counts, bounds, minimum, maximum
from numbered
where age = 1 or temporality = 1
