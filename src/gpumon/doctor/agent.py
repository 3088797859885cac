"""The node agent, which reads devices for processes that may not: is it there, and does it answer?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from gpumon.doctor.check import Repair, Result, absent, failed, ok, warning
from gpumon.doctor.place import Place
from gpumon.doctor.repairs import DISTRIBUTION, gpumon, group_of, join_group, on_machine, pip_install, start_container
from gpumon.errors import NoDataError
from gpumon.system.agent_socket import FOLDER, GROUP, NAME, VARIABLE, NoAgentError, health
from gpumon.version import __version__

_UNIT: Final = "gpumon-agent"
_UNIT_FOLDERS: Final = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")


def agent(place: Place) -> Result:
    """The agent's socket: there, allowed, answering, and of this version."""
    socket = _socket(place)
    try:
        told = _health(place)
    except NoAgentError as error:
        if not place.environment.get(VARIABLE):
            return absent("no node agent here: devices are read by each process itself")
        return failed(f"{VARIABLE}: {error}", start_agent(place))
    except NoDataError as error:
        if "permission denied" in str(error):
            return _denied(place, socket)
        return failed(str(error), _restart(place))
    theirs = str(told.get("version") or "")
    if theirs and theirs != __version__:
        text = f"the agent at {socket} is gpumon {theirs}, this is {__version__}"
        if _number(theirs) > _number(__version__):
            return warning(text, pip_install(f"{DISTRIBUTION}=={theirs}"))
        return warning(text, _restart(place))
    return ok(f"{socket} answers (gpumon {theirs or '?'})")


def agent_serves(place: Place) -> bool:
    """Whether an agent reads devices for this process."""
    try:
        _health(place)
    except NoDataError:
        return False
    return True


def _socket(place: Place) -> Path:
    return Path(place.environment.get(VARIABLE) or place.at(f"{FOLDER}/{NAME}"))


def _health(place: Place) -> dict[str, Any]:
    answer: dict[str, Any] = place.share("agent", lambda: health(_socket(place)))
    return answer


def _denied(place: Place, socket: Path) -> Result:
    text = f"{socket}: permission denied"
    try:
        group_id = (socket if os.access(socket.parent, os.X_OK) else socket.parent).stat().st_gid
    except OSError:
        return failed(text, on_machine(place, f"chmod a+x {socket.parent}"))
    if not group_id:
        return failed(f"{text}: only root may ask this agent", on_machine(place, f"{gpumon()} agent --group {GROUP}"))
    if place.container:
        return failed(f"{text}: this user is not in its group", start_container(place, f"--group-add {group_id}"))
    group = group_of(group_id)
    return failed(f"{text}: this user is not in group {group}", join_group(place, group))


def _has_unit(place: Place) -> bool:
    return any(place.exists(f"{folder}/{_UNIT}.service") for folder in _UNIT_FOLDERS)


def start_agent(place: Place) -> Repair:
    """Start it, or give its socket to this container."""
    if place.container:
        return start_container(place, f"-v {FOLDER}:{FOLDER}")
    return on_machine(place, f"systemctl start {_UNIT}" if _has_unit(place) else f"{gpumon()} agent")


def _restart(place: Place) -> Repair:
    if place.container or _has_unit(place):
        return on_machine(place, f"systemctl restart {_UNIT}")
    return on_machine(place, f"{gpumon()} agent")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
