-- What could be read, and why not.
-- Grain:   one row per (run_id, rank, collector).
-- Columns: up: 1 or 0 at the end; was_up: 1 where it was ever up; reason: of the last time that it was not, or null.
create or replace view gpumon_collectors as
with
numbered as (
    select
        run_id, rank, device as collector, part as reason, value, at_s,
        row_number() over (partition by run_id, rank, device order by at_s desc, value) as age,
        row_number() over (partition by run_id, rank, device order by value, at_s desc) as failure
    from stg_points
    where metric = 'gpumon.collector.up'
)
select
    run_id, rank, collector,
    max(case when age = 1 then value end) as up,
    max(value) as was_up,
    max(case when failure = 1 and value = 0 then nullif(reason, '') end) as reason
from numbered
group by run_id, rank, collector
