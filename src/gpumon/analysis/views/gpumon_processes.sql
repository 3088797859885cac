-- The processes that recorded metrics.
-- Grain:   one row per (run_id, rank, instance, service, host, node).
-- Columns: service, host, node (gpumon.node.id): '' where not known.
create or replace view gpumon_processes as
select distinct
    gpumon_run_id("ResourceAttributes", "Attributes") as run_id,
    gpumon_rank("ResourceAttributes", "Attributes") as rank,
    gpumon_instance("ResourceAttributes", "Attributes") as instance,
    coalesce("ResourceAttributes"['service.name'], '') as service,
    gpumon_host("ResourceAttributes", "Attributes") as host,
    gpumon_node("ResourceAttributes", "Attributes") as node
from otel_metrics_sum
