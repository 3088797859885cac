-- Time per phase over all steps of a stage; the phases add up to the steps.
-- Grain:   one row per (run_id, rank, instance, stage, phase).
-- Columns: phase_s [seconds].
create or replace view gpumon_phases as
select run_id, rank, instance, stage, part as phase, max(value) as phase_s
from stg_points
where metric = 'gpumon.phase.time'
group by run_id, rank, instance, stage, part
