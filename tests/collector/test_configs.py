"""Every file of collector-config/: what the real Collector says of it, alone and with the others."""

import json
import os
import re
import subprocess
from itertools import chain, combinations

import pytest
import yaml

from otel_collector import OTELCOL, make_certificates
from peers import CONFIGS, Gateway, needs_collector

OVERLAYS = ("spanmetrics.yaml", "tailsampling.yaml", "clickhouse.yaml", "vendor.yaml", "secure.yaml")
BASES = ("gateway.yaml", "agent.yaml")
SETTINGS = {"VENDOR_ENDPOINT": "http://127.0.0.1:1", "VENDOR_HEADERS": '{"api-key": "secret"}'}
KINDS = ("receivers", "processors", "exporters", "connectors", "extensions")
SOME = list(chain.from_iterable(combinations(OVERLAYS, count) for count in (2, 3, len(OVERLAYS))))


def read(name):
    return yaml.safe_load((CONFIGS / name).read_text())


def merged(names):
    """What the Collector makes of the files, in this order."""
    done = subprocess.run(
        [OTELCOL, "print-config", "--format=json", *(f"--config={CONFIGS / name}" for name in names)],
        env={**os.environ, **SETTINGS},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{names}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def pipelines(config):
    return config["service"]["pipelines"]


def test_every_file_is_known_here():
    """A new file gets into these tests."""
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {*OVERLAYS, *BASES, "builder.yaml"}


@pytest.mark.parametrize("name", [*BASES, *OVERLAYS])
def test_each_says_at_its_top_what_it_adds(name):
    """Three lines of comment, then the configuration."""
    lines = (CONFIGS / name).read_text().splitlines()
    assert [line[:2] for line in lines[:4]] == ["# ", "# ", "# ", ""]


@needs_collector
@pytest.mark.parametrize("name", BASES)
def test_each_base_is_valid_alone(name):
    """Without any variable set."""
    merged([name])


@needs_collector
def test_overlays_add_to_the_gateway_and_take_nothing_away():
    """In any number and either order: every destination stays, and no two of them set the same list."""
    base = pipelines(merged(["gateway.yaml"]))
    alone = {name: pipelines(merged(["gateway.yaml", name])) for name in OVERLAYS}
    for found in alone.values():
        for pipeline, parts in base.items():
            assert (found[pipeline]["receivers"], found[pipeline]["exporters"]) == (
                parts["receivers"],
                parts["exporters"],
            )
    for names in SOME:
        changed = [{name: parts for name, parts in alone[file].items() if parts != base.get(name)} for file in names]
        assert sum(map(len, changed)) == len({name for parts in changed for name in parts}), names
        there, back = (merged(["gateway.yaml", *order]) for order in (names, names[::-1]))
        assert there == back
        assert pipelines(there) == base | {name: parts for part in changed for name, parts in part.items()}


@needs_collector
def test_what_thins_out_stays_out_of_files_and_clickhouse():
    """In all files together: no transformation and no sampling on the way to a file, ClickHouse or a vendor."""
    found = pipelines(merged(["gateway.yaml", *OVERLAYS]))
    whole = [name for name in found if name.endswith(("/file", "/clickhouse", "/vendor"))]
    assert len(whole) == 9
    for name in whole:
        assert set(found[name]["processors"]) <= {"memory_limiter", "resource_detection", "batch"}, name
        assert found[name]["receivers"] == ["otlp"]


@needs_collector
def test_no_backend_holds_up_another():
    """Every pipeline has one destination; before each but the file what is too much is dropped, not refused."""
    for name, pipeline in pipelines(merged(["gateway.yaml", *OVERLAYS])).items():
        assert len(pipeline["exporters"]) == 1, name
        assert pipeline["processors"][0] == "memory_limiter", name
        if "otlp" in pipeline["receivers"] and pipeline["exporters"][0] != "span_metrics":
            assert (pipeline["processors"][-1] == "batch") == (pipeline["exporters"] != ["file"]), name


@needs_collector
def test_each_starts_and_warns_of_nothing(tmp_path):
    """A real start of every file and of all together: nothing failed, nothing deprecated."""
    certificates = make_certificates(tmp_path / "tls")
    (tmp_path / "token").write_text("secret")
    settings = {
        **SETTINGS,
        "TOKEN_FILE": f"{tmp_path}/token",
        "TLS_CERT_FILE": f"{certificates}/server.pem",
        "TLS_KEY_FILE": f"{certificates}/server.key",
    }
    offline = [name for name in OVERLAYS if name != "clickhouse.yaml"]  # its exporter asks the server at its start
    for base, overlays in (
        *(("gateway.yaml", [name]) for name in offline),
        ("agent.yaml", []),
        ("gateway.yaml", offline),
    ):
        gateway = Gateway(tmp_path / "-".join([base, *overlays]), *overlays, base=base, **settings)
        with gateway:
            pass
        log = gateway.log.read_text()
        troubles = [line for line in log.splitlines() if re.search(r"\t(warn|error|fatal)\t|deprecat", line)]
        troubles = [line for line in troubles if "connection refused" not in line]  # no backend here
        assert not troubles, (base, overlays, troubles)
        assert "Everything is ready" in log


@needs_collector
def test_values_of_headers_and_tokens_are_not_printed():
    """The Collector treats what a vendor's headers hold as secret."""
    assert "secret" not in json.dumps(merged(["gateway.yaml", "vendor.yaml"]))


def used_types():
    """The kinds and types of all parts that the files name: ("exporters", "otlp_http"), …"""
    for name in (*BASES, *OVERLAYS):
        config = read(name)
        for kind in KINDS:
            for part in config.get(kind, {}):
                yield kind, part.partition("/")[0]


def built():
    """Of builder.yaml: kind → {module: version}."""
    builder = read("builder.yaml")
    return {kind: dict(part["gomod"].split() for part in builder[kind]) for kind in (*KINDS, "providers")}


@needs_collector
def test_the_minimal_collector_has_what_the_files_use_and_no_more():
    """By the modules that the Collector itself names for the types."""
    known = yaml.safe_load(subprocess.run([OTELCOL, "components"], capture_output=True, text=True).stdout)
    modules = {(kind, part["name"]): part["module"].split() for kind in KINDS for part in known[kind]}
    wanted = {kind: {} for kind in KINDS}
    for kind, type_ in used_types():
        module, version = modules[kind, type_]
        wanted[kind][module] = version
    assert {kind: set(parts) for kind, parts in wanted.items()} == {
        kind: set(parts) for kind, parts in built().items() if kind != "providers"
    }
    schemes = {module.split()[0]: module.split()[1] for module in (part["module"] for part in known["providers"])}
    assert set(built()["providers"]) <= set(schemes)
    if known["buildinfo"]["version"] == read("builder.yaml")["dist"]["version"]:
        assert built() == {**wanted, "providers": {name: schemes[name] for name in built()["providers"]}}


def test_the_minimal_collector_is_of_one_version():
    """ocb refuses a mixture; the providers of settings count from 1."""
    version = read("builder.yaml")["dist"]["version"]
    found = {kind: set(parts.values()) for kind, parts in built().items()}
    assert {kind for kind, versions in found.items() if versions != {f"v{version}"}} == {"providers"}
    assert len(found["providers"]) == 1


def test_only_the_environment_sets_hosts_ports_and_folders():
    """Whatever a file names of a machine has a variable, so that the same file runs anywhere."""
    for name in (*BASES, *OVERLAYS):
        text = re.sub(r"\$\{env:[^}]*\}", "", (CONFIGS / name).read_text())
        text = "\n".join(line.partition("#")[0] for line in text.splitlines())
        assert not re.search(r"127\.0\.0\.1|0\.0\.0\.0|localhost|https?://|:\d{4,5}\b|/var/|/run/", text), name


def test_the_documentation_knows_every_file_and_no_other_variable():
    """docs/collector.md has a row per file; the variables that it names are some file's."""
    text = (CONFIGS.parent / "docs" / "collector.md").read_text()
    rows = re.findall(r"^\| `(\w+\.yaml)` \|", text, re.M)
    assert sorted(rows) == sorted(path.name for path in CONFIGS.glob("*.yaml"))
    files = "".join(path.read_text() for path in (*CONFIGS.glob("*.yaml"), CONFIGS.parent / "docker-compose.yml"))
    named = set(re.findall(r"\b(?!OTEL_|GPUMON_)[A-Z]+_[A-Z_]+\b", text))
    assert named and named <= set(re.findall(r"[A-Z]+_[A-Z_]+", files))
    secrets = re.findall(r"\$\{env:\w+:-/run/secrets/([\w.]+)\}", (CONFIGS / "secure.yaml").read_text())
    assert all(f"{{file: secrets/{name}}}" in text for name in secrets) and len(secrets) == 3
