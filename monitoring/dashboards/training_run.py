"""*Training run*: where the steps' time goes, beside the GPUs, disks and pressure of the same moments."""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from monitoring.dashboards.board import Board, Variable
from monitoring.dashboards.training_devices import DISKS, GPUS, HOSTS, ITSELF
from monitoring.dashboards.training_steps import ALERTS, DATA, GLANCE, STEPS
from monitoring.promql import series

VARIABLES: Final = (
    Variable(
        "job",
        "Service",
        f"label_values({series(m.STEP_COUNT)}, job)",
        "service.name of the training; the name of its script where nothing else was said.",
        is_one=True,
    ),
    Variable(
        "run",
        "Run",
        'label_values(target_info{job="$job"}, gpumon_run_id)',
        "gpumon.run.id: one per start; all ranks of a run have the same.",
    ),
    Variable(
        "rank",
        "Rank",
        'label_values(target_info{job="$job", gpumon_run_id=~"$run"}, gpumon_rank)',
        "gpumon.rank: a process of the run.",
    ),
    Variable(
        "host",
        "Machine",
        'label_values(target_info{job="$job", gpumon_run_id=~"$run", gpumon_rank=~"$rank"}, host_name)',
        "host.name: where the processes are.",
    ),
    Variable(
        "instance",
        "Process",
        'label_values(target_info{job="$job", gpumon_run_id=~"$run", gpumon_rank=~"$rank", '
        'host_name=~"$host"}, instance)',
        "service.instance.id of the processes that were chosen above.",
        is_hidden=True,
        all_value="",
    ),
    Variable(
        "node",
        "Node",
        'label_values(target_info{job="$job", instance=~"$instance"}, gpumon_node_id)',
        "gpumon.node.id: the machine itself, also of processes in containers.",
        is_hidden=True,
        all_value="",
    ),
    Variable(
        "source",
        "Agents",
        'label_values(target_info{gpumon_node_id=~"$node", gpumon_run_id=""}, instance)',
        "The agents of those machines, over OTLP or scraped.",
        is_hidden=True,
        all_value="",
    ),
)

BOARD: Final = Board(
    uid="gpumon-training-run",
    title="gpumon: training run",
    description="Where the time of a training's steps goes, beside the GPUs, disks and pressure of the same moments.",
    rows=[GLANCE, STEPS, DATA, GPUS, DISKS, HOSTS, ITSELF],
    variables=VARIABLES,
    alerts=ALERTS,
)
