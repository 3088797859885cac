"""Where the doctor looks: which machine, inside which container, as which user, with which environment."""

from __future__ import annotations

import concurrent.futures
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from gpumon.system.storage import parse_mount

Container = Literal["", "docker", "podman", "kubernetes", "apptainer", "lxc", "container"]

_SYSTEM_FOLDERS: Final = ("/usr/sbin", "/sbin", "/usr/local/sbin")  # not on every user's PATH
_IN_CGROUP: Final[tuple[tuple[str, Container], ...]] = (
    ("kubepods", "kubernetes"),
    ("docker", "docker"),
    ("libpod", "podman"),
    ("lxc", "lxc"),
)
_INIT: Final = ("systemd", "init", "runit", "openrc-init", "s6-svscan")


@dataclass(frozen=True)
class Place:
    """One machine as this process sees it.

    *root* is where proc/, sys/ and dev/ are; tests hand in a tree of their own. *paths* are the data set's, *run*
    the recorded run to look at; both as the user gave them. *quick*: start no process that imports a framework.
    """

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    paths: tuple[str, ...] = ()
    run: str | None = None
    quick: bool = False
    uid: int = field(default_factory=os.geteuid)
    _shared: dict[str, Future[Any]] = field(default_factory=dict)
    _sharing: Any = field(default_factory=threading.Lock)

    @property
    def is_real(self) -> bool:
        return self.root == Path("/")

    def at(self, path: str) -> Path:
        """A path of this machine ("/dev/shm") under the root."""
        return self.root / path.lstrip("/")

    def named(self, path: Path) -> str:
        """A path under the root as this machine names it."""
        return "/" + str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def read(self, path: str) -> str:
        """What a file says; empty where it cannot be read."""
        try:
            return self.at(path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        """Whether it is there, as far as this user may know."""
        return os.path.exists(self.at(path))  # noqa: PTH110 - Path.exists raises where a folder is closed

    def which(self, name: str) -> str | None:
        """The path of a command, also of one that only root has on its PATH."""
        system = (str(self.at(folder)) for folder in _SYSTEM_FOLDERS)
        folders = os.pathsep.join((self.environment.get("PATH", os.defpath), *system))
        return shutil.which(name, path=folders)

    def share(self, name: str, find: Callable[[], Any], timeout_s: float = 15.0) -> Any:
        """What several checks want to know: it is found out once, on a thread of its own, and all wait for that.

        Raises:
            TimeoutError: it takes too long.
        """
        with self._sharing:
            future = self._shared.get(name)
            if future is None:
                future = self._shared[name] = Future()
                threading.Thread(target=_find, args=(future, find), name=f"gpumon-doctor-{name}", daemon=True).start()
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:  # before Python 3.11 that was no TimeoutError
            raise TimeoutError(f"{name}: no answer within {timeout_s:g} s") from None

    @cached_property
    def container(self) -> Container:
        """The kind of container that this process is in; empty on a machine itself."""
        environment = self.environment
        if environment.get("KUBERNETES_SERVICE_HOST"):
            return "kubernetes"
        if environment.get("APPTAINER_CONTAINER") or environment.get("SINGULARITY_CONTAINER"):
            return "apptainer"
        if self.exists("/.dockerenv"):
            return "docker"
        if self.exists("/run/.containerenv"):
            return "podman"
        told = self.read("/run/systemd/container") or environment.get("container", "")
        kinds: tuple[Container, ...] = ("docker", "podman", "lxc")
        for kind in kinds:
            if kind in told:
                return kind
        groups = self.read("/proc/1/cgroup")
        for word, kind in _IN_CGROUP:
            if word in groups:
                return kind
        return "container" if told or self._has_a_root_of_layers else ""

    @property
    def _has_a_root_of_layers(self) -> bool:
        """An overlay as root, and no init: what a container has; a live system has the one and the other."""
        mounts = (parse_mount(line) for line in self.read("/proc/self/mountinfo").splitlines())
        is_layered = any(mount and mount.mount_point == "/" and mount.file_system == "overlay" for mount in mounts)
        return is_layered and self.read("/proc/1/comm") not in _INIT

    @property
    def is_gvisor(self) -> bool:
        return "gVisor" in self.read("/proc/version")

    @cached_property
    def kernel(self) -> str:
        """Its release: "6.1.0-18-amd64"."""
        return self.read("/proc/sys/kernel/osrelease") or os.uname().release

    @cached_property
    def distribution(self) -> str:
        """ID of /etc/os-release: "debian", "ubuntu", "rhel"; empty where it does not say."""
        found = re.search(r'^ID="?([\w.-]+)', self.read("/etc/os-release"), re.MULTILINE)
        return found[1] if found else ""

    def option(self, mount_point: str, name: str) -> str | None:
        """The value of a mount's option ("hidepid" of "/proc"), "" where it has none; None where it is not set."""
        for line in self.read("/proc/self/mountinfo").splitlines():
            mount = parse_mount(line)
            if mount and mount.mount_point == mount_point:
                for option in mount.options.replace(" ", ",").split(","):
                    key, _, value = option.partition("=")
                    if key == name:
                        return value
        return None


def _find(future: Future[Any], find: Callable[[], Any]) -> None:
    try:
        future.set_result(find())
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        future.set_exception(error)
