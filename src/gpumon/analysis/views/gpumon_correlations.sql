-- Which device series moves with which phase of the step.
-- Grain:   one row per (run_id, rank, phase, metric, device, part, role), at the lag where |r| is largest.
-- Columns: r: Pearson, rho: Spearman [-1..1]; lag_windows: by how many windows the device is ahead (0, 1 or 2);
--          n: windows compared, at least 5. What never changes has none.
create or replace view gpumon_correlations as
with
numbered as (
    select run_id, rank, instance, end_s, row_number() over (partition by run_id, rank, instance order by end_s) as place
    from stg_windows
),
phases as (
    select
        c.run_id as run_id, c.rank as rank, c.instance as instance, n.place as place, c.part as phase,
        max(c.delta) / nullif(max(w.steps), 0.0) as phase_s
    from stg_counters as c
    inner join gpumon_windows as w
        on w.run_id = c.run_id and w.rank = c.rank and w.instance = c.instance and w.end_s = c.at_s
    inner join numbered as n
        on n.run_id = c.run_id and n.rank = c.rank and n.instance = c.instance and n.end_s = c.at_s
    where c.metric = 'gpumon.phase.time' and c.stage = 'train' and w.steps > 0
    group by c.run_id, c.rank, c.instance, n.place, c.part
),
lags as (select 0 as lag_windows union all select 1 as lag_windows union all select 2 as lag_windows),
devices as (
    select
        d.run_id as run_id, d.rank as rank, d.instance as instance, n.place as place, d.metric as metric,
        d.device as device, d.part as part, d.role as role, d.value as value
    from gpumon_device_windows as d
    inner join numbered as n
        on n.run_id = d.run_id and n.rank = d.rank and n.instance = d.instance and n.end_s = d.end_s
    where d.metric like 'gpumon.disk.%' or d.metric like 'system.disk.io%' or d.metric like 'hw.gpu.%'
        or d.metric like '%.utilization' or d.metric = 'gpumon.pressure.stall.ratio'
),
leading_devices as (
    select
        d.run_id as run_id, d.rank as rank, d.instance as instance, d.place + l.lag_windows as place,
        l.lag_windows as lag_windows, d.metric as metric, d.device as device, d.part as part, d.role as role, d.value as value
    from devices as d cross join lags as l
),
pairs as (
    select
        p.run_id as run_id, p.rank as rank, p.phase as phase, d.metric as metric, d.device as device, d.part as part,
        d.role as role, d.lag_windows as lag_windows, p.phase_s as x, d.value as y
    from phases as p
    inner join leading_devices as d
        on d.run_id = p.run_id and d.rank = p.rank and d.instance = p.instance and d.place = p.place
    where p.phase_s is not null and d.value is not null
),
placed as (
    select
        run_id, rank, phase, metric, device, part, role, lag_windows, x, y,
        rank() over (partition by run_id, rank, phase, metric, device, part, role, lag_windows order by x) as x_first,
        count(*) over (partition by run_id, rank, phase, metric, device, part, role, lag_windows, x) as x_ties,
        rank() over (partition by run_id, rank, phase, metric, device, part, role, lag_windows order by y) as y_first,
        count(*) over (partition by run_id, rank, phase, metric, device, part, role, lag_windows, y) as y_ties
    from pairs
),
correlated as (
    select
        run_id, rank, phase, metric, device, part, role, lag_windows, count(*) as n, corr(x, y) as r,
        corr(x_first + (x_ties - 1) / 2.0, y_first + (y_ties - 1) / 2.0) as rho
    from placed
    group by run_id, rank, phase, metric, device, part, role, lag_windows
    having count(*) >= 5
        and max(x) - min(x) > 1e-6 * greatest(abs(max(x)), abs(min(x)))
        and max(y) - min(y) > 1e-6 * greatest(abs(max(y)), abs(min(y)))
),
best as (
    select
        run_id, rank, phase, metric, device, part, role, lag_windows, n, r, rho,
        row_number() over (
            partition by run_id, rank, phase, metric, device, part, role order by round(abs(r), 9) desc, lag_windows
        ) as place
    from correlated
)
select run_id, rank, phase, metric, device, part, role, r, rho, lag_windows, n
from best
where place = 1
