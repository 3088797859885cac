"""Panels: what each shows, its unit, and the queries behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from grafana_foundation_sdk.builders import common as build_common
from grafana_foundation_sdk.builders import dashboard as build_dashboard
from grafana_foundation_sdk.builders import prometheus as build_prometheus
from grafana_foundation_sdk.builders import stat as build_stat
from grafana_foundation_sdk.builders import statetimeline as build_timeline
from grafana_foundation_sdk.builders import table as build_table
from grafana_foundation_sdk.builders import timeseries as build_series
from grafana_foundation_sdk.models import common, prometheus
from grafana_foundation_sdk.models import dashboard as models

from monitoring.layout import laid_out

SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
Kind = Literal["series", "stack", "stat", "table", "timeline"]
Colour = Literal["green", "yellow", "orange", "red", "text", "blue", "purple"]


@dataclass(frozen=True)
class Query:
    """PromQL and the name of its series; `{{label}}` in it is the value of a label."""

    expr: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel. `unit` is Grafana's id of a unit; `levels`: the colour from a value on, the first from 0."""

    kind: Kind
    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    width: int = 12
    height: int = 8
    levels: Mapping[float, Colour] = field(default_factory=dict)
    most: float | None = None
    least: float | None = 0.0
    words: Mapping[int, tuple[str, Colour]] = field(default_factory=dict)
    """What a value means, with its colour."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Of a table: label -> its heading; the last one, "Value", is the number."""

    def build(self) -> Any:
        """The panel as Grafana's library has it."""
        kinds: dict[str, Any] = {
            "series": build_series.Panel,
            "stack": build_series.Panel,
            "stat": build_stat.Panel,
            "table": build_table.Panel,
            "timeline": build_timeline.Panel,
        }
        panel = (
            kinds[self.kind]()
            .title(self.title)
            .description(self.description)
            .datasource(SOURCE)
            .unit(self.unit)
            .span(self.width)
            .height(self.height)
        )
        if self.least is not None and self.kind in ("series", "stack"):
            panel = panel.min(self.least)
        if self.most is not None:
            panel = panel.max(self.most)
        if self.words:
            panel = panel.mappings([_words(self.words)])
        if self.levels:
            panel = panel.thresholds(_levels(self.levels))
            if self.kind == "series":  # lines keep colours of their own
                dashed = build_common.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
                panel = panel.thresholds_style(dashed)
            else:
                panel = panel.color_scheme(build_dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        for letter, query in zip("ABCDEFGH", self.queries, strict=False):
            panel = panel.with_target(self._target(letter, query))
        return getattr(self, f"_as_{self.kind}")(panel)

    def _target(self, letter: str, query: Query) -> Any:
        target = (
            build_prometheus.Dataquery()
            .ref_id(letter)
            .datasource(SOURCE)
            .expr(laid_out(query.expr))
            .editor_mode(prometheus.QueryEditorMode.CODE)
        )
        if query.legend:
            target = target.legend_format(query.legend)
        if query.exemplars:
            target = target.exemplar(True)
        target = target.instant() if self.kind in ("stat", "table") else target.range()
        return target.format(
            prometheus.PromQueryFormat.TABLE if self.kind == "table" else prometheus.PromQueryFormat.TIME_SERIES
        )

    def _as_series(self, panel: Any) -> Any:
        legend = (
            build_common.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["mean", "max", "lastNotNull"])
        )
        tooltip = (
            build_common.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
        return (
            panel.legend(legend).tooltip(tooltip).line_width(1).fill_opacity(8).show_points(common.VisibilityMode.NEVER)
        )

    def _as_stack(self, panel: Any) -> Any:
        stacked = build_common.StackingConfig().mode(common.StackingMode.NORMAL).group("A")
        return self._as_series(panel).fill_opacity(60).line_width(0).stacking(stacked)

    def _as_stat(self, panel: Any) -> Any:
        reduced = build_common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
        return panel.reduce_options(reduced).graph_mode(common.BigValueGraphMode.NONE)

    def _as_timeline(self, panel: Any) -> Any:
        legend = (
            build_common.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        return panel.legend(legend).row_height(0.8).merge_values(True).show_value(common.VisibilityMode.AUTO)

    def _as_table(self, panel: Any) -> Any:
        headings = {"Value": self.title, **self.columns}
        organized = models.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True},
                "indexByName": {label: number for number, label in enumerate(self.columns)},
                "renameByName": headings,
            },
        )
        return panel.with_transformation(organized).filterable(True)


def _levels(levels: Mapping[float, Colour]) -> Any:
    steps = [models.Threshold(value=value or None, color=colour) for value, colour in sorted(levels.items())]
    return build_dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _words(words: Mapping[int, tuple[str, Colour]]) -> models.ValueMap:
    options = {
        str(value): models.ValueMappingResult(text=text, color=colour, index=number)
        for number, (value, (text, colour)) in enumerate(words.items())
    }
    return models.ValueMap(options=options)
