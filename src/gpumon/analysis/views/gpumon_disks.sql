-- What is known of a disk.
-- Grain:   one row per (run_id, rank, device).
-- Columns: type: HDD, SSD, NVMe, virtual; holds_dataset, holds_checkpoints: 0 or 1; null where not known.
create or replace view gpumon_disks as
select
    gpumon_run_id("ResourceAttributes", "Attributes") as run_id,
    gpumon_rank("ResourceAttributes", "Attributes") as rank,
    "Attributes"['system.device'] as device,
    max(nullif("Attributes"['hw.model'], '')) as model,
    max(nullif("Attributes"['hw.serial_number'], '')) as serial_number,
    max(nullif("Attributes"['gpumon.disk.type'], '')) as type,
    max(case when lower("Attributes"['gpumon.disk.holds_dataset']) in ('true', '1') then 1 else 0 end) as holds_dataset,
    max(
        case when lower("Attributes"['gpumon.disk.holds_checkpoints']) in ('true', '1') then 1 else 0 end
    ) as holds_checkpoints,
    max(nullif("Attributes"['gpumon.disk.parents'], '')) as parents,
    max(nullif("Attributes"['system.filesystem.mountpoint'], '')) as mount_point,
    max(nullif("Attributes"['system.filesystem.type'], '')) as file_system
from otel_metrics_gauge
where "MetricName" = 'gpumon.disk.info'
group by
    gpumon_run_id("ResourceAttributes", "Attributes"),
    gpumon_rank("ResourceAttributes", "Attributes"),
    "Attributes"['system.device']
