"""Asks the node's agent, in one background thread; everybody else reads what it left in memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gpumon import metrics as m
from gpumon.errors import NoDataError
from gpumon.metrics import Attributes
from gpumon.system.agent_socket import NoAgentError, ask, default_socket
from gpumon.system.datasets import CHECKPOINTS, DATASETS, Datasets
from gpumon.system.hangs import Call, Caller, HangsError
from gpumon.system.node_series import device_of
from gpumon.system.storage import STORAGE, Storage, StorageMap
from gpumon.system.visible_gpus import Listed, Visible, visible_in_container

_LOOK_S: Final = 10.0  # between looks at what the agent has and exports
_RETRY_S: Final = 2.0  # between looks for an agent that is not there
_MAX_PATHS: Final = 16
_MAX_DEVICES: Final = 48

Exported = Callable[[str, Attributes], bool]


@dataclass
class Told:
    """One answer of the agent for a collector."""

    at: float
    instance: str
    up: bool | None
    reason: str
    readings: list[dict[str, Any]]


@dataclass
class _Node:
    """What the agent has and exports."""

    gpus: list[Listed] = field(default_factory=list)
    layered: set[str] = field(default_factory=set)  # of its disks those that lie on others
    exported: dict[str, set[str]] = field(default_factory=dict)
    """Family -> the devices that it sends over OTLP; "" for all."""


class NodeAgent:
    """Asks the agent. `tick` says that time has passed; nothing here waits, but for `wait`."""

    def __init__(
        self,
        socket: Path | None = None,
        *,
        environment: Mapping[str, str] = os.environ,
        storage_map: StorageMap = STORAGE,
        datasets: Sequence[Datasets] = (DATASETS, CHECKPOINTS),
    ) -> None:
        self.socket = socket or default_socket()
        self.problem: NoDataError = NoAgentError(f"no agent: there is no socket {self.socket}")
        """Why there is no answer, while there is none."""
        self.is_there = False
        self._environment = environment
        self._storage_map, self._datasets = storage_map, datasets
        self._caller = Caller("gpumon-agent")
        self._call: Call | None = None
        self._wanted: dict[str, tuple[float, float]] = {}  # collector -> (interval, when it was wanted last)
        self._asked: dict[str, float] = {}
        self._told: dict[str, Told] = {}
        self._node = _Node()
        self._our_gpus: frozenset[str] = frozenset()
        self._look_at = 0.0
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def cpu_ns(self) -> int:
        """CPU time of the thread that asks."""
        return self._caller.cpu_ns

    # -- any thread -----------------------------------------------------------------------------------

    def want(self, collector: str, interval_s: float) -> None:
        """Ask for a collector's readings from now on, until nobody has wanted them for some intervals."""
        self._wanted[collector] = (interval_s, time.monotonic())
        self.tick()

    def tick(self) -> None:
        """Ask what is due, in the background; takes no time."""
        if os.getpid() != self._pid or not self._lock.acquire(blocking=False):
            return
        try:
            if self._call is not None and not self._call.is_done:
                return
            now = time.monotonic()
            wanted = list(self._wanted.items())
            due = [name for name, (every_s, _) in wanted if now - self._asked.get(name, 0.0) > every_s - 0.2]
            if now < self._look_at and not (due and self.is_there):
                return
            if not self.is_there and not self.socket.exists():
                self._look_at = now + _RETRY_S
                self.problem = NoAgentError(f"no agent: there is no socket {self.socket}")
                return
            self._asked.update(dict.fromkeys(due, now))
            self._call = self._caller.start(lambda: self._round(due))
        finally:
            self._lock.release()

    def wait(self, timeout_s: float) -> None:
        """Wait for the questions in progress; for a thread of one's own."""
        call = self._call
        if call is not None:
            try:
                call.result(timeout_s)
            except HangsError:
                pass

    def told(self, collector: str) -> Told | None:
        """The last answer for a collector, as long as the agent is there."""
        return self._told.get(collector) if self.is_there else None

    def exported(self) -> Exported | None:
        """Tells which series the agent exports over OTLP; None where it exports none."""
        return self._is_exported if self.is_there and self._node.exported else None

    def _is_exported(self, name: str, attributes: Attributes) -> bool:
        found = device_of(name, attributes)
        if found is None:
            return False
        family, device = found
        devices = self._node.exported.get(family)
        return devices is not None and ("" in devices or device in devices)

    def is_ours(self, collector: str, attributes: Attributes) -> bool:
        """Whether a reading of the agent's is of a device of this process: its GPUs, whole disks, its data's layers."""
        if collector == "gpu":
            at = str(attributes.get(m.HW_ID, ""))
            return at in self._our_gpus or (
                str(attributes.get(m.HW_PARENT, "")) in self._our_gpus and not at.startswith("MIG-")
            )
        device = attributes.get(m.SYSTEM_DEVICE)
        if collector in ("disk", "kernel") and device in self._node.layered:
            return any(device in datasets.devices() for datasets in self._datasets)
        return True

    def with_use(self, attributes: Attributes) -> Attributes:
        """What is known of a disk, with what this process uses it for: the agent cannot know."""
        device = attributes.get(m.SYSTEM_DEVICE)
        data, checkpoints = self._datasets
        mounted = [each for datasets in self._datasets for each in datasets.storages() if each.device == device]
        told: dict[str, m.AttributeValue] = {**attributes, m.DISK_HOLDS_DATASET: device in data.devices()}
        if device in checkpoints.devices():
            told[m.DISK_HOLDS_CHECKPOINTS] = True
        if mounted:
            told[m.SYSTEM_FILESYSTEM_MOUNTPOINT] = mounted[0].mount_point
            told[m.SYSTEM_FILESYSTEM_TYPE] = mounted[0].file_system
        return told

    def no_gpu(self) -> str | None:
        """Why none of the agent's GPUs is this process'; None where one is."""
        if self._our_gpus or not self._node.gpus:
            return None
        names = ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
        said = ", ".join(f"{name}={self._environment[name]}" for name in names if name in self._environment)
        return f"the agent has no GPU of this process ({said})"

    # -- the thread that asks -------------------------------------------------------------------------

    def _round(self, due: Sequence[str]) -> None:
        now = time.monotonic()
        try:
            if now >= self._look_at:
                self._look()
                self._look_at = now + _LOOK_S
            if due:
                self._read(due)
            self.is_there = True
        except NoDataError as error:
            self.problem, self.is_there = error, False
            self._look_at = now + _RETRY_S
            self._told.clear()

    def _look(self) -> None:
        health = ask("/v1/health", self.socket)
        places = self._unknown_places()
        devices = ask("/v1/devices", self.socket, parameters=[("path", path) for path in places])
        try:
            self._node = _node(health, devices)
            self._our_gpus = frozenset(_ids(visible_in_container(self._node.gpus, self._environment)))
            self._learn(places, devices.get("paths") or [])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NoDataError(f"the agent at {self.socket} speaks another language: {error!r}") from error

    def _unknown_places(self) -> list[str]:
        """Mounts that hold data of ours, on devices that we cannot find out."""
        places = [storage for datasets in self._datasets for storage in datasets.places()]
        unknown = [place for place in places if place.device is None and place.kind not in ("memory", "network")]
        return list(dict.fromkeys(place.mount_point or place.path for place in unknown))[:_MAX_PATHS]

    def _learn(self, places: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> None:
        is_new = False
        for place, answer in zip(places, answers, strict=False):
            if answer.get("device"):
                layers, disks = tuple(map(str, answer["layers"])), tuple(map(str, answer["disks"]))
                self._storage_map.learn(place, Storage(place, "block", str(answer["device"]), disks, layers=layers))
                is_new = True
        if is_new:
            for datasets in self._datasets:
                datasets.resolve()

    def _read(self, due: Sequence[str]) -> None:
        gpus = {gpu.uuid for gpu in self._node.gpus}
        if "gpu" in due and not gpus <= self._our_gpus and len(self._our_gpus) < _MAX_DEVICES:
            # One rank of many: the agent need not tell each of them of all GPUs.
            self._read_from(["gpu"], sorted(self._our_gpus) or ["none"])
            due = [name for name in due if name != "gpu"]
        if due:
            self._read_from(due, [])
        for name, (every_s, wanted) in list(self._wanted.items()):
            if time.monotonic() - wanted > 10 * every_s + _LOOK_S:
                del self._wanted[name]

    def _read_from(self, collectors: Sequence[str], devices: Sequence[str]) -> None:
        parameters = [("collector", name) for name in collectors] + [("device", name) for name in devices]
        answer = ask("/v1/readings", self.socket, parameters=parameters)
        now = time.monotonic()
        try:
            states = {each["name"]: each for each in answer["collectors"]}
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in collectors}
            for reading in answer["readings"]:
                found[reading["collector"]].append(reading)
            for name in collectors:
                state = states.get(name, {"up": False, "reason": "the agent does not run this collector"})
                reason = str(state.get("reason", ""))
                self._told[name] = Told(now, str(answer["instance"]), state["up"], reason, found[name])
        except (KeyError, TypeError) as error:
            raise NoDataError(f"the agent at {self.socket} speaks another language: {error!r}") from error


def _node(health: Mapping[str, Any], devices: Mapping[str, Any]) -> _Node:
    disks = {str(disk["device"]): disk["parents"] for disk in devices["disks"]}
    gpus = [Listed(int(gpu["index"]), str(gpu["id"]), tuple(gpu["instances"])) for gpu in devices["gpus"]]
    known = {"gpu": {gpu.uuid for gpu in gpus}, "disk": set(disks), "kernel": set(disks)}
    known["smart"] = {str(drive["id"]) for drive in devices["smart"]}
    exported = {name: known.get(name, {""}) for name in health["exports"]}
    if "host" in exported and health["network_namespace"] == _network_namespace():
        exported["network"] = {""}
    return _Node(gpus, {name for name, parents in disks.items() if parents or _is_layer(name)}, exported)


def _network_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/net")  # noqa: PTH115
    except OSError:
        return None


def _is_layer(device: str) -> bool:
    return device.startswith(("dm-", "md", "loop", "nbd"))


def _ids(gpus: Iterable[Visible]) -> Iterator[str]:
    """UUIDs of GPUs, and of those of their instances that may be used."""
    for each in gpus:
        yield each.gpu.uuid
        yield from each.gpu.instances if each.instances is None else each.instances
