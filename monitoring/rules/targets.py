"""Who sends, and from which machine: what other rules join on, whether series were pushed or scraped."""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from monitoring.promql import series
from monitoring.rules.rule import Group, Record

TARGET: Final = "instance:gpumon_target:info"
HOST: Final = "node:gpumon_host:info"
_ANY_OF_OURS: Final = f"({series(m.COLLECTOR_UP)} or {series(m.STEP_COUNT)})"
_ON_POINTS: Final = " or ".join(series(metric, {"gpumon.run.id": "!="}) for metric in (m.COLLECTOR_UP, m.STEP_COUNT))
_IDENTITY: Final = "job, instance, host_name, gpumon_node_id, gpumon_run_id, gpumon_rank"


def at_node(expression: str) -> str:
    """The expression, over series of senders, with the label of their machine."""
    return f"{expression} * on (job, instance) group_left (gpumon_node_id) {TARGET}"


def of_device(expression: str, *more: str) -> str:
    """Per device of a machine: a disk or a GPU that several processes report is one."""
    by = ", ".join(("gpumon_node_id", *(more or ("hw_id",))))
    return f"max by ({by}) ({at_node(expression)})"


def of_node(expression: str) -> str:
    """Per machine."""
    return f"max by (gpumon_node_id) ({at_node(expression)})"


def with_run(expression: str) -> str:
    """Per process of a training: with its host, run and rank."""
    joined = f"* on (job, instance) group_left (host_name, gpumon_run_id, gpumon_rank) {TARGET}"
    return f"({expression}) {joined}"


def with_host(expression: str, *, since: str = "") -> str:
    """Per machine: with its name; *since*: also of one that sends no more, "1d"."""
    known = f"topk by (gpumon_node_id) (1, last_over_time({HOST}[{since}]))" if since else HOST
    return f"({expression}) * on (gpumon_node_id) group_left (host_name) {known}"


GROUP: Final = Group(
    "gpumon.targets",
    [
        Record(
            TARGET,
            f"""
            topk by (job, instance) (1,
              group by ({_IDENTITY}) ({_ON_POINTS})
              or on (job, instance)
              group by ({_IDENTITY}) (
                target_info and on (job, instance) {_ANY_OF_OURS}
              )
              or on (job, instance)
              group by ({_IDENTITY}) (
                {_ANY_OF_OURS}
              )
            )
            """,
            "1 per process that sends or is scraped, with its host, node, run and rank: from `target_info`, or from "
            "its series, which have them where the provider is the application's.",
        ),
        Record(
            HOST,
            f"""
            topk by (gpumon_node_id) (1,
              group by (gpumon_node_id, host_name) ({TARGET}{{gpumon_run_id=""}})
              or on (gpumon_node_id)
              group by (gpumon_node_id, host_name) ({TARGET})
            )
            """,
            "1 per machine with its name: the agent's, where one is there; a training in a container has another.",
        ),
    ],
)
