-- SMART attributes and error counters of a physical disk, from the run's first reading to its last.
-- Grain:   one row per (run_id, serial_number, metric, attribute).
-- Columns: metric: hw.physical_disk.smart (attribute: as smartctl names it) or gpumon.smart.count (attribute: reallocated,
--          uncorrected, pending, offline_uncorrectable, media, link); first_value, last_value, growth [raw value];
--          growth_per_hour, null where only one reading is known; first_s, last_s [seconds since 1970].
create or replace view gpumon_disk_health as
with
numbered as (
    select
        run_id, device as serial_number, metric, part as attribute, at_s, value,
        row_number() over (partition by run_id, device, metric, part order by at_s, rank, instance) as from_start,
        row_number() over (partition by run_id, device, metric, part order by at_s desc, rank, instance) as from_end
    from stg_points
    where metric = 'hw.physical_disk.smart' or metric = 'gpumon.smart.count'
),
ends as (
    select
        run_id, serial_number, metric, attribute,
        max(case when from_start = 1 then value end) as first_value,
        max(case when from_end = 1 then value end) as last_value,
        min(at_s) as first_s, max(at_s) as last_s
    from numbered
    group by run_id, serial_number, metric, attribute
)
select
    run_id, serial_number, metric, attribute, first_value, last_value,
    last_value - first_value as growth,
    (last_value - first_value) / nullif(last_s - first_s, 0) * 3600 as growth_per_hour,
    first_s, last_s
from ends
