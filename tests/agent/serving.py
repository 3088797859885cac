"""The API on a socket, in this process, over collectors of a test's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpumon.agent.api import Api
from gpumon.agent.collect import Demand
from gpumon.agent.node import Node
from gpumon.agent.paths import ClientPaths
from gpumon.agent.server import Server
from gpumon.agent.socket import listen
from gpumon.sampler import Sampler


class Says:
    """A collector that calls a function for its readings."""

    def __init__(self, function: Any, interval_s: float = 0.05, may_block: bool = False) -> None:
        self.function, self.interval_s, self.may_block = function, interval_s, may_block

    def collect(self) -> Any:
        yield from self.function()


@contextmanager
def serving(socket: Path, collectors: Mapping[str, Any], *, root: str = "/", exports: bool = False) -> Iterator[Node]:
    """An agent's inside, started; what it exports is only said."""
    sampler = Sampler(collectors)
    node = Node(sampler, ClientPaths(root), Demand(), lambda: exports)
    listener = listen(socket, None, {})
    server = Server(listener, Api(node))
    sampler.start()
    server.start()
    try:
        yield node
    finally:
        server.stop()
        listener.close()
        sampler.stop()
