"""*Training run*: where the steps' time goes, beside the GPUs, disks and pressure of the same moments."""

from __future__ import annotations

from typing import Final

from gpumon import metrics as m
from monitoring.dashboards.board import Board, Variable
from monitoring.dashboards.training_devices import DISKS, GPUS, HOSTS, ITSELF
from monitoring.dashboards.training_steps import ALERTS, DATA, GLANCE, STEPS
from monitoring.promql import agents, series, values_of

_OF_RANKS: Final = {"job": "$job", "gpumon.run.id": "=~$run", "gpumon.rank": "=~$rank"}

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
        values_of("gpumon.run.id", {"job": "$job"}),
        "gpumon.run.id: one per start; all ranks of a run have the same.",
    ),
    Variable(
        "rank",
        "Rank",
        values_of("gpumon.rank", {"job": "$job", "gpumon.run.id": "=~$run"}),
        "gpumon.rank: a process of the run.",
    ),
    Variable(
        "host",
        "Machine",
        values_of("host.name", _OF_RANKS),
        "host.name: where the processes are.",
    ),
    Variable(
        "instance",
        "Process",
        values_of("instance", {**_OF_RANKS, "host.name": "=~$host"}),
        "service.instance.id of the processes that were chosen above.",
        is_hidden=True,
        all_value="",
    ),
    Variable(
        "node",
        "Node",
        values_of("gpumon.node.id", {"job": "$job", "instance": "=~$instance"}),
        "gpumon.node.id: the machine itself, also of processes in containers.",
        is_hidden=True,
        all_value="",
    ),
    Variable(
        "source",
        "Agents",
        f"label_values({agents({'gpumon.node.id': '=~$node'})}, instance)",
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
