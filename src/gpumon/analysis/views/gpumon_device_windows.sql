-- Every device series, window by window.
-- Grain:   one row per (run_id, rank, instance, end_s, metric, device, part, role).
-- Columns: begin_s, end_s [seconds since 1970]; value: a gauge's mean, a counter's change per second;
--          delta: a counter's change, null for a gauge.
create or replace view gpumon_device_windows as
with
series as (
    select run_id, rank, instance, metric, device, part, role, at_s, delta, gpumon_nullable(delta) as change
    from stg_counters
    where stage = '' and metric not like 'gpumon.fetch.%'
    union all
    select run_id, rank, instance, metric, device, part, role, at_s, value as delta, null as change
    from stg_points
    where kind = 'gauge' and stage = '' and metric not like '%.info' and metric <> 'gpumon.collector.up'
)
select
    w.run_id as run_id, w.rank as rank, w.instance as instance, w.begin_s as begin_s, w.end_s as end_s,
    s.metric as metric, s.device as device, s.part as part, s.role as role,
    avg(case when s.change is null then s.delta else s.change / nullif(w.end_s - w.begin_s, 0.0) end) as value,
    sum(s.change) as delta
from series as s
inner join stg_windows as w
    on w.run_id = s.run_id and w.rank = s.rank and w.instance = s.instance and w.end_s = s.at_s
where s.delta is not null
group by w.run_id, w.rank, w.instance, w.begin_s, w.end_s, s.metric, s.device, s.part, s.role
