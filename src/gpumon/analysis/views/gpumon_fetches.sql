-- The accounts of fetches by worker.
-- Grain:   one row per (run_id, rank, instance, end_s, worker_id).
-- Columns: fetches [batches]; the rest [seconds]; the accounts add up to wall_s.
create or replace view gpumon_fetches as
select
    run_id, rank, instance, at_s as end_s, cast(coalesce(gpumon_number(worker), -1) as integer) as worker_id,
    coalesce(sum(case when metric = 'gpumon.fetch.count' then delta end), 0.0) as fetches,
    coalesce(sum(case when metric = 'gpumon.fetch.time' then delta end), 0.0) as wall_s,
    coalesce(sum(case when part = 'cpu' then delta end), 0.0) as cpu_s,
    coalesce(sum(case when part = 'runnable' then delta end), 0.0) as runnable_s,
    coalesce(sum(case when part = 'blocked.disk' then delta end), 0.0) as blocked_disk_s,
    coalesce(sum(case when part = 'blocked.network_fs' then delta end), 0.0) as blocked_network_fs_s,
    coalesce(sum(case when part = 'blocked.socket' then delta end), 0.0) as blocked_socket_s,
    coalesce(sum(case when part = 'blocked.memory' then delta end), 0.0) as blocked_memory_s,
    coalesce(sum(case when part = 'blocked.sleep' then delta end), 0.0) as blocked_sleep_s,
    coalesce(sum(case when part = 'blocked.other' then delta end), 0.0) as blocked_other_s
from stg_counters
where metric in ('gpumon.fetch.time', 'gpumon.fetch.count')
group by run_id, rank, instance, at_s, cast(coalesce(gpumon_number(worker), -1) as integer)
having sum(delta) > 0
