-- The windows of a process: from one export of its metrics to the next.
-- Grain:   one row per (run_id, rank, instance, end_s).
-- Columns: begin_s, end_s [seconds since 1970]; the first window is taken to be as long as the second.
create or replace view stg_windows as
with
exports as (select distinct run_id, rank, instance, at_s from stg_points),
neighbours as (
    select
        run_id, rank, instance, at_s,
        lag(gpumon_nullable(at_s)) over (partition by run_id, rank, instance order by at_s) as at_before_s,
        lead(gpumon_nullable(at_s)) over (partition by run_id, rank, instance order by at_s) as at_after_s
    from exports
)
select run_id, rank, instance, coalesce(at_before_s, at_s - (at_after_s - at_s), at_s - 1.0) as begin_s, at_s as end_s
from neighbours
