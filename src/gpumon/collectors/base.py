"""What a collector is, and the registry that finds it by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TypeVar

from gpumon.metrics import Reading

if TYPE_CHECKING:
    from gpumon.config import Config


class Collector(Protocol):
    """Reads one source once per tick and yields everything that it says.

    `interval_s` is the default; `may_block` gives the collector a thread of its own, so that a hung
    driver delays nobody. `collect` runs in that one thread only, never in the training thread. A class with
    `per_node = True` looks at the whole machine: it is the node agent's, and no training makes one. One with
    `per_host = True` is dear for what it asks: of a training's ranks on a host only the first makes one.
    """

    interval_s: float
    may_block: bool

    def collect(self) -> Iterable[Reading]:
        """Yield readings.

        Raises:
            NoDataError: this host has no such source.
            CollectorError: it is here, and reading it failed; what was yielded before counts.
        """
        ...


Factory = Callable[["Config"], Collector]
_REGISTRY: dict[str, Factory] = {}
F = TypeVar("F", bound=Factory)


def register(name: str) -> Callable[[F], F]:
    """File a collector class (called with the `Config`) under *name*; a second one of that name raises."""

    def file(factory: F) -> F:
        if name in _REGISTRY:
            raise ValueError(f"collector {name!r} is registered twice")
        _REGISTRY[name] = factory
        return factory

    return file


def registered() -> dict[str, Factory]:
    """All collectors by name: every module of this folder is a collector and registers itself."""
    package = importlib.import_module("gpumon.collectors")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"gpumon.collectors.{module.name}")
    return dict(_REGISTRY)
