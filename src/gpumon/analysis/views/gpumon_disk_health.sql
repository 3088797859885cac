-- SMART attributes of a disk from the run's first reading to its last.
-- Grain:   one row per (run_id, serial_number, attribute).
-- Columns: first_value, last_value, growth [raw value]; first_s, last_s [seconds since 1970].
create or replace view gpumon_disk_health as
with
numbered as (
    select
        run_id, device as serial_number, part as attribute, at_s, value,
        row_number() over (partition by run_id, device, part order by at_s, rank, instance) as from_start,
        row_number() over (partition by run_id, device, part order by at_s desc, rank, instance) as from_end
    from stg_points
    where metric = 'hw.physical_disk.smart'
)
select
    run_id, serial_number, attribute,
    max(case when from_start = 1 then value end) as first_value,
    max(case when from_end = 1 then value end) as last_value,
    max(case when from_end = 1 then value end) - max(case when from_start = 1 then value end) as growth,
    min(at_s) as first_s, max(at_s) as last_s
from numbered
group by run_id, serial_number, attribute
