"""Series that a node's agent exports already: our OTLP export leaves them out, so that each is there once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics.export import MetricsData

from gpumon.metrics import Attributes

IsExported = Callable[[str, Attributes], bool]
"""Whether somebody else exports the series of a metric (by name) with these attributes."""

Exported = Callable[[], IsExported | None]
"""Asked at every export; None: nobody exports anything of ours now."""


def nobody() -> None:
    """Nobody else exports."""
    return


def without(data: MetricsData, is_exported: IsExported) -> MetricsData | None:
    """The same without those series; None where nothing is left."""
    resources = []
    for resource in data.resource_metrics:
        scopes = []
        for scope in resource.scope_metrics:
            metrics = [kept for metric in scope.metrics if (kept := _kept(metric, is_exported)) is not None]
            if metrics:
                scopes.append(replace(scope, metrics=metrics))
        if scopes:
            resources.append(replace(resource, scope_metrics=scopes))
    return MetricsData(resources) if resources else None


def _kept(metric: Any, is_exported: IsExported) -> Any:
    points = metric.data.data_points
    kept = [point for point in points if not is_exported(metric.name, point.attributes or {})]
    if len(kept) == len(points):
        return metric
    return replace(metric, data=replace(metric.data, data_points=kept)) if kept else None
