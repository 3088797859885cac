"""Which series a dashboard shows, and under which machine's name."""

from __future__ import annotations

from typing import Final

from gpumon.metrics import Metric
from monitoring.promql import senders, series

RUN: Final = {"job": "$job", "instance": "=~$instance"}
"""The processes of the chosen run."""
RUNS_MACHINES: Final = {"instance": "=~$instance|$source"}
"""They and the agents of their machines: readings of devices come from either."""
TRAIN: Final = {**RUN, "gpumon.stage": "train"}
OVER: Final = "[$__rate_interval]"
"""Grafana's own: at least four of the intervals at which gpumon sends."""


def rate(metric: Metric, where: dict[str, str], by: str = "") -> str:
    """Per second, of all selected processes together, or *by* labels."""
    return f"sum{f' by ({by})' if by else ''} (rate({series(metric, where)}{OVER}))"


def on_host(expression: str, where: dict[str, str]) -> str:
    """With the machine's name, which is not on every series.

    *where* selects the senders; those that it leaves out are left out of the expression, too.
    """
    return f"{expression} * on (job, instance) group_left (host_name) topk by (job, instance) (1, {senders(where)})"


def per_device(expression: str, *by: str, where: dict[str, str] = RUNS_MACHINES) -> str:
    """Each device of a machine once, however many processes report it."""
    return f"max by ({', '.join(('host_name', *by))}) ({on_host(expression, where)})"
