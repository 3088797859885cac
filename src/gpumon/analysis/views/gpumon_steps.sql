-- The steps that were kept as traces: examples with detail, not all steps.
-- Grain:   one row per (run_id, rank, instance, stage, step).
-- Columns: begin_s [seconds since 1970]; *_s [seconds]; is_* 0 or 1; window readings as in stg_spans.
create or replace view gpumon_steps as
with
steps as (
    select * from stg_spans where step is not null and stage is not null and parent_span_id = ''
),
parts as (
    select
        trace_id, parent_span_id as step_span_id,
        sum(case when phase = 'data.wait' then duration_s end) as wait_s,
        sum(case when phase = 'transfer' then duration_s end) as transfer_s,
        sum(case when phase = 'forward' then duration_s end) as forward_s,
        sum(case when phase = 'backward' then duration_s end) as backward_s,
        sum(case when phase = 'communication' then duration_s end) as communication_s,
        sum(case when phase = 'optimizer' then duration_s end) as optimizer_s,
        sum(case when phase = 'checkpoint' then duration_s end) as checkpoint_s
    from stg_spans
    where phase is not null
    group by trace_id, parent_span_id
)
select
    s.run_id as run_id, s.rank as rank, s.instance as instance, s.stage as stage, s.step as step, s.epoch as epoch,
    s.trace_id as trace_id, s.begin_s as begin_s, s.duration_s as duration_s, s.samples as samples,
    s.keep_reason as keep_reason, s.is_first_of_epoch as is_first_of_epoch, s.is_slow as is_slow, s.is_failed as is_failed,
    coalesce(p.wait_s, 0.0) as wait_s, coalesce(p.transfer_s, 0.0) as transfer_s, coalesce(p.forward_s, 0.0) as forward_s,
    coalesce(p.backward_s, 0.0) as backward_s, coalesce(p.communication_s, 0.0) as communication_s,
    coalesce(p.optimizer_s, 0.0) as optimizer_s, coalesce(p.checkpoint_s, 0.0) as checkpoint_s,
    s.disk as disk, s.disk_await_s as disk_await_s, s.disk_utilization as disk_utilization,
    s.gpu_utilization as gpu_utilization, s.io_pressure as io_pressure
from steps as s
left join parts as p on p.trace_id = s.trace_id and p.step_span_id = s.span_id
