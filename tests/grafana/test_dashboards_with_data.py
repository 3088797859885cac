"""Every query of every dashboard has data on a real Prometheus, however it got there.

Variables are put in as Grafana does it.
"""

import json
import os
import time

import pytest

from grafana_variables import choose, interpolated
from monitored import SERVICE, WAYS, monitored, wait_for
from monitoring.__main__ import ROOT
from otlp_receiver import eventually
from peers import needs_collector, needs_jaeger, needs_prometheus

pytestmark = [needs_prometheus, needs_collector, needs_jaeger]

BOARDS = [json.loads(path.read_text()) for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json"))]
EXEMPT = {
    "Device time of a step": "is measured with CUDA events, on a real GPU",
    "Memory of the framework's allocator": "is CUDA's allocator, on a real GPU",
    "Held back by the CPU quota": "needs a cgroup with a CPU quota",
}


FIRES = {
    "GpuOverheating": {"gpumon_gpu_index": "0", "hw_model": "NVIDIA H100 80GB HBM3", "severity": "warning"},
    "DiskFailing": {"hw_id": "Z9FAILS", "hw_model": "WORN OUT", "severity": "critical", "reason": "smart"},
}


@pytest.fixture(scope="module", params=WAYS)
def stack(request, tmp_path_factory):
    """After a training of 150 steps whose GPU is hot, with an alert that fires."""
    with monitored(tmp_path_factory.mktemp(request.param), request.param) as found:
        wait_for(found, "sum(gpumon_step_count_total)", more_than=150)
        wait_for(found, 'gpumon_step_count_total{gpumon_stage="validation"}')
        wait_for(found, "gpumon_smart_age_seconds")
        for alert in FIRES:
            wait_for(found, f'ALERTS{{alertname="{alert}", alertstate="firing"}}')
        yield found


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(board):
    """(panel, target) of every query."""
    return [(panel, target) for panel in panels(board) for target in panel["targets"]]


def label_values(stack):
    def values(selector, label):
        path = f"/api/v1/label/{label}/values"
        return stack.prometheus.get(path, **{"match[]": selector, "start": time.time() - 600})["data"]

    return values


def data_of(stack, target, variables):
    """The series of a query that have a number, over the last 20 s or now."""
    expr = interpolated(target["expr"], variables)
    if target["instant"]:
        found = [[series["value"]] for series in stack.prometheus.query(expr)]
    else:
        now = time.time()
        found = [series["values"] for series in stack.prometheus.query_range(expr, now - 20, now)]
    return [values for values in found if any(value != "NaN" for _, value in values)]


CHOICES = {
    "all": {"job": SERVICE},
    "one of each": {
        "job": SERVICE,
        "rule": "GpuOverheating",
        "severity": "warning",
        **dict.fromkeys(("run", "rank", "host"), "one"),
        "disk": ["NVTEST1", "Z9FAILS"],
        "device": "that of the data",
    },
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board["uid"])
def test_every_query_has_data(stack, board, choice):
    wanted = dict(CHOICES[choice])
    if "device" in wanted:
        (data, *_) = stack.prometheus.query("gpumon_dataset_info_ratio")
        wanted["device"] = data["metric"]["system_device"]
    variables = choose(board, label_values(stack), wanted)
    assert "$" not in json.dumps(variables)
    without = [
        f"{panel['title']}: {interpolated(target['expr'], variables)}"
        for panel, target in queries(board)
        if panel["title"] not in EXEMPT and not data_of(stack, target, variables)
    ]
    assert not without, "\n\n".join(without)


def test_what_was_not_chosen_is_not_shown(stack):
    """Of another service, another run, another machine, there is nothing."""
    board = next(board for board in BOARDS if board["uid"] == "gpumon-training-run")
    for wanted in ({"job": "trainXv2 (a+b)"}, {"job": SERVICE, "run": "0"}, {"job": SERVICE, "host": ["x", "y"]}):
        variables = choose(board, label_values(stack), wanted)
        shown = [
            panel["title"]
            for panel, target in queries(board)
            if panel["type"] == "timeseries" and data_of(stack, target, variables)
        ]
        assert shown == [], wanted


def test_a_device_is_shown_once(stack):
    """Agent and training both know it; with a page /metrics, under one name of the machine."""
    board = next(board for board in BOARDS if board["uid"] == "gpumon-training-run")
    variables = choose(board, label_values(stack), {"job": SERVICE})
    (panel,) = [panel for panel in panels(board) if panel["title"] == "GPU utilization"]
    found = stack.prometheus.query(interpolated(panel["targets"][0]["expr"], variables))
    assert sorted(series["metric"]["gpumon_gpu_index"] for series in found) == ["0", "1"]
    assert {series["metric"]["host_name"] for series in found} == {os.uname().nodename}


def test_rules_fire_once_per_device(stack):
    """The hot GPU and the failing disk, however many report them, with the machine's name."""
    fired = [alert["labels"] for alert in stack.prometheus.alerts() if alert["state"] == "firing"]
    assert {alert["alertname"] for alert in fired} == set(FIRES) and len(fired) == len(FIRES)
    for alert in fired:
        expected = {**FIRES[alert["alertname"]], "host_name": os.uname().nodename, "monitor": "gpumon"}
        assert alert.items() >= expected.items()


def test_marks_of_alerts(stack):
    """The annotations of the dashboards find the alert that fires."""
    for board in BOARDS:
        variables = choose(board, label_values(stack), {"job": SERVICE})
        for annotation in board.get("annotations", {}).get("list", []):
            found = stack.prometheus.query(interpolated(annotation["expr"], variables))
            assert found, board["uid"]


@pytest.mark.parametrize("stack", ["gateway"], indirect=True)
def test_a_dot_opens_its_step(stack):
    """An exemplar that the panel gets names a trace that Jaeger has: the link is by this label."""
    board = next(board for board in BOARDS if board["uid"] == "gpumon-training-run")
    variables = choose(board, label_values(stack), {"job": SERVICE})
    asked = [target for _, target in queries(board) if target.get("exemplar")]
    assert asked
    for target in asked:
        exemplars = stack.prometheus.exemplars(interpolated(target["expr"], variables))
        assert len(exemplars) > 3
        ids = {exemplar["labels"]["trace_id"] for exemplar in exemplars[:10]}
        eventually(lambda ids=ids: all(stack.jaeger.trace(each) for each in ids), timeout_s=15)
