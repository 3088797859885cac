"""Which collectors an agent runs: those of the machine, for all of its devices."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gpumon.collectors.base import Collector, Factory, registered
from gpumon.config import Config
from gpumon.metrics import Reading
from gpumon.sampler import Sampler
from gpumon.system.datasets import Datasets

logger = logging.getLogger(__name__)

WINDOW_S: Final = 5.0
"""What the agent tells of a gauge is its mean over so long; whoever wants another window takes the terms."""
UNASKED_S: Final = 5.0
"""Between two reads, while nobody on the socket asks for them: most are counters, which miss nothing."""
DEVICES_UNASKED_S: Final = {"gpu": 3.0, "disk": 3.0}
"""A GPU's power and clocks are no counters; and whoever begins to ask waits no longer than this."""
OF_A_TRAINING: Final = frozenset(("dataset", "process"))
"""They look at the process that trains, and run there."""
_ASKED_S: Final = 15.0


class Demand:
    """Which collectors were asked for lately."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}

    def note(self, collectors: Iterable[str]) -> None:
        self._asked.update(dict.fromkeys(collectors, time.monotonic()))

    def has(self, collector: str) -> bool:
        return time.monotonic() - self._asked.get(collector, -math.inf) < _ASKED_S


class _Asked:
    """A collector that reads as often as there is demand for it."""

    def __init__(self, name: str, collector: Collector, demand: Demand) -> None:
        self._name, self._collector, self._demand = name, collector, demand
        self.may_block = collector.may_block
        self.interval_s = max(collector.interval_s, DEVICES_UNASKED_S.get(name, UNASKED_S))

    @property
    def again_s(self) -> float:
        own: float = getattr(self._collector, "again_s", math.inf)
        return min(own, self._collector.interval_s) if self._demand.has(self._name) else own

    def collect(self) -> Iterable[Reading]:
        return self._collector.collect()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collector, name)  # what a collector may have beyond the protocol


def make_sampler(config: Config, demand: Demand, *, default_s: Mapping[str, float] | None = None) -> Sampler:
    """All collectors of the machine, or the ones that were asked for."""
    factories = {name: factory for name, factory in registered().items() if name not in OF_A_TRAINING}
    names = sorted(factories) if config.collectors is None else config.collectors
    for name in names:
        if name not in factories:
            logger.warning("no collector %r of a machine; there are %s", name, ", ".join(sorted(factories)))
    collectors = {
        name: _Asked(name, _make(name, factories[name], config), demand) for name in names if name in factories
    }
    return Sampler(collectors, {**(default_s or {}), **config.intervals}, history_s=2 * WINDOW_S)


def _make(name: str, factory: Factory, config: Config) -> Collector:
    if name == "gpu":
        from gpumon.collectors.gpu import GpuCollector

        return GpuCollector(config, environment={})  # CUDA_VISIBLE_DEVICES is about a training
    if name == "disk":
        from gpumon.collectors.disk import DiskCollector

        nobodys = Datasets()
        return DiskCollector(config, datasets=nobodys, checkpoints=nobodys, per_node=True)
    if name == "host":
        from gpumon.collectors.host import HostCollector

        return HostCollector(config, per_node=True)
    if name == "pressure":
        from gpumon.collectors.pressure import PressureCollector

        return PressureCollector(config, per_node=True)
    return factory(config)
