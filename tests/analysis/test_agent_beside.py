"""Runs whose devices the node's agent exports: a backend has them in two parts, reports put these together."""

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from agent_process import agent_process, short_folder
from clickhouse_flow import Gateway, address
from compare_rows import is_same
from gpumon import metrics as m
from gpumon.analysis.clickhouse.address import parse
from gpumon.analysis.clickhouse.install import install
from gpumon.analysis.clickhouse.server import Server
from gpumon.analysis.clickhouse.tables import Layout
from gpumon.analysis.report import build_report
from gpumon.export import export
from gpumon.system.node_series import device_of
from otlp_receiver import eventually
from peers import ClickHouse, needs_clickhouse, needs_collector
from recorded import START_S, Disk, Gpu, Recorder, Training, record_agent

TRAIN = Path(__file__).parents[1] / "scenarios" / "train.py"
RUN_IDS = {"node-1": "aa" * 16, "node-2": "bb" * 16}


def drive(serial, device, reallocated, state="predicted_failure"):
    disk = {m.HW_ID: serial}
    return [
        (m.SMART_INFO, 1, {**disk, m.HW_MODEL: "SSD 870", m.SYSTEM_DEVICE: device}),
        (m.SMART_COUNT, reallocated, {**disk, m.SMART_COUNTER: "reallocated"}),
        (m.STATUS, 1, {**disk, m.HW_STATE: state}),
    ]


def in_two_parts(line, node, is_exported_by_agent):
    """A line of a process as it sends it beside an agent, and what of it the agent sends."""
    own = json.loads(line)
    agents = copy.deepcopy(own)
    for part, is_agents in ((own, False), (agents, True)):
        for resource in part["resourceMetrics"]:
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    (data,) = (metric[kind] for kind in ("gauge", "sum", "histogram") if kind in metric)
                    data["dataPoints"] = [
                        point for point in data["dataPoints"] if is_machines(metric["name"], point) == is_agents
                    ]
    described = agents["resourceMetrics"][0]["resource"]["attributes"]
    described[:] = [each for each in described if each["key"] not in ("gpumon.run.id", "gpumon.rank")]
    for each in described:
        if each["key"] in ("service.name", "service.instance.id"):
            each["value"] = {"stringValue": f"{each['key']} of the agent on {node}"}
    return [own, agents] if is_exported_by_agent else [own]


def under_a_provider_of_the_application(line, *, names_node):
    """The line as it is where run and machine are on the points; *names_node*: its resource has the node as well."""
    line = json.loads(line) if isinstance(line, str) else copy.deepcopy(line)
    for resource in line["resourceMetrics"]:
        described = {each["key"]: each for each in resource["resource"]["attributes"]}
        moved = [described.pop(key) for key in ("gpumon.run.id", "gpumon.rank", "host.name") if key in described]
        if len(moved) < 3:
            return line  # the agent's
        moved.append(described["gpumon.node.id"] if names_node else described.pop("gpumon.node.id"))
        resource["resource"]["attributes"] = list(described.values())
        for scope in resource["scopeMetrics"]:
            for metric in scope["metrics"]:
                (data,) = (metric[kind] for kind in ("gauge", "sum", "histogram") if kind in metric)
                for point in data["dataPoints"]:
                    point["attributes"] = [*point.get("attributes", []), *moved]
    return line


def is_machines(name, point):
    given = {each["key"]: next(iter(each["value"].values())) for each in point.get("attributes", ())}
    return device_of(name, given) is not None


def recording(folder, node, begin_s, **training):
    recorder = Recorder(folder, run_id=RUN_IDS[node], node=node, start_s=START_S + begin_s, instance=node)
    for window in range(40):
        extra = drive(f"S6-{node}", "loop0", 300 + window)
        recorder.window(Training(extra=extra, **training))
    return recorder.metrics


PROVIDERS = {
    "provider of gpumon": lambda line: line,
    "provider of the application": partial(under_a_provider_of_the_application, names_node=False),
    "provider that names the node": partial(under_a_provider_of_the_application, names_node=True),
}


@pytest.fixture(params=PROVIDERS)
def two_nodes(request, tmp_path):
    """Run directories' metrics by node, and a Collector's file of both: every fifth export of the machine's series."""
    alone = {
        "node-1": recording(tmp_path / "1", "node-1", 0.0, gpus=[Gpu(busy=0.2)], disks=[Disk(unloaded_s=0.078)]),
        "node-2": recording(tmp_path / "2", "node-2", 300.0, disks=[Disk("sdq", await_s=0.0004, utilization=0.1)]),
    }
    parts = [
        part
        for node, metrics in alone.items()
        for number, line in enumerate(metrics.read_text().splitlines())
        for part in in_two_parts(line, node, number % 5 == 4)
    ]
    file = tmp_path / "otlp.jsonl"
    file.write_text("".join(json.dumps(PROVIDERS[request.param](part)) + "\n" for part in parts))
    return alone, file


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_the_report_is_that_of_the_run_directory(two_nodes, node):
    """Verdict, causes, and every device's figures, of the own node alone; an agent is no process of the run."""
    alone, file = two_nodes
    expected, found = build_report(alone[node]).as_dict(), build_report(f"{file}?run={RUN_IDS[node]}").as_dict()

    for part in ("verdict", "steps"):
        assert is_same(expected[part], found[part])
    assert (found["run"]["service"], found["run"]["hosts"]) == ("train", expected["run"]["hosts"])
    assert [(each["rule"], each["cause"], each["device"]) for each in found["findings"]] == [
        (each["rule"], each["cause"], each["device"]) for each in expected["findings"]
    ]
    assert [device["id"] for device in found["devices"]] == [device["id"] for device in expected["devices"]]
    for mine, theirs in zip(found["devices"], expected["devices"], strict=True):
        for figure in ("await_s", "queue_length", "utilization", "read_bytes_per_s", "temperature_celsius"):
            if figure in theirs:
                assert mine[figure]["mean"] == pytest.approx(theirs[figure]["mean"], rel=0.01), (mine["id"], figure)


def test_the_reports_have_something_to_compare(two_nodes):
    """Without the agents' part there would be neither disk nor GPU nor its health."""
    alone, _ = two_nodes
    content = build_report(alone["node-1"]).as_dict()

    assert content["findings"][0]["cause"] == "disk_slow"
    assert {"DiskFailing"} <= {each["rule"] for each in content["findings"]}
    assert [device["id"] for device in content["devices"]][:2] == ["loop0", "GPU-0"]


def test_a_disk_that_the_training_read_first_and_the_agent_later(tmp_path):
    """One disk, as well as it was at last, and what it grew over both."""
    recorder = Recorder(tmp_path, node="node-1")
    for window in range(40):
        extra = drive("S6", "loop0", 0, "ok") if window < 3 else []
        recorder.window(Training(extra=extra, disks=[Disk(unloaded_s=0.078)]))
    file = tmp_path / "otlp.jsonl"
    record_agent(file, [drive("S6", "loop0", 8)] * 3, "node-1", every_s=10.0, start_s=START_S + 10)
    with file.open("a") as out:
        out.write(recorder.metrics.read_text())
    content = build_report(file).as_dict()

    (failing,) = (each for each in content["findings"] if each["rule"] == "DiskFailing")
    assert "+8 since the run began" in failing["summary"]
    assert content["devices"][0]["health"] == "predicted_failure"


@needs_clickhouse
@pytest.mark.parametrize("names_node", [False, True])
def test_two_runs_on_one_node_under_providers_of_their_applications(tmp_path, names_node):
    """In ClickHouse each has its own rows, and not the other's as if an agent had sent them."""
    quick, slow = Disk(await_s=0.0004, utilization=0.1), Disk(unloaded_s=0.078)
    alone = {}
    for number, disk in enumerate((quick, slow)):
        recorder = Recorder(tmp_path / str(number), run_id=f"{number}a" * 16, node="node-1", instance=f"i{number}")
        for _ in range(40):
            recorder.window(Training(disks=[disk]))
        alone[f"{number}a" * 16] = build_report(recorder.metrics).as_dict()
        lines = recorder.metrics.read_text().splitlines()
        sent = [under_a_provider_of_the_application(line, names_node=names_node) for line in lines]
        recorder.metrics.write_text("".join(json.dumps(line) + "\n" for line in sent))
    with ClickHouse(tmp_path / "engine") as clickhouse:
        clickhouse.query("create database ours")
        with Server(parse(address(clickhouse, "ours"))) as server:
            install(server, layout=Layout(ttl_days=36_500))
        for number in range(2):
            assert export(tmp_path / str(number), address(clickhouse, "ours")).is_whole
        for run, expected in alone.items():
            found = build_report(address(clickhouse, "ours", run)).as_dict()
            assert is_same(expected["verdict"], found["verdict"])
            for mine, theirs in zip(found["devices"], expected["devices"], strict=True):
                assert mine["id"] == theirs["id"]
                assert mine.get("await_s") == pytest.approx(theirs.get("await_s"))
    first, second = (expected["devices"][0]["await_s"]["mean"] for expected in alone.values())
    assert first < 0.01 < second


def judged(name):
    """(verdict, cause, device) of the first finding."""
    content = build_report(name).as_dict()
    first = content["findings"][0] if content["findings"] else {"cause": None, "device": None}
    return content["verdict"], first["cause"], first["device"]


def senders(file, device):
    """How often each service sent the utilization of a disk."""
    sent = Counter()
    for line in map(json.loads, file.read_text().splitlines()):
        for resource in line.get("resourceMetrics", ()):
            described = {each["key"]: each["value"] for each in resource["resource"]["attributes"]}
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    if metric["name"] == "gpumon.disk.utilization" and f'"{device}"' in json.dumps(metric):
                        sent[described["service.name"]["stringValue"]] += 1
    return sent


LAUNCHERS = {
    "gpumon run": [sys.executable, "-m", "gpumon", "run", "--no-report", "--", sys.executable],
    "opentelemetry-instrument": [Path(sys.executable).with_name("opentelemetry-instrument"), sys.executable],
}
"""With providers of gpumon's own, and with OpenTelemetry's."""


@needs_collector
@needs_clickhouse
@pytest.mark.disk
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_training_beside_an_agent(slow_disk, tmp_path, launcher):
    """Both send to the Collector: its file and ClickHouse give the verdict of the run directory, on the same disk."""
    data = slow_disk.path / "data"
    data.mkdir()
    for number in range(900):
        (data / f"{number:04}.bin").write_bytes(bytes(16384))
    slow_disk.drop_caches()
    slow_disk.set_delay(0.03)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GPUMON_"))}
    run = tmp_path / "run"
    command = [*LAUNCHERS[launcher], TRAIN]
    options = f"--data {data} --workers 2 --batch 4 --pause 0.01".split()
    with short_folder() as folder, ClickHouse(tmp_path / "engine") as clickhouse:
        clickhouse.query("create database ours")
        with Server(parse(address(clickhouse, "ours"))) as server:
            install(server, layout=Layout())
        with Gateway(tmp_path / "collector", clickhouse) as gateway:
            to_gateway = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": gateway.http,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",  # OpenTelemetry's launcher takes gRPC
                "OTEL_METRIC_EXPORT_INTERVAL": "2000",
            }
            with agent_process(folder, **to_gateway) as agent:
                eventually(lambda: agent.ask("/v1/health")["exports"], timeout_s=20)
                own = {
                    "GPUMON_EXPORT": "otlp+file",
                    "GPUMON_RUN_DIR": str(run),
                    "GPUMON_AGENT_SOCKET": str(agent.socket),
                    "OTEL_SERVICE_NAME": "train",
                }
                subprocess.run([*command, *options], env={**kept, **to_gateway, **own}, check=True, timeout=120)
            expected = judged(run)
            assert expected == ("data_loading_bound", "disk_slow", slow_disk.device)
            (own_reading,) = (each for each in build_report(run).devices if each["id"] == slow_disk.device)
            assert own_reading["await_s"]["mean"] > 0.03
            in_clickhouse = address(clickhouse, "ours", json.loads((run / "run.json").read_text())["id"])
            for name in (str(gateway.file), in_clickhouse):
                eventually(lambda name=name: judged(name) == expected, timeout_s=30)
                (disk,) = (each for each in build_report(name).devices if each["id"] == slow_disk.device)
                assert disk["holds_dataset"]
                assert disk["await_s"]["mean"] == pytest.approx(own_reading["await_s"]["mean"], rel=0.3)
                assert disk["utilization"]["mean"] > 0.3  # the launcher's providers count from the start of Python on
            sent = senders(gateway.file, slow_disk.device)
            assert sent["gpumon-agent"] > 3
            assert sent["train"] < 3  # until it knew of the agent
