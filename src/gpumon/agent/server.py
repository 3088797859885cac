"""Serves the API on the Unix socket, and Prometheus on TCP: one loop, a few threads, nothing without bounds.

The loop reads and writes all connections, so a slow client holds no thread; each connection is for one request,
and ends after `DEADLINE_S` whatever its client does.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer, UnixWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask

from gpumon.agent.socket import BACKLOG, Listener
from gpumon.errors import GpumonError

THREADS: Final = 2
CONNECTIONS: Final = 256
"""Served at once; further ones wait until one of these ends."""
DEADLINE_S: Final = 10.0
MAX_HEADERS: Final = 32 << 10
MAX_BODY: Final = 1 << 10
PEER: Final = "gpumon.peer"
"""In the environment of a request over the Unix socket: (pid, uid), as the kernel tells them."""

_CREDENTIALS: Final = struct.Struct("3i")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Server:
    """Serves until `stop`."""

    def __init__(self, listener: Listener, application: Application) -> None:
        for name in ("waitress", "waitress.queue"):  # what clients do wrong is no news of ours
            logging.getLogger(name).setLevel(logging.ERROR)
        self._map: dict[int, Any] = {}
        self._dispatcher = ThreadedTaskDispatcher()
        self._dispatcher.set_thread_count(THREADS)
        self._server = _UnixServer(
            application,
            map=self._map,
            _sock=listener.socket,
            bind_socket=False,
            dispatcher=self._dispatcher,
            adj=_adjustments(),
        )
        self._thread = threading.Thread(target=self._run, name="gpumon-http", daemon=True)

    def add_tcp(self, host: str, port: int, application: Application) -> int:
        """Serve another application at an address, too; returns the port (for 0, the one that was free).

        Raises:
            GpumonError: the address cannot be had.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            listening = socket.socket(found[0], socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(found[4])
        except OSError as error:
            raise GpumonError(f"cannot listen at {host}:{port}: {error.strerror or error}") from None
        _TcpServer(
            application,
            map=self._map,
            _sock=listening,
            bind_socket=False,
            dispatcher=self._dispatcher,
            adj=_adjustments(),
            sockinfo=(found[0], socket.SOCK_STREAM, 0, listening.getsockname()),
        )
        return int(listening.getsockname()[1])

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """End all connections."""
        self._dispatcher.shutdown(timeout=0.3)
        self._server.trigger.pull_trigger(self._close_all)
        if self._thread.is_alive():
            self._thread.join(0.3)

    def _close_all(self) -> None:
        wasyncore.close_all(self._map, ignore_all=True)

    def _run(self) -> None:
        wasyncore.loop(timeout=1.0, use_poll=True, map=self._map)


def _adjustments() -> Adjustments:
    return Adjustments(
        threads=THREADS,
        backlog=BACKLOG,
        connection_limit=CONNECTIONS,
        cleanup_interval=1,
        max_request_header_size=MAX_HEADERS,
        max_request_body_size=MAX_BODY,
        log_socket_errors=False,
        clear_untrusted_proxy_headers=False,
        ident="",
        server_name="localhost",
    )


class _Task(WSGITask):  # type: ignore[misc]
    def start(self) -> None:
        super().start()
        # A client that asks again and again over one connection, and reads nothing, would fill our memory.
        self.request.headers["CONNECTION"] = "close"

    def get_environment(self) -> dict[str, Any]:
        environment: dict[str, Any] = super().get_environment()
        environment[PEER] = self.channel.peer
        return environment


class _Channel(HTTPChannel):  # type: ignore[misc]
    task_class = _Task
    peer: tuple[int, int] | None = None

    def __init__(self, server: Any, sock: socket.socket, *arguments: Any, **more: Any) -> None:
        if sock.family == socket.AF_UNIX:
            pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            self.peer = (pid, uid)
        super().__init__(server, sock, *arguments, **more)


class _UnixServer(UnixWSGIServer):  # type: ignore[misc]
    channel_class = _Channel

    def maintenance(self, now: float) -> None:
        _end_old(self, now)


class _TcpServer(TcpWSGIServer):  # type: ignore[misc]
    channel_class = _Channel

    def maintenance(self, now: float) -> None:
        _end_old(self, now)


def _end_old(server: Any, now: float) -> None:
    for channel in list(server.active_channels.values()):
        if now - channel.creation_time > DEADLINE_S:
            channel.will_close = True
