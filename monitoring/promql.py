"""PromQL from the catalogue: names and labels cannot be mistyped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gpumon import metrics as m
from gpumon.metrics import Metric
from monitoring.names import is_ratio, label, prometheus_name

OF_RESOURCE: Final = ("job", "instance")
"""Labels that every series has: service.name, and service.instance.id or the address that was scraped."""
OF_SENDER: Final = ("gpumon.run.id", "gpumon.rank", "host.name", "gpumon.node.id")
"""Attributes of a resource, or of every point where the provider is the application's."""
_OPERATORS: Final = ("!~", "=~", "!=")

Where = Mapping[str, str]
"""Attribute or label -> value; a value that begins with =~, != or !~ has that operator."""


def series(metric: Metric, where: Where | None = None, *, part: str = "") -> str:
    """A selector; *part*: of a histogram, `_bucket`, `_sum` or `_count`.

    Raises:
        ValueError: its points have no such attribute.
    """
    matchers = []
    for name, value in (where or {}).items():
        if name not in (*OF_RESOURCE, *OF_SENDER) and name not in metric.attributes:
            raise ValueError(f"{metric.name} has no attribute {name}")
        matchers.append(_matcher(name, value))
    if (metric.kind == "histogram") != bool(part):
        raise ValueError(f"{metric.name}: a part is of a histogram")
    if is_ratio(metric) and (scraped := prometheus_name(metric, is_scraped=True)) != prometheus_name(metric):
        return "{" + ", ".join([f'__name__=~"{scraped}(_ratio)?"', *matchers]) + "}"
    name = prometheus_name(metric) + part
    return f"{name}{{{', '.join(matchers)}}}" if matchers else name


def target_info(where: Where | None = None) -> str:
    """A selector of what is known of senders: the resource of each."""
    return f"target_info{{{_matchers(where or {})}}}"


def agents(where: Where | None = None) -> str:
    """The nodes' agents, by `target_info`: of what names a node only they belong to no run."""
    return f'target_info{{gpumon_node_id!="", {_matchers({"gpumon.run.id": "", **(where or {})})}}}'


def senders(where: Where | None = None) -> str:
    """Each sender with host, node, run and rank: from its points where the provider is the application's, whose
    resource does not know them, else from `target_info`."""
    labels = ", ".join((*OF_RESOURCE, *map(label, OF_SENDER)))
    on_points = series(m.COLLECTOR_UP, {"gpumon.run.id": "!=", **(where or {})})
    return f"(group by ({labels}) ({on_points}) or on (job, instance) {target_info(where)})"


def values_of(name: str, where: Where) -> str:
    """Grafana's query for the values that an attribute of `OF_SENDER`, or `instance`, has among senders."""
    either = f"target_info|{prometheus_name(m.COLLECTOR_UP, is_scraped=True)}(_ratio)?"
    return f'label_values({{__name__=~"{either}", {_matchers(where)}}}, {label(name)})'


def percent(share: float) -> str:
    """0.2 -> 20 %, for texts."""
    return f"{share * 100:g} %"


def _matchers(where: Where) -> str:
    return ", ".join(_matcher(name, value) for name, value in where.items())


def _matcher(name: str, value: str) -> str:
    operator = next((each for each in _OPERATORS if value.startswith(each)), "")
    text = value.removeprefix(operator)
    return f'{label(name)}{operator or "="}"{text}"'
