"""The ways to run the agent, as they lie in examples/deploy."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples/deploy"
UNIT = DEPLOY / "systemd/gpumon-agent.service"
SYSUSERS = DEPLOY / "systemd/gpumon.sysusers.conf"
WRAPPER = DEPLOY / "sudo/gpumon-smartctl"
SUDOERS = DEPLOY / "sudo/gpumon.sudoers"
DOCKERFILE = DEPLOY / "container/Dockerfile"
CONSTRAINTS = DEPLOY / "container/constraints.txt"
COMPOSE = DEPLOY / "container/compose.agent.yaml"
DAEMONSET = DEPLOY / "kubernetes/daemonset.yaml"
PODMONITOR = DEPLOY / "kubernetes/podmonitor.yaml"

CAPABILITIES = {"sys_rawio", "sys_admin", "sys_ptrace", "dac_read_search", "syslog"}
"""What the agent needs: measured, see docs/deploy.md."""


def unit():
    """Setting -> all its values, in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def compose():
    return yaml.safe_load(COMPOSE.read_text())


def daemonset():
    """The objects of the file, by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all(DAEMONSET.read_text())}


def podmonitor():
    return yaml.safe_load(PODMONITOR.read_text())
