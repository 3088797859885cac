"""The image and the Compose file: the schema of Compose, and what the instructions of the Dockerfile say."""

import re
import subprocess
import sys

import click
import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement

from deploy.deployments import (
    CAPABILITIES,
    COMPOSE,
    CONSTRAINTS,
    DEPLOY,
    DOCKERFILE,
    ROOT,
    compose,
    daemonset,
    unit,
)
from gpumon.cli import commands

HEALTH = "from gpumon.system.agent_socket import health; health()"


def instructions():
    parsed = DockerfileParser(str(DOCKERFILE)).structure
    return [(one["instruction"], one["value"]) for one in parsed]


def values(name):
    return [value for instruction, value in instructions() if instruction == name]


def test_compose_takes_the_file():
    """The schema of the Compose specification."""
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_gives_exactly_the_capabilities_that_it_needs():
    agent = compose()["services"]["agent"]

    assert agent["cap_drop"] == ["ALL"]
    assert {name.lower() for name in agent["cap_add"]} == CAPABILITIES
    assert agent["read_only"] is True
    assert "privileged" not in agent
    assert all(device.endswith(":r") for device in agent["devices"])


def test_compose_builds_this_dockerfile_from_the_repository():
    build = compose()["services"]["agent"]["build"]
    context = (COMPOSE.parent / build["context"]).resolve()

    assert context == ROOT
    assert context / build["dockerfile"] == DOCKERFILE


def test_the_image_has_two_stages_and_nothing_of_the_first_but_the_environment():
    """No compiler, no pip, no sources; one base for both, named with its minor version."""
    base = dict(pair.split("=", 1) for pair in values("ARG"))["BASE"]

    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", base)
    assert [value.split()[0] for value in values("FROM")] == ["${BASE}", "${BASE}"]
    last = instructions()[[place for place, (name, _) in enumerate(instructions()) if name == "FROM"][-1] :]
    assert [value for name, value in last if name == "COPY"] == ["--from=build /opt/gpumon /opt/gpumon"]
    installed = next(value for name, value in last if name == "RUN")
    assert "--no-install-recommends smartmontools" in installed and installed.endswith("rm -rf /var/lib/apt/lists/*")


def test_what_the_dockerfile_copies_is_there():
    copied = [value.split()[:-1] for value in values("COPY") if not value.startswith("--from")]

    assert [name for names in copied for name in names if not (ROOT / name).exists()] == []


def test_the_image_holds_no_secret():
    """Nothing that is named like one is set or asked for: it would stay in a layer."""
    text = "\n".join(value for name, value in instructions() if name in ("ARG", "ENV", "RUN", "LABEL"))

    assert not re.search(r"(?i)passw|secret|token|api_?key|credential", text)


def test_every_package_of_the_image_has_its_version():
    """The constraints name all that the package needs, each in a version that it takes."""
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#"))
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["agent"]])

    for requirement in needed:
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


@pytest.mark.parametrize("where", ["image", "compose"])
def test_health_is_asked_through_the_socket(where):
    """The same one-liner everywhere; it fails where no agent answers."""
    check = values("HEALTHCHECK")[0] if where == "image" else str(compose()["services"]["agent"]["healthcheck"]["test"])
    assert HEALTH in check

    nobody = {"GPUMON_AGENT_SOCKET": "/nonexistent/agent.sock", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", HEALTH], capture_output=True, text=True, env=nobody, timeout=60)
    assert done.returncode != 0 and "NoAgentError" in done.stderr


def test_every_way_starts_the_agent_with_options_that_it_has():
    """Of the unit, the image, Compose and the DaemonSet, read as the command line reads them."""
    pod = daemonset()["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]
    started = {
        "systemd": unit()["ExecStart"][0].split()[1:],
        "image": [*eval(values("ENTRYPOINT")[0]), *eval(values("CMD")[-1])][1:],
        "compose": compose()["services"]["agent"]["command"],
        "kubernetes": [*pod["command"], *pod["args"]][len(pod["command"]) :],
    }
    context = click.Context(commands, info_name="gpumon", **commands.context_settings)
    for arguments in started.values():
        name, *options = [re.sub(r"\$\{.*\}", "900", argument) for argument in arguments]
        assert name == "agent"
        command = commands.get_command(context, name)
        assert command is not None
        command.make_context(name, options, parent=context)


def test_all_files_are_named_in_the_documentation():
    text = (ROOT / "docs/deploy.md").read_text()

    for file in DEPLOY.rglob("*"):
        if file.is_file():
            assert file.name in text, file
