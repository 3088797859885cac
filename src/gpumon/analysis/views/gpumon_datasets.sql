-- Where a run reads its data from.
-- Grain:   one row per (run_id, rank, path, device).
-- Columns: kind: block, network, memory, container, unknown; null where not known.
create or replace view gpumon_datasets as
select distinct
    gpumon_run_id("ResourceAttributes", "Attributes") as run_id,
    gpumon_rank("ResourceAttributes", "Attributes") as rank,
    nullif("Attributes"['gpumon.data.path'], '') as path,
    nullif("Attributes"['gpumon.storage.kind'], '') as kind,
    nullif("Attributes"['system.device'], '') as device,
    nullif("Attributes"['system.filesystem.mountpoint'], '') as mount_point,
    nullif("Attributes"['system.filesystem.type'], '') as file_system
from otel_metrics_gauge
where "MetricName" = 'gpumon.dataset.info'
