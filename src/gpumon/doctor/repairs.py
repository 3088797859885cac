"""Commands that repair, right for the place: root or not, in a container or not, by the package manager there is."""

from __future__ import annotations

import getpass
import grp
import os
import shlex
import shutil
import socket
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from gpumon.doctor.check import Repair
from gpumon.doctor.place import Place

_MANAGERS: Final = {
    "apt-get": "apt-get install -y",
    "dnf": "dnf install -y",
    "yum": "yum install -y",
    "zypper": "zypper install -y",
    "apk": "apk add",
    "pacman": "pacman -S --noconfirm",
}
DISTRIBUTION: Final = "opentelemetry-instrumentation-gpumon"


def manager(place: Place) -> str:
    """The package manager there is: apt-get, dnf, …; empty without one."""
    return next((name for name in _MANAGERS if place.which(name)), "")


def install(place: Place, package: str, **by_manager: str) -> Repair:
    """Install a package of the distribution; *by_manager*: its name where it is another (`apt_get`, `dnf`, …)."""
    name = manager(place)
    package = by_manager.get(name.replace("-", "_"), package)
    return as_root(place, f"{_MANAGERS[name]} {package}" if name else f"apt-get install -y {package}")


def as_root(place: Place, command: str) -> Repair:
    """A command that only root may run, here."""
    if place.uid == 0:
        return Repair(command)
    if any(word in command for word in ("&&", "|", ">", ";")):
        return Repair(f"sudo sh -c {shlex.quote(command)}")
    return Repair(f"sudo {command}" if place.which("sudo") else f"su -c {shlex.quote(command)}")


def on_machine(place: Place, command: str) -> Repair:
    """A root's command that has to be run on the machine itself, from inside a container on its host."""
    if not place.container:
        return as_root(place, command)
    is_one = not any(word in command for word in ("&&", "|", ">", ";"))
    return Repair(f"sudo {command}" if is_one else f"sudo sh -c {shlex.quote(command)}", "host")


def newer_kernel(place: Place) -> Repair:
    return on_machine(
        place, "dnf upgrade -y kernel" if manager(place) == "dnf" else "apt-get install -y linux-image-amd64"
    )


def start_container(
    place: Place, options: str, *, podman: str = "", kubernetes: str = "", apptainer: str = ""
) -> Repair:
    """Start this container with more: *options* of `docker run`, or what the kind of container at hand has for it."""
    if place.container == "kubernetes" and kubernetes:
        return Repair(kubernetes, "host")
    if place.container == "apptainer" and apptainer:
        return Repair(f"apptainer exec {apptainer} …", "host")
    if place.container == "podman":
        return Repair(f"podman run {podman or options} …", "host")
    return Repair(f"docker run {options} …", "host")


@dataclass(frozen=True)
class Python:
    """An interpreter, and how packages get into it."""

    path: str
    has_pip: bool = True
    is_managed: bool = False  # by the distribution: pip refuses to install unless it is told twice (PEP 668)
    is_root_only: bool = False  # its environment belongs to somebody else

    @classmethod
    def this(cls) -> Python:
        is_own = sys.prefix != sys.base_prefix
        folder = Path(sysconfig.get_path("purelib"))
        return cls(
            sys.executable,
            find_spec("pip") is not None,
            not is_own and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists(),
            is_own and folder.exists() and not os.access(folder, os.W_OK),
        )


def pip_install(requirement: str, *options: str, python: Python | None = None) -> str:
    """Install into an environment (default: this one), by the tool that it has."""
    return _pip("install", [*options, requirement], python or Python.this())


def pip_uninstall(name: str) -> str:
    """Remove a distribution from this environment."""
    return _pip("uninstall", [name], Python.this())


def _pip(verb: str, words: list[str], python: Python) -> str:
    if not python.has_pip and shutil.which("uv"):
        command = shlex.join(["uv", "pip", verb, "--python", python.path, *words])
    else:
        forced = ["--break-system-packages"] if python.is_managed else []  # as gpumon itself must have come there
        sure = ["-y"] if verb == "uninstall" else []
        command = shlex.join([python.path, "-m", "pip", verb, *sure, *forced, *words])
        if not python.has_pip:
            command = f"{shlex.quote(python.path)} -m ensurepip && {command}"
    return f"sudo {command}" if python.is_root_only else command


def export(variable: str, value: str) -> str:
    """Set a variable in the shell that starts the training."""
    return f"export {variable}={shlex.quote(value)}"


def join_group(place: Place, group: str) -> Repair:
    """Let this user into a group; it counts from the next login on."""
    return on_machine(place, f"usermod -aG {group} {user()}")


def group_of(number: int) -> str:
    """The name of a group, or its number where it has none here."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in many containers
        return "$USER"


def gpumon() -> str:
    """The command as root finds it too: sudo has a PATH of its own."""
    script = Path(sys.argv[0])
    if script.name == "gpumon" and script.is_absolute():
        return shlex.quote(str(script))
    beside = Path(sys.executable).with_name("gpumon")
    return shlex.quote(str(beside)) if beside.exists() else shlex.join([sys.executable, "-m", "gpumon"])


def pod() -> str:
    """The name of this pod, which is its host name."""
    return socket.gethostname()
