-- What every counter gained from one export to the next.
-- Grain:   one row per (run_id, rank, instance, metric, series, at_s).
-- Columns: delta [unit of the metric]; null for the first point of a counter that ran before gpumon (a disk's
--          bytes since the boot); a counter of the training starts at 0 with it.
create or replace view stg_counters as
with
points as (  -- one of those that came twice; a table whose times are whole seconds may have two points at one, too
    select
        run_id, rank, instance, metric, stage, device, part, role, worker, call, file_system, at_s, max(value) as value
    from stg_points
    where kind = 'counter'
    group by run_id, rank, instance, metric, stage, device, part, role, worker, call, file_system, at_s
),
counters as (
    select
        run_id, rank, instance, metric, stage, device, part, role, worker, call, file_system, at_s, value,
        lag(gpumon_nullable(value)) over (
            partition by run_id, rank, instance, metric, stage, device, part, role, worker, call, file_system
            order by at_s
        ) as value_before
    from points
)
select
    run_id, rank, instance, metric, stage, device, part, role, worker, call, file_system, at_s, value,
    case
        when value_before is not null then greatest(value - value_before, 0.0)
        when metric like 'gpumon.step.%' or metric like 'gpumon.phase.%' or metric like 'gpumon.sample.%'
            or metric like 'gpumon.epoch.%' or metric like 'gpumon.first_of_epoch.%' or metric like 'gpumon.fetch.%'
            or metric like 'gpumon.loader.%' then value
    end as delta
from counters
