"""docker-compose.yml: what the specification's schema says, what each container may do, and its services run for real.

There is no Docker where this is tested: each service's command and variables run outside, with the paths and ports of
this machine in place of the containers'.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from otel_collector import OTELCOL, free_port
from otlp_receiver import eventually
from peers import (
    JAEGER,
    PROMETHEUS,
    ClickHouse,
    Peer,
    needs_clickhouse,
    needs_collector,
    needs_jaeger,
    needs_prometheus,
)

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES = COMPOSE["services"]
ONE_SHOT = {"owners", "clickhouse-tables", "train"}
WITHOUT_SHELL = {"collector", "tempo"}
"""Their images have nothing to run a health check with."""
ROOT_USER = {"owners": ["CHOWN"], "agent": ["SYS_RAWIO", "SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "SYSLOG"]}
"""Capabilities of those that run as root."""
BUILT = {"clickhouse-tables", "agent", "train"}


def interpolated(text, variables):
    """As Compose does: ${NAME:-default}."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: variables.get(match[1]) or match[2], text)


def mounts(service):
    """Target → (source, options) of a service's volumes."""
    found = {}
    for text in SERVICES[service].get("volumes", ()):
        source, target, *options = text.split(":")
        found[target] = source, options
    return found


def test_it_fits_the_specification():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_starts_by_itself_and_what_by_its_profile():
    by_profile = {}
    for name, service in SERVICES.items():
        by_profile.setdefault(tuple(service.get("profiles", ())), set()).add(name)
    assert by_profile == {
        (): {"owners", "collector", "jaeger", "prometheus", "grafana"},
        ("tempo",): {"tempo"},
        ("clickhouse",): {"clickhouse", "clickhouse-tables"},
        ("agent",): {"agent"},
        ("train",): {"train"},
    }
    for name, service in SERVICES.items():
        for other, condition in service.get("depends_on", {}).items():
            is_there = set(SERVICES[other].get("profiles", ())) <= set(service.get("profiles", ()))
            assert is_there or condition["required"] is False, (name, other)
            assert condition["condition"] != "service_healthy" or "healthcheck" in SERVICES[other], (name, other)
            completes = condition["condition"] == "service_completed_successfully"
            assert completes == (other in ONE_SHOT), (name, other)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name):
    """By an exact version and a digest; those built here, and one whose digest is not known, by the version."""
    image = SERVICES[name]["image"]
    assert re.search(r":v?\d+\.\d+\.\d+", image), image
    assert bool(re.search(r"@sha256:[0-9a-f]{64}$", image)) == (name not in {*BUILT, "clickhouse"}), image
    assert ("build" in SERVICES[name]) == (name in BUILT)


@pytest.mark.parametrize("name", SERVICES)
def test_containers_may_do_no_more_than_they_must(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == ROOT_USER.get(name, [])
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert service["user"].startswith("0:") == (name in ROOT_USER)
    assert "mem_limit" in service and "pids_limit" in service
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), port
    for target, (source, options) in mounts(name).items():
        if source.startswith("./"):
            assert (ROOT / source).exists(), source
            assert options == ["ro"], target
    assert ("healthcheck" in service) == (name not in ONE_SHOT | WITHOUT_SHELL)
    if name in ONE_SHOT:
        assert service["restart"] in ("no", "on-failure:5")


@pytest.mark.parametrize("name", ["collector", "jaeger", "prometheus", "grafana", "tempo"])
def test_go_knows_how_much_memory_it_has(name):
    """Four fifths of the container's limit: past it the garbage collector works harder, not the kernel's killer."""
    mebibytes = {text: int(text[:-1]) * {"m": 1, "g": 1024}[text[-1]] for text in [SERVICES[name]["mem_limit"]]}[
        SERVICES[name]["mem_limit"]
    ]
    goal = int(re.fullmatch(r"(\d+)MiB", SERVICES[name]["environment"]["GOMEMLIMIT"])[1])
    assert 0.75 <= goal / mebibytes <= 0.8


def test_every_volume_belongs_to_who_writes_it():
    """The job that runs first gives each to the user that the service runs as; the agent is root anyway."""
    text = " ".join(SERVICES["owners"]["command"])
    owner = {
        folder: user
        for user, folders in re.findall(r"chown (\d+:\d+) (.+?)(?= chown|$)", text.replace("\n", " "))
        for folder in folders.split()
    }
    paths = {source: target for target, (source, _) in mounts("owners").items()}
    users = {
        source: service["user"]
        for name, service in SERVICES.items()
        for source, options in mounts(name).values()
        if source in COMPOSE["volumes"] and name not in ("owners", "agent")
    }
    assert {paths[volume] for volume in users} == set(owner)
    assert {volume: owner[paths[volume]] for volume in users} == users
    assert set(COMPOSE["volumes"]) == {*users, "agent"}
    for name in users.keys() & SERVICES.keys():
        assert "owners" in SERVICES[name]["depends_on"], name


def test_it_runs_without_any_variable_set():
    """Every variable has a default, and the top of the file names no other."""
    text = FILE.read_text()
    named = set(re.findall(r"\$\{(\w+):-", text))
    assert len(re.findall(r"\$\{", text)) == len(re.findall(r"\$\{\w+:-[^}]*\}", text))
    head = text[: text.index("\nname:")]
    assert set(re.findall(r"\b([A-Z]+(?:_[A-Z]+)+)=", head)) <= named | {"OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert {"COLLECTOR_OVERLAYS", "TRACES_ENDPOINT", "AGENT_DISK"} <= set(re.findall(r"[A-Z]+_[A-Z]+", head))
    assert set(re.findall(r"--profile (\w+)", head)) == {p for s in SERVICES.values() for p in s.get("profiles", ())}


def test_the_agent_is_the_one_of_the_examples():
    """The same rights and the same view of the machine."""
    example = yaml.safe_load((ROOT / "examples/deploy/container/compose.agent.yaml").read_text())["services"]["agent"]
    same = ("image", "pid", "network_mode", "uts", "cgroup", "deploy", "cap_drop", "cap_add", "security_opt")
    for key in (*same, "read_only", "tmpfs", "mem_limit", "healthcheck"):
        assert SERVICES["agent"][key] == example[key], key
    assert {target for target, _ in mounts("agent").items()} == {text.split(":")[1] for text in example["volumes"]}
    dockerfile = ROOT / SERVICES["agent"]["build"]["context"] / SERVICES["agent"]["build"]["dockerfile"]
    assert dockerfile.samefile(ROOT / "examples/deploy/container/Dockerfile")


@pytest.mark.parametrize("name", ["clickhouse-tables", "train"])
def test_what_is_built_here_has_its_sources(name):
    text = SERVICES[name]["build"]["dockerfile_inline"]
    sources = [source for line in re.findall(r"^COPY (.+)$", text, re.M) for source in line.split()[:-1]]
    assert sources and all((ROOT / source).exists() for source in sources)
    assert "USER 10001:10001" in text


def test_grafana_asks_the_services_that_are_there():
    """Its data sources, optional ones too, name services of this file and the ports that they listen on."""
    ports = {"prometheus": {9090}, "jaeger": {16686}, "tempo": {3200}, "clickhouse": {8123, 9000}}
    folder = ROOT / mounts("grafana")["/etc/grafana/provisioning"][0]
    files = (folder / "datasources").rglob("*.y*ml")
    sources = [source for path in files for source in yaml.safe_load(path.read_text())["datasources"]]
    places = set()
    for source in sources:
        told = source.get("jsonData", {})
        url = source.get("url") or f"tcp://{told['host']}:{told['port']}"
        host, port = re.fullmatch(r"\w+://([\w-]+):(\d+)/?", url).groups()
        assert int(port) in ports[host], url
        places.add(host)
    assert {"prometheus", "jaeger"} <= places <= SERVICES.keys()
    variables = re.findall(r"(?<!\$)\$([A-Z_]+)", "".join(map(str, sources)))
    assert set(variables) <= SERVICES["grafana"]["environment"].keys()
    files = (folder / "dashboards").glob("*.y*ml")
    providers = [provider for path in files for provider in yaml.safe_load(path.read_text())["providers"]]
    assert {provider["options"]["path"] for provider in providers} == {"/etc/grafana/dashboards"} & mounts(
        "grafana"
    ).keys()


class Locally:
    """Runs services outside Docker: mounted paths are the repository's or below *folder*."""

    def __init__(self, folder, **variables):
        self.folder, self.variables = folder, variables

    def path(self, service, text):
        """*text* with the paths of this machine."""
        for target, (source, _) in sorted(mounts(service).items(), key=lambda mount: -len(mount[0])):
            here = ROOT / source if source.startswith("./") else self.folder / f"volume-{source}"
            if not source.startswith("./"):
                here.mkdir(parents=True, exist_ok=True)
            text = re.sub(rf"(?<![\w/]){re.escape(target)}(?=/|$)", str(here), text)
        return text

    def command(self, service):
        command = SERVICES[service]["command"]
        words = shlex.split(interpolated(command, self.variables)) if isinstance(command, str) else command
        return [self.path(service, interpolated(word, self.variables)) for word in words]

    def environment(self, service, **instead):
        found = SERVICES[service].get("environment", {})
        return {
            **{name: self.path(service, interpolated(value, self.variables)) for name, value in found.items()},
            **instead,
        }

    def cwd(self, service):
        return Path(self.path(service, SERVICES[service]["working_dir"]))


@pytest.fixture
def stack(tmp_path):
    """Jaeger, Prometheus and the Collector as the file has them, in its order; stopped in the other one."""
    locally = Locally(tmp_path)
    started = []

    def start(service, program, ready, **instead):
        command = [program, *locally.command(service)]
        if service == "prometheus":
            command = [re.sub(r"0\.0\.0\.0:9090", ready.split("/")[2], word) for word in command]
        cwd = locally.cwd(service) if "working_dir" in SERVICES[service] else None
        peer = Peer(tmp_path / service, command, ready, locally.environment(service, **instead), cwd=cwd)
        peer.start()
        started.append(peer)
        return peer

    def run(**variables):
        locally.variables = variables
        ports = {name: str(free_port()) for name in ("query", "query_grpc", "traces", "jaeger_health", "prometheus")}
        jaeger = start(
            *("jaeger", JAEGER, f"http://127.0.0.1:{ports['jaeger_health']}/status"),
            JAEGER_LISTEN_HOST="127.0.0.1",
            JAEGER_HEALTH_PORT=ports["jaeger_health"],
            JAEGER_QUERY_PORT=ports["query"],
            JAEGER_QUERY_GRPC_PORT=ports["query_grpc"],
            JAEGER_OTLP_GRPC_PORT=ports["traces"],
        )
        jaeger.url = f"http://127.0.0.1:{ports['query']}"
        prometheus = start("prometheus", PROMETHEUS, f"http://127.0.0.1:{ports['prometheus']}/-/ready")
        own = {
            name: str(free_port()) for name in ("OTLP_GRPC_PORT", "OTLP_HTTP_PORT", "HEALTH_PORT", "OWN_METRICS_PORT")
        }
        collector = start(
            *("collector", OTELCOL, f"http://127.0.0.1:{own['HEALTH_PORT']}/"),
            OTLP_HOST="127.0.0.1",
            PROMETHEUS_OTLP_ENDPOINT=f"{prometheus.url}/api/v1/otlp",
            TRACES_ENDPOINT=f"127.0.0.1:{ports['traces']}",
            **own,
            **{name: value for name, value in variables.items() if name == "CLICKHOUSE_ENDPOINT"},
        )
        collector.http = f"http://127.0.0.1:{own['OTLP_HTTP_PORT']}"
        return jaeger, prometheus, collector

    run.locally = locally
    yield run
    for peer in reversed(started):
        peer.kill()


def values(prometheus, query):
    return [float(series["value"][1]) for series in prometheus.get("/api/v1/query", query=query)["data"]["result"]]


@needs_collector
@needs_jaeger
@needs_prometheus
def test_the_default_services_work_together(stack, train):
    """A training's steps are in Prometheus, deltas too, and in Jaeger, there still after it was restarted."""
    jaeger, prometheus, collector = stack()
    delta = {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"}
    trainings = {
        "compose": train("compose", OTEL_EXPORTER_OTLP_ENDPOINT=collector.http),
        "deltas": train("deltas", OTEL_EXPORTER_OTLP_ENDPOINT=collector.http, **delta),
    }
    time.sleep(5)
    for service, training in trainings.items():
        steps, query = len(training.finish()["steps"]), f'gpumon_step_count_total{{job="{service}"}}'
        eventually(lambda: values(prometheus, query) == [steps], timeout_s=15)

    def slow():
        tags = '{"gpumon.step.slow":"true"}'
        return jaeger.get("/api/traces", service="compose", tags=tags, minDuration="250ms", lookback="1h")["data"]

    assert eventually(slow, timeout_s=15)
    jaeger.stop()
    jaeger.start()
    assert eventually(slow, timeout_s=15)
    assert prometheus.get("/api/v1/status/flags")["data"]["storage.tsdb.retention.time"] == "30d"


@needs_collector
@needs_jaeger
@needs_prometheus
def test_the_example_trains_and_sends(stack, tmp_path):
    """The profile `train`: its command, here, prints a report; its steps are in Prometheus."""
    pytest.importorskip("torch", reason="no PyTorch: pip install torch")
    _, prometheus, collector = stack()
    command = [{"gpumon": f"{Path(sys.executable).parent}/gpumon"}.get(w, w) for w in SERVICES["train"]["command"]]
    command = [word.replace("/examples/", f"{ROOT}/examples/") for word in command]
    environment = stack.locally.environment("train", OTEL_EXPORTER_OTLP_ENDPOINT=collector.http)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GPUMON_"))}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    done = subprocess.run(
        command, cwd=tmp_path, env={**kept, **environment, "PATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "120 steps" in done.stdout + done.stderr
    query = 'gpumon_step_count_total{job="plain_pytorch"}'
    eventually(
        lambda: [s["value"][1] for s in prometheus.get("/api/v1/query", query=query)["data"]["result"]] == ["120"]
    )


@needs_collector
@needs_jaeger
@needs_prometheus
@needs_clickhouse
def test_the_profile_clickhouse(stack, train, tmp_path):
    """Its tables are made by gpumon, the Collector with the overlay of the top of the file fills them."""
    with ClickHouse(tmp_path / "clickhouse") as clickhouse:
        place = clickhouse.url.removeprefix("http://")
        command = [word.replace("clickhouse:8123", place) for word in SERVICES["clickhouse-tables"]["command"]]
        gpumon = [sys.executable, "-m", "gpumon.cli"]
        done = subprocess.run([*gpumon, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        os.environ["CLICKHOUSE_COMPRESS"] = "none"  # the engine behind HTTP takes no other
        try:
            _, _, collector = stack(
                COLLECTOR_OVERLAYS="--config=clickhouse.yaml --config=tailsampling.yaml",
                CLICKHOUSE_ENDPOINT=f"{clickhouse.url}/otel",
            )
        finally:
            del os.environ["CLICKHOUSE_COMPRESS"]
        training = train("compose", OTEL_EXPORTER_OTLP_ENDPOINT=collector.http)
        time.sleep(4)
        steps = len(training.finish()["steps"])
        collector.stop()
        (found,) = clickhouse.query(
            "select max(Value) as n from otel.otel_metrics_sum where MetricName = 'gpumon.step.count'"
        )
        assert found["n"] == steps
        (view,) = clickhouse.query("select steps from otel.gpumon_runs where service = 'compose'")
        assert view["steps"] == steps
