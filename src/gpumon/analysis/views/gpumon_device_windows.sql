-- Every device series, window by window; what a process leaves to the agent of its node is the agent's.
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
),
-- A process says which GPUs it uses; disks are looked at whole.
others as (
    select distinct p.run_id as run_id, p.rank as rank, g.device as device
    from (select distinct run_id, rank from stg_agent_windows) as p
    cross join (select distinct device from gpumon_gpus where run_id = '') as g
    left join gpumon_gpus as own on own.run_id = p.run_id and own.rank = p.rank and own.device = g.device
    where own.device is null
),
told as (
    select
        w.run_id as run_id, w.rank as rank, w.instance as instance, w.begin_s as begin_s, w.end_s as end_s,
        s.metric as metric, s.device as device, s.part as part, s.role as role, 1 as is_own, s.change as change,
        case when s.change is null then s.delta else s.change / nullif(w.end_s - w.begin_s, 0.0) end as value
    from series as s
    inner join stg_windows as w
        on w.run_id = s.run_id and w.rank = s.rank and w.instance = s.instance and w.end_s = s.at_s
    where s.delta is not null
    union all
    select
        a.run_id as run_id, a.rank as rank, a.instance as instance, a.begin_s as begin_s, a.end_s as end_s,
        s.metric as metric, s.device as device, s.part as part, s.role as role, 0 as is_own,
        s.change * (a.end_s - a.begin_s) / nullif(a.agent_end_s - a.agent_begin_s, 0.0) as change,
        case when s.change is null then s.delta else s.change / nullif(a.agent_end_s - a.agent_begin_s, 0.0) end as value
    from series as s
    inner join stg_agent_windows as a on a.agent = s.instance and a.agent_end_s = s.at_s
    left join others as o on o.run_id = a.run_id and o.rank = a.rank and o.device = regexp_replace(s.device, '/.*', '')
    where s.run_id = '' and s.delta is not null and o.device is null
        and s.metric not like 'gpumon.collector.%' and s.metric not like 'gpumon.export.%'
        and s.metric not like 'gpumon.overhead.%'
)
select
    run_id, rank, instance, begin_s, end_s, metric, device, part, role,
    case
        when count(change) > 0 then  -- a point that came twice changes nothing
            (case when max(is_own) = 1 then sum(case when is_own = 1 then change end) else sum(change) end)
            / nullif(end_s - begin_s, 0.0)
        when max(is_own) = 1 then avg(case when is_own = 1 then value end)
        else avg(value)
    end as value,
    case when max(is_own) = 1 then sum(case when is_own = 1 then change end) else sum(change) end as delta
from told
group by run_id, rank, instance, begin_s, end_s, metric, device, part, role
