-- What is known of a GPU.
-- Grain:   one row per (run_id, rank, device).
-- Columns: device: UUID; gpu_index: as nvidia-smi numbers it; null where not known.
create or replace view gpumon_gpus as
select
    gpumon_run_id("ResourceAttributes", "Attributes") as run_id,
    gpumon_rank("ResourceAttributes", "Attributes") as rank,
    "Attributes"['hw.id'] as device,
    max(nullif("Attributes"['gpumon.gpu.index'], '')) as gpu_index,
    max(nullif("Attributes"['hw.model'], '')) as model,
    max(nullif("Attributes"['hw.driver_version'], '')) as driver_version
from otel_metrics_gauge
where "MetricName" in ('gpumon.gpu.info', 'hw.gpu.utilization') and nullif("Attributes"['hw.id'], '') is not null
group by
    gpumon_run_id("ResourceAttributes", "Attributes"),
    gpumon_rank("ResourceAttributes", "Attributes"),
    "Attributes"['hw.id']
