"""A dashboard, from its panels to the JSON that Grafana reads (its classic schema, as files are provisioned)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from monitoring.dashboards.panel import SOURCE, Panel

TAG = "gpumon"


@dataclass(frozen=True)
class Variable:
    """A choice at the dashboard's top: the values that a query finds. `is_hidden`: others follow from it."""

    name: str
    title: str
    query: str  # label_values(selector, label)
    description: str
    is_one: bool = False  # exactly one value, without "All"
    is_hidden: bool = False
    all_value: str = ".*"  # what "All" matches; "": all the values that the query finds

    def build(self) -> build.QueryVariable:
        variable = (
            build.QueryVariable(self.name)
            .label(self.title)
            .description(self.description)
            .datasource(SOURCE)
            .query({"query": self.query, "refId": "Variable"})
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .multi(not self.is_one)
            .include_all(not self.is_one)
        )
        if self.is_hidden:
            variable = variable.hide(models.VariableHide.HIDE_VARIABLE)
        if not self.is_one:
            variable = variable.current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
            if self.all_value:
                variable = variable.all_value(self.all_value)
        return variable


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Board:
    """*alerts*: a selector of the alerts that are drawn as marks on the time axis."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = field(default=())
    since: str = "now-1h"
    alerts: str = ""

    @property
    def file(self) -> str:
        return f"{self.uid.removeprefix('gpumon-')}.json"

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]

    def as_json(self) -> str:
        board = (
            build.Dashboard(self.title)
            .uid(self.uid)
            .description(self.description)
            .tags([TAG])
            .time(self.since, "now")
            .refresh("10s")
            .timezone("browser")
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .editable()
            .link(
                build.DashboardLink("gpumon")
                .type(models.DashboardLinkType.DASHBOARDS)
                .tags([TAG])
                .as_dropdown(True)
                .keep_time(True)
            )
            .with_variable(build.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        )
        for variable in self.variables:
            board = board.with_variable(variable.build())
        if self.alerts:
            board = board.annotation(
                build.AnnotationQuery()
                .name("Alerts")
                .datasource(SOURCE)
                .enable(True)
                .icon_color("red")
                .expr(self.alerts)
            )
        for row in self.rows:
            board = board.with_row(build.Row(row.title))
            for panel in row.panels:
                board = board.with_panel(panel.build())
        content = json.loads(JSONEncoder(sort_keys=True).encode(board.build()))
        for annotation in content["annotations"].get("list", []):
            annotation |= {
                "titleFormat": "{{alertname}}",
                "textFormat": "{{severity}} {{host_name}} {{hw_id}}",
                "step": "10s",
            }
        for number, panel in enumerate(content["panels"], 1):
            panel["id"] = number
        return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
