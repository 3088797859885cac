-- The slowest training steps with the device readings of their own window.
-- Grain:   one row per (run_id, rank, instance, step), the 50 slowest of each run and rank.
-- Columns: place: 1 is the slowest; begin_s [seconds since 1970]; *_s [seconds]; readings from the step's own span,
--          else from the window of the metrics in which it ended.
create or replace view gpumon_slow_steps as
with
ranked as (
    select
        run_id, rank, instance, step, epoch, trace_id, begin_s, duration_s, wait_s, keep_reason, is_first_of_epoch,
        disk, disk_await_s, disk_utilization, gpu_utilization, io_pressure,
        row_number() over (partition by run_id, rank order by duration_s desc, step, instance) as place
    from gpumon_steps
    where stage = 'train'
),
slow as (
    select
        run_id, rank, instance, step, epoch, trace_id, begin_s, duration_s, wait_s, keep_reason, is_first_of_epoch,
        disk, disk_await_s, disk_utilization, gpu_utilization, io_pressure, place
    from ranked
    where place <= 50
),
matched as (
    select
        s.run_id as run_id, s.rank as rank, s.instance as instance, s.place as place, max(w.end_s) as end_s
    from slow as s
    inner join gpumon_windows as w on w.run_id = s.run_id and w.rank = s.rank and w.instance = s.instance
    where w.begin_s < s.begin_s + s.duration_s and s.begin_s + s.duration_s <= w.end_s
    group by s.run_id, s.rank, s.instance, s.place
)
select
    s.run_id as run_id, s.rank as rank, s.instance as instance, s.place as place, s.step as step, s.epoch as epoch,
    s.trace_id as trace_id, s.begin_s as begin_s, s.duration_s as duration_s, s.wait_s as wait_s,
    s.keep_reason as keep_reason, s.is_first_of_epoch as is_first_of_epoch,
    coalesce(s.disk, w.disk) as disk, coalesce(s.disk_await_s, w.disk_await_s) as disk_await_s,
    coalesce(s.disk_utilization, w.disk_utilization) as disk_utilization, w.disk_queue as disk_queue,
    coalesce(s.gpu_utilization, w.gpu_utilization) as gpu_utilization, coalesce(s.io_pressure, w.io_pressure) as io_pressure
from slow as s
left join matched as x on x.run_id = s.run_id and x.rank = s.rank and x.instance = s.instance and x.place = s.place
left join gpumon_windows as w
    on w.run_id = x.run_id and w.rank = x.rank and w.instance = x.instance and w.end_s = x.end_s
