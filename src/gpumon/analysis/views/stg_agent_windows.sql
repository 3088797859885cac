-- Which window of a node's agent each window of a run's process is read from: the one that its middle lies in.
-- Grain:   one row per (run_id, rank, instance, end_s), where an agent on the same node exported.
-- Columns: begin_s, end_s, agent_begin_s, agent_end_s [seconds since 1970]; agent: its instance.
create or replace view stg_agent_windows as
with
windows as (
    select
        w.run_id as run_id, w.rank as rank, w.instance as instance, p.node as node, w.begin_s as begin_s, w.end_s as end_s,
        (w.begin_s + w.end_s) / 2 as middle_s
    from stg_windows as w
    inner join gpumon_processes as p on p.run_id = w.run_id and p.rank = w.rank and p.instance = w.instance
    where p.node <> ''
),
ours as (select run_id, rank, instance, node, begin_s, end_s, middle_s from windows where run_id <> ''),
agents as (select node, instance as agent, begin_s as agent_begin_s, end_s as agent_end_s from windows where run_id = ''),
found as (
    select
        o.run_id as run_id, o.rank as rank, o.instance as instance, o.begin_s as begin_s, o.end_s as end_s,
        o.middle_s as middle_s, a.agent as agent, a.agent_begin_s as agent_begin_s, a.agent_end_s as agent_end_s
    from ours as o
    asof join agents as a on a.node = o.node and o.middle_s <= a.agent_end_s
)
select run_id, rank, instance, begin_s, end_s, agent, agent_begin_s, agent_end_s
from found
where agent_begin_s < middle_s
