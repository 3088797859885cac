-- Training, window by window, from counters over all steps, beside the disk that holds the data set and the rest
-- of the machine.
-- Grain:   one row per (run_id, rank, instance, end_s).
-- Columns: begin_s, end_s [seconds since 1970]; *_s [seconds in the window]; wait_fraction, *_utilization,
--          io_pressure [0..1]; disk_*: of the busiest disk that holds the data set; null where nothing was read.
create or replace view gpumon_windows as
with
training as (
    select
        run_id, rank, instance, at_s,
        sum(case when metric = 'gpumon.step.count' and stage = 'train' then delta end) as steps,
        sum(case when metric = 'gpumon.sample.count' and stage = 'train' then delta end) as samples,
        sum(case when metric = 'gpumon.step.time' and stage = 'train' then delta end) as step_s,
        sum(case when metric = 'gpumon.phase.time' and stage = 'train' and part = 'data.wait' then delta end) as wait_s,
        sum(case when metric = 'gpumon.phase.time' and stage = 'train' and part = 'transfer' then delta end) as transfer_s,
        sum(case when metric = 'gpumon.phase.time' and stage = 'train' and part = 'forward' then delta end) as forward_s,
        sum(case when metric = 'gpumon.phase.time' and stage = 'train' and part = 'backward' then delta end) as backward_s,
        sum(case when metric = 'gpumon.phase.time' and stage = 'train' and part = 'communication' then delta end) as communication_s,
        sum(case when metric = 'gpumon.phase.time' and stage = 'train' and part = 'optimizer' then delta end) as optimizer_s,
        sum(case when metric = 'gpumon.phase.time' and stage = 'train' and part = 'checkpoint' then delta end) as checkpoint_s,
        sum(case
            when metric = 'gpumon.phase.time' and stage = 'train' and part not in
                ('data.wait', 'transfer', 'forward', 'backward', 'communication', 'optimizer', 'checkpoint') then delta
        end) as other_s,
        sum(case when metric = 'gpumon.first_of_epoch.count' and stage = 'train' then delta end) as first_of_epoch_steps,
        sum(case when metric = 'gpumon.first_of_epoch.wait.time' and stage = 'train' then delta end) as first_of_epoch_wait_s,
        sum(case when metric = 'gpumon.first_of_epoch.step.time' and stage = 'train' then delta end) as first_of_epoch_step_s,
        sum(case when metric = 'gpumon.fetch.count' then delta end) as fetches,
        sum(case when metric = 'gpumon.fetch.time' then delta end) as fetch_s
    from stg_counters
    where metric like 'gpumon.%'
    group by run_id, rank, instance, at_s
),
data_disks as (
    select run_id, rank, device from gpumon_datasets where device is not null
    union distinct
    select run_id, rank, device from gpumon_disks where holds_dataset = 1
),
disks as (
    select
        d.run_id as run_id, d.rank as rank, d.instance as instance, d.end_s as end_s, d.device as device,
        max(case when d.metric = 'gpumon.disk.await' and d.part = 'read' then d.value end) as await_s,
        max(case when d.metric = 'gpumon.disk.queue.length' then d.value end) as queue,
        max(case when d.metric = 'gpumon.disk.utilization' then d.value end) as utilization,
        max(case when d.metric = 'system.disk.io' and d.part = 'read' then d.value end) as read_bytes_per_s
    from gpumon_device_windows as d
    inner join data_disks as x on x.run_id = d.run_id and x.rank = d.rank and x.device = d.device
    where d.metric in ('gpumon.disk.await', 'gpumon.disk.queue.length', 'gpumon.disk.utilization', 'system.disk.io')
    group by d.run_id, d.rank, d.instance, d.end_s, d.device
),
busiest as (
    select
        run_id, rank, instance, end_s, device, await_s, queue, utilization, read_bytes_per_s,
        row_number() over (
            partition by run_id, rank, instance, end_s order by coalesce(read_bytes_per_s, -1.0) desc, device
        ) as place
    from disks
),
machine as (
    select
        run_id, rank, instance, end_s,
        sum(case when metric = 'system.cpu.utilization' and part not in ('idle', 'iowait') then value end) as cpu_utilization,
        avg(case when metric = 'hw.gpu.utilization' and part = 'general' then value end) as gpu_utilization,
        max(case when metric = 'gpumon.pressure.stall.ratio' and part like '%.io.some' then value end) as io_pressure
    from gpumon_device_windows
    where metric in ('system.cpu.utilization', 'hw.gpu.utilization', 'gpumon.pressure.stall.ratio')
    group by run_id, rank, instance, end_s
)
select
    w.run_id as run_id, w.rank as rank, w.instance as instance, w.begin_s as begin_s, w.end_s as end_s,
    coalesce(t.steps, 0.0) as steps, coalesce(t.samples, 0.0) as samples, coalesce(t.step_s, 0.0) as step_s,
    coalesce(t.wait_s, 0.0) as wait_s, coalesce(t.transfer_s, 0.0) as transfer_s, coalesce(t.forward_s, 0.0) as forward_s,
    coalesce(t.backward_s, 0.0) as backward_s, coalesce(t.communication_s, 0.0) as communication_s,
    coalesce(t.optimizer_s, 0.0) as optimizer_s, coalesce(t.checkpoint_s, 0.0) as checkpoint_s, coalesce(t.other_s, 0.0) as other_s,
    coalesce(t.first_of_epoch_steps, 0.0) as first_of_epoch_steps,
    coalesce(t.first_of_epoch_wait_s, 0.0) as first_of_epoch_wait_s,
    coalesce(t.first_of_epoch_step_s, 0.0) as first_of_epoch_step_s,
    coalesce(t.wait_s, 0.0) / nullif(t.step_s, 0.0) as wait_fraction,
    t.fetches as fetches, t.fetch_s as fetch_s,
    b.device as disk, b.await_s as disk_await_s, b.queue as disk_queue, b.utilization as disk_utilization,
    b.read_bytes_per_s as disk_read_bytes_per_s,
    m.cpu_utilization as cpu_utilization, m.gpu_utilization as gpu_utilization, m.io_pressure as io_pressure
from stg_windows as w
left join training as t on t.run_id = w.run_id and t.rank = w.rank and t.instance = w.instance and t.at_s = w.end_s
left join busiest as b
    on b.run_id = w.run_id and b.rank = w.rank and b.instance = w.instance and b.end_s = w.end_s and b.place = 1
left join machine as m on m.run_id = w.run_id and m.rank = w.rank and m.instance = w.instance and m.end_s = w.end_s
