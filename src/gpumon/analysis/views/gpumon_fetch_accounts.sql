-- Where fetches spent their time: each second of a fetch is in one account.
-- Grain:   one row per (run_id, rank, instance, end_s, worker, account, device, call, file_system).
-- Columns: seconds [seconds]; worker: the DataLoader's number, -1 is the training thread.
create or replace view gpumon_fetch_accounts as
select
    run_id, rank, instance, at_s as end_s, cast(coalesce(gpumon_number(worker), -1) as integer) as worker_id,
    part as account, device, call, file_system, delta as seconds
from stg_counters
where metric = 'gpumon.fetch.time' and delta > 0
