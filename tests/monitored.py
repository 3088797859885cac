"""A training, a node's agent and Prometheus with our rules, joined in one of the ways that users have.

    with monitored(folder, "scraped") as stack:
        stack.prometheus.query("gpumon_step_count_total")

`direct`: both send OTLP to Prometheus. `launcher`: so, but the training is started by OpenTelemetry's launcher and has
its providers. `gateway`: both send to the Collector, which hands it on. `scraped`: the agent is scraped, and the
training, which has no readings of devices, sends OTLP. The GPUs are the stand-in's (one is busy and hot, one
idle and divided), disks are a fake smartctl's (one is about to fail), and a Slurm job holds the GPUs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import fakenode
import smart_documents
from agent_process import short_folder
from fake_smartctl import FakeSmartctl
from nvml import standin
from otel_collector import free_port
from otlp_receiver import eventually
from peers import Gateway, Jaeger, Prometheus

ROOT = Path(__file__).parents[1]
SERVICE = "train.v2 (a+b)"  # what a regular expression would not take as it is
WAYS = ("direct", "launcher", "gateway", "scraped")
HERE = Path(__file__).parent


@dataclass
class Stack:
    prometheus: Prometheus
    jaeger: Jaeger | None


def prometheus_config(folder: Path, scraped_port: int | None = None, alertmanager: str | None = None) -> str:
    """Ours, with times that suit a test: every rule is evaluated every second; *alertmanager*: host and port."""
    rules = yaml.safe_load((ROOT / "prometheus" / "rules" / "gpumon.yml").read_text())
    for group in rules["groups"]:
        group.pop("interval", None)
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    config: dict[str, Any] = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(folder.resolve() / "rules.yml")]
    targets = [{"targets": [f"127.0.0.1:{scraped_port}"]}]
    config["scrape_configs"] = [{"job_name": "gpumon-agent", "static_configs": targets}] if scraped_port else []
    if alertmanager:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    return yaml.safe_dump(config)


@contextmanager
def monitored(folder: Path, way: str, *, alertmanager: str | None = None) -> Iterator[Stack]:
    """Agent and training go on until the end; alerts go to *alertmanager* (host and port)."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        port = free_port() if way == "scraped" else None
        prometheus = stack.enter_context(
            Prometheus(folder / "prometheus", prometheus_config(folder, port, alertmanager))
        )
        jaeger = stack.enter_context(Jaeger(folder / "jaeger")) if way == "gateway" else None
        endpoint = prometheus.otlp
        if way == "gateway":
            gateway = stack.enter_context(Gateway(folder / "gateway", prometheus=prometheus, jaeger=jaeger))
            endpoint = gateway.http
        socket = stack.enter_context(short_folder()) / "agent.sock"
        metrics_alone = {} if jaeger else {"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
        otlp = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            **metrics_alone,
        }
        launcher = [str(Path(sys.executable).with_name("opentelemetry-instrument"))] if way == "launcher" else []
        node = machine(folder)
        options = ["--socket", str(socket), *(["--prometheus", f"127.0.0.1:{port}"] if port else [])]
        stack.callback(
            _end, _start(folder, "agent_on_node.py", str(node), *options, **devices(folder), **({} if port else otlp))
        )
        data = folder / "data"
        data.mkdir()
        for number in range(120):
            (data / f"{number}.bin").write_bytes(os.urandom(1 << 16))
        own = {"GPUMON_COLLECTORS": "dataset,process,host"} if port else devices(folder)
        stack.callback(
            _end,
            _start(
                folder, "monitored_training.py", str(data), **own, **otlp, OTEL_SERVICE_NAME=SERVICE,
                GPUMON_AGENT_SOCKET=str(socket), launcher=launcher,
            ),
        )  # fmt: skip
        stack.callback((data / "stop").touch)
        yield Stack(prometheus, jaeger)


def _start(
    folder: Path, script: str, *arguments: str, launcher: Sequence[str] = (), **variables: str
) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GPUMON_"))}
    with open(folder / f"{script}.log", "w") as log:
        return subprocess.Popen(
            [*launcher, sys.executable, str(HERE / script), *arguments],
            cwd=folder,
            env={**kept, "PYTHONPATH": str(HERE), **variables},
            stdout=log,
            stderr=log,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def devices(folder: Path) -> dict[str, str]:
    """Variables of a process that shall find the made-up devices."""
    state = folder / "nvml.state"
    if not state.exists():
        keys = {**standin.HEALTHY, "gpus": 2, "0.celsius": 87, "0.gpu": 80, "1.gpu": 0, "1.mig": 2}
        state.write_text("".join(f"{key}={value}\n" for key, value in keys.items()))
        smartctl = FakeSmartctl(folder)
        smartctl.answer("/dev/sda", smart_documents.hdd())
        smartctl.answer("/dev/nvme0", smart_documents.nvme(), "nvme")
        failing = [
            smart_documents.attribute(5, "Reallocated_Sector_Ct", 2044, value=1, thresh=10, prefail=True, when="now")
        ]
        smartctl.answer("/dev/sdb", smart_documents.ata(failing, serial="Z9FAILS", model="WORN OUT", name="/dev/sdb"))
    return {
        **{
            key: value
            for key, value in standin.environment(state).items()
            if key in ("LD_LIBRARY_PATH", "NVML_STANDIN")
        },
        "GPUMON_SMARTCTL": str(folder / "fake-smartctl" / "smartctl"),
        "GPUMON_STATE_DIR": str(folder / "state"),
        "GPUMON_INTERVALS": "smart=2,holder=1",
    }


def machine(folder: Path) -> Path:
    """A tree with a Slurm job that was given both GPUs."""
    node = fakenode.Node(folder / "node")
    group = "0::/system.slice/slurmstepd.scope/job_77/step_0/user/task_0"
    uuids = ",".join(f"GPU-{index:08d}-1111-2222-3333-444444444444" for index in range(2))
    node.process(700, group, SLURM_JOB_ID="77", SLURM_JOB_USER="ada", CUDA_VISIBLE_DEVICES=uuids)
    return node.root


def wait_for(stack: Stack, promql: str, *, more_than: float = 0.0, timeout_s: float = 60) -> None:
    """Until a query has a series with a greater value."""

    def is_there() -> bool:
        return any(float(found["value"][1]) > more_than for found in stack.prometheus.query(promql))

    eventually(is_there, timeout_s=timeout_s)
