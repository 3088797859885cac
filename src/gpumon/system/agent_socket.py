"""The node's agent, asked over its Unix socket: HTTP with JSON, read-only. The other end is `gpumon.agent`.

Every question has a deadline; none is for a training thread.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import socket as sockets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from gpumon.errors import NoDataError

VARIABLE: Final = "GPUMON_AGENT_SOCKET"
FOLDER: Final = "/run/gpumon"
NAME: Final = "agent.sock"
GROUP: Final = "gpumon"
"""Whose members may ask, unless the agent was told another group."""

TIMEOUT_S: Final = 2.0
_MAX_BYTES: Final = 32 << 20
_NOBODY: Final = 65534  # a group of the host's that this user namespace has no number for


class NoAgentError(NoDataError):
    """There is no agent on this node, or its socket was not given to this container."""


def default_socket() -> Path:
    """`GPUMON_AGENT_SOCKET`, else /run/gpumon/agent.sock."""
    return Path(os.environ.get(VARIABLE) or f"{FOLDER}/{NAME}")


def health(socket: Path | None = None) -> dict[str, Any]:
    """The agent's version, uptime, collectors and what it exports.

    Raises:
        NoDataError: no answer; the text is the reason, and what to do about it.
    """
    return ask("/v1/health", socket)


def ask(
    path: str,
    socket: Path | None = None,
    *,
    parameters: Sequence[tuple[str, str]] = (),
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """The answer to `GET path?parameters`.

    Raises:
        NoDataError: no answer; the text is the reason, and what to do about it.
    """
    socket = socket or default_socket()
    target = f"{path}?{urlencode(parameters, errors='surrogateescape')}" if parameters else path
    try:
        status, body = _get(socket, target, timeout_s)
        answer = json.loads(body)
    except FileNotFoundError:
        raise NoAgentError(f"no agent: there is no socket {socket}") from None
    except PermissionError:
        raise NoDataError(_refusal(socket)) from None
    except ConnectionRefusedError:
        raise NoDataError(f"no agent answers at {socket}: it has ended") from None
    except TimeoutError:
        raise NoDataError(f"no answer from the agent at {socket} within {timeout_s:g} s") from None
    except BlockingIOError:
        raise NoDataError(f"the agent at {socket} is busy") from None
    except OSError as error:
        raise NoDataError(f"{socket}: {error.strerror or error}") from None
    except ValueError:
        raise NoDataError(f"{socket}: that is no agent of gpumon") from None
    if not isinstance(answer, dict):
        raise NoDataError(f"{socket}: that is no agent of gpumon")
    if status != 200:
        raise NoDataError(f"the agent at {socket} refuses {path}: {answer.get('detail') or status}")
    return answer


def _get(socket: Path, target: str, timeout_s: float) -> tuple[int, bytes]:
    import http.client  # a process without an agent never needs it

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
            self.sock.settimeout(timeout_s)
            self.sock.connect(os.fspath(socket))

    connection = Connection("localhost", timeout=timeout_s)
    try:
        connection.request("GET", target, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        body = answer.read(_MAX_BYTES + 1)
        if len(body) > _MAX_BYTES:
            raise ValueError("too long an answer")
        return answer.status, body
    except http.client.HTTPException as error:
        raise ValueError(str(error)) from error
    finally:
        connection.close()


def _refusal(socket: Path) -> str:
    """Why the kernel refused to connect, and who may."""
    try:
        group_id = socket.stat().st_gid
    except OSError:  # its folder is closed to us
        return f"{socket}: permission denied"
    if group_id == _NOBODY:
        return f"{socket}: permission denied: its group is not in this user namespace (podman: --group-add keep-groups)"
    if group_id == 0:
        return f"{socket}: permission denied: only root may ask this agent (run it with --group {GROUP})"
    try:
        group = grp.getgrgid(group_id).gr_name
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container that knows not the host's names
        return f"{socket}: permission denied: start the container with --group-add {group_id}"
    command = f"sudo usermod -aG {group} {user}"
    return f"{socket}: permission denied: add the user to group {group} ({command}, then log in anew)"
