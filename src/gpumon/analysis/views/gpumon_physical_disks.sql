-- What is known of a physical disk, and how well it is at the end.
-- Grain:   one row per (run_id, serial_number).
-- Columns: devices: the block devices on it ("nvme0n1,nvme0n2"); state: ok, degraded, predicted_failure, failed;
--          remaining [share of the rated writes]; null where not known.
create or replace view gpumon_physical_disks as
with
told as (
    select
        gpumon_run_id("ResourceAttributes", "Attributes") as run_id,
        "Attributes"['hw.id'] as serial_number,
        max(nullif("Attributes"['hw.model'], '')) as model,
        max(nullif("Attributes"['hw.firmware_version'], '')) as firmware_version,
        max(nullif("Attributes"['hw.physical_disk.type'], '')) as type,
        max(nullif("Attributes"['system.device'], '')) as devices
    from otel_metrics_gauge
    where "MetricName" = 'gpumon.smart.info'
    group by gpumon_run_id("ResourceAttributes", "Attributes"), "Attributes"['hw.id']
),
latest as (
    select
        run_id, device as serial_number, metric, part, value,
        row_number() over (partition by run_id, device, metric, part order by at_s desc, rank, instance) as age
    from stg_points
    where metric = 'hw.status' or metric = 'hw.physical_disk.endurance_utilization'
),
ends as (
    select
        run_id, serial_number,
        max(case when metric = 'hw.status' and value = 1 then part end) as state,
        max(case when metric = 'hw.physical_disk.endurance_utilization' then value end) as remaining
    from latest
    where age = 1
    group by run_id, serial_number
)
select
    told.run_id as run_id, told.serial_number as serial_number, told.model as model,
    told.firmware_version as firmware_version, told.type as type, told.devices as devices,
    ends.state as state, ends.remaining as remaining
from told left join ends on told.run_id = ends.run_id and told.serial_number = ends.serial_number
