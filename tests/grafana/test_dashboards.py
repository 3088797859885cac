"""The committed dashboards and their provisioning, without a server."""

import json
import re
from collections import Counter

import pytest
import yaml

from grafana_variables import ALL, Choice, interpolated, text_of
from monitoring.__main__ import ROOT
from monitoring.dashboards import BOARDS

GRAFANA = ROOT / "grafana"
FILES = {path.name: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
boards = pytest.mark.parametrize("board", FILES.values(), ids=FILES)


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_files_are_what_the_code_gives():
    """`make docs` writes them; nothing else is in the folder."""
    written = {board.file: board.as_json() for board in BOARDS}
    committed = {path.name: path.read_text() for path in (GRAFANA / "dashboards").iterdir()}
    assert committed == written, "run `make docs`"


def test_the_four_are_there():
    assert {board["title"] for board in FILES.values()} == {
        "gpumon: training run",
        "gpumon: disks and health",
        "gpumon: node fleet",
        "gpumon: alerts",
    }
    assert len({board["uid"] for board in FILES.values()}) == 4


@boards
def test_every_panel_has_a_unit_a_description_and_a_query(board):
    for panel in panels(board):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"] and all(target["expr"] for target in panel["targets"]), panel["title"]


@boards
def test_panels_are_told_apart(board):
    """Ids once per dashboard, titles once per row, letters once per panel; no two lie on each other."""
    assert max(Counter(panel["id"] for panel in board["panels"]).values()) == 1
    row = ""
    titles = []
    for panel in board["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        titles.append((row, panel["title"]))
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(letters) == len(set(letters))
    assert len(titles) == len(set(titles))
    taken = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in board["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert max(taken.values()) == 1 and max(x for x, _ in taken) < 24


@boards
def test_one_time_axis_with_a_shared_crosshair(board):
    assert board["graphTooltip"] == 1
    assert not any(key in panel for panel in panels(board) for key in ("timeFrom", "timeShift"))


@boards
def test_nothing_is_tied_to_one_machine(board):
    """Data sources are chosen, hosts and instances are variables, and every variable that is used is there."""
    known = {variable["name"] for variable in board["templating"]["list"]}
    used = set()
    for panel in panels(board):
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            used |= {found for found in re.findall(r"\$(\w+)", target["expr"]) if not found.startswith("__")}
            for label, value in re.findall(r'\b(job|instance|host_name|hw_id)=~?"([^"]*)"', target["expr"]):
                assert value == "" or value.startswith(("$", ".+")), (panel["title"], label, value)
    used |= {
        found for variable in board["templating"]["list"] for found in re.findall(r"\$(\w+)", str(variable["query"]))
    }
    used |= set(re.findall(r"\$(\w+)", json.dumps(board.get("annotations", {})))) - {"datasource"}
    assert used <= known
    assert known - used <= {"datasource"}, "a choice that changes nothing"


@boards
def test_names_of_series_and_columns_are_of_labels_that_there_are(board):
    """A legend's {{label}} and a table's columns come out of the query's grouping or selectors."""
    for panel in panels(board):
        for target in panel["targets"]:
            words = set(re.findall(r"\w+", re.sub(r'"[^"]*"', "", target["expr"])))
            legend = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            assert legend <= words, (panel["title"], legend - words)
            assert panel["type"] != "timeseries" or target["legendFormat"], panel["title"]
        if panel["type"] == "table":
            (organize,) = [each["options"] for each in panel["transformations"] if each["id"] == "organize"]
            columns = organize["renameByName"].keys() - {"Value"}
            assert columns <= words, (panel["title"], columns - words)


def test_exemplars_are_asked_for_where_steps_are_timed():
    asked = [
        (panel["title"], target["expr"])
        for panel in panels(FILES["training-run.json"])
        for target in panel["targets"]
        if target.get("exemplar")
    ]
    assert asked and all("_duration_seconds_bucket" in expr for _, expr in asked)


# -- provisioning -----------------------------------------------------------------------------------------


def provisioned(name):
    return yaml.safe_load((GRAFANA / "provisioning" / name).read_text())


def test_data_sources():
    """What links lead to is there; optional ones lie where Grafana does not read them."""
    sources = {each["uid"]: each for each in provisioned("datasources/gpumon.yaml")["datasources"]}
    assert sources.keys() == {"prometheus", "jaeger"} and sources["prometheus"]["isDefault"]
    (link,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert link["name"] == "trace_id" and link["datasourceUid"] in sources
    assert sources["jaeger"]["jsonData"]["tracesToMetrics"]["datasourceUid"] in sources
    optional = GRAFANA / "provisioning" / "datasources" / "optional"
    found = {each["type"] for path in optional.iterdir() for each in yaml.safe_load(path.read_text())["datasources"]}
    assert found == {"tempo", "grafana-clickhouse-datasource"}


def test_dollars_of_queries_are_written_twice():
    """Grafana puts variables of the environment into these files: one `$` of a query has to be two."""
    for path in (GRAFANA / "provisioning").rglob("*.yaml"):
        for found in re.findall(r"\$+\w+", re.sub(r"#.*", "", path.read_text())):
            assert found.startswith("$$__") or found == "$CLICKHOUSE_PASSWORD", (path.name, found)


def test_compose_mounts_what_provisioning_names():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounts = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    (provider,) = provisioned("dashboards/gpumon.yaml")["providers"]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    for source in provisioned("datasources/gpumon.yaml")["datasources"]:
        host = re.fullmatch(r"http://(\w+):\d+", source["url"])[1]
        assert host in compose["services"]


# -- variables --------------------------------------------------------------------------------------------

MANY = {"multi": True, "includeAll": True}


@pytest.mark.parametrize(
    ("variable", "choice", "expected"),
    [
        ({"multi": False, "includeAll": False}, Choice('a.b "c" \\', ()), 'a.b \\"c\\" \\\\'),
        (MANY, Choice("node1.example (2)", ()), r"node1\\.example \\(2\\)"),
        (MANY, Choice(["a", "b.c"], ()), r"(a|b\\.c)"),
        (MANY, Choice(ALL, ("x", "y")), "(x|y)"),
        (MANY, Choice(ALL, ("x",)), "x"),
        (MANY, Choice(ALL, ()), "()"),
        ({**MANY, "allValue": ".*"}, Choice(ALL, ("x", "y")), ".*"),
    ],
)
def test_values_as_grafana_writes_them(variable, choice, expected):
    assert text_of(variable, choice) == expected


def test_variables_in_a_query():
    assert (
        interpolated('a{b="$c", d=~"${e}"}[$__rate_interval]', {"c": "1", "e": "(2|3)"}) == 'a{b="1", d=~"(2|3)"}[40s]'
    )
