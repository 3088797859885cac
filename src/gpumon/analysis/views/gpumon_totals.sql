-- Sums over all steps of a stage.
-- Grain:   one row per (run_id, rank, instance, stage).
-- Columns: step_s, first_of_epoch_wait_s, first_of_epoch_step_s [seconds]; the rest are counts.
create or replace view gpumon_totals as
select
    run_id, rank, instance, stage,
    coalesce(max(case when metric = 'gpumon.step.count' then value end), 0.0) as steps,
    coalesce(max(case when metric = 'gpumon.sample.count' then value end), 0.0) as samples,
    coalesce(max(case when metric = 'gpumon.epoch.count' then value end), 0.0) as epochs,
    coalesce(max(case when metric = 'gpumon.step.failures' then value end), 0.0) as failed,
    coalesce(max(case when metric = 'gpumon.step.skipped' then value end), 0.0) as skipped,
    coalesce(max(case when metric = 'gpumon.step.assumed' then value end), 0.0) as assumed,
    coalesce(max(case when metric = 'gpumon.step.time' then value end), 0.0) as step_s,
    coalesce(max(case when metric = 'gpumon.first_of_epoch.count' then value end), 0.0) as first_of_epoch_steps,
    coalesce(max(case when metric = 'gpumon.first_of_epoch.wait.time' then value end), 0.0) as first_of_epoch_wait_s,
    coalesce(max(case when metric = 'gpumon.first_of_epoch.step.time' then value end), 0.0) as first_of_epoch_step_s
from stg_points
where kind = 'counter' and stage <> '' and part = ''
group by run_id, rank, instance, stage
