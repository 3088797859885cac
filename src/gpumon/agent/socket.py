"""The agent's Unix socket: made for one group, never over a living agent, gone with its agent."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gpumon.errors import GpumonError
from gpumon.system.agent_socket import FOLDER, GROUP, NAME, VARIABLE

MODE: Final = 0o660
BACKLOG: Final = 1024
_FIRST_GIVEN: Final = 3  # the first descriptor of systemd's socket activation


class Listener:
    """A listening Unix socket. `close` removes its file, unless systemd made it."""

    def __init__(self, listening: socket.socket, path: Path, lock: int | None, group: str) -> None:
        self.socket, self.path, self.group = listening, path, group
        self._lock = lock
        self._made = _identity(path) if lock is not None else None

    def close(self) -> None:
        if self._made is not None and _identity(self.path) == self._made:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.socket.close()
        if self._lock is not None:
            with contextlib.suppress(OSError):
                _lock_file(self.path).unlink()
            os.close(self._lock)
            self._lock = None


def chosen_path(given: Path | None, environment: Mapping[str, str]) -> Path:
    """The option, else `GPUMON_AGENT_SOCKET`, else systemd's `RUNTIME_DIRECTORY`, else /run/gpumon."""
    if given is not None:
        return given
    if named := environment.get(VARIABLE):
        return Path(named)
    return Path(environment.get("RUNTIME_DIRECTORY", FOLDER).split(":")[0] or FOLDER, NAME)


def listen(path: Path, group: str | None, environment: Mapping[str, str]) -> Listener:
    """Listen at *path*, for root and the members of *group* (default `gpumon`, where that group exists).

    Raises:
        GpumonError: another agent is there, no such group, or the place cannot be written.
    """
    if (given := _given(environment)) is not None:
        return Listener(given, Path(os.fsdecode(given.getsockname())), None, "as systemd set it")
    group_id, name = _group(group)
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            path.parent.chmod(0o755)  # whatever the umask: the group has to pass
        lock = _lock(path)
    except OSError as error:
        raise GpumonError(f"cannot listen at {path}: {error.strerror} (run as root, or choose --socket)") from None
    try:
        _clear(path)
        listening = _bind(path, group_id)
    except OSError as error:
        os.close(lock)
        raise GpumonError(f"cannot listen at {path}: {error.strerror or error}") from None
    except GpumonError:
        os.close(lock)
        raise
    return Listener(listening, path, lock, name)


def _bind(path: Path, group_id: int | None) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777)  # nobody connects before the group is set
    try:
        listening.bind(os.fspath(path))
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(before)
    try:
        os.chown(path, -1, -1 if group_id is None else group_id)
        path.chmod(MODE)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        path.unlink()
        raise
    return listening


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _lock(path: Path) -> int:
    """A lock that its holder's end releases, however it ends."""
    descriptor = os.open(_lock_file(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise GpumonError(f"an agent already listens at {path}") from None
    return descriptor


def _clear(path: Path) -> None:
    """Remove what a dead agent left; anything else that is there stays."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise GpumonError(f"{path} is there, and no socket: remove it, or choose --socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError:
            pass  # somebody is there, and busy
    raise GpumonError(f"an agent already listens at {path}")


def _group(name: str | None) -> tuple[int | None, str]:
    """(number, name) of the group that may ask; (None, "") where only the agent's own user may."""
    try:
        if name is not None and name.isdigit():
            return int(name), name
        return grp.getgrnam(name or GROUP).gr_gid, name or GROUP
    except KeyError:
        if name is None:
            return None, ""
        raise GpumonError(f"no group {name!r} on this machine (groupadd --system {name})") from None


def _given(environment: Mapping[str, str]) -> socket.socket | None:
    """The socket that systemd listens at for us."""
    if environment.get("LISTEN_PID") != str(os.getpid()) or environment.get("LISTEN_FDS", "0") == "0":
        return None
    given = socket.socket(fileno=_FIRST_GIVEN)
    if given.family != socket.AF_UNIX or given.type != socket.SOCK_STREAM:
        raise GpumonError("the socket that systemd gave is no ListenStream= of a path")
    os.set_inheritable(_FIRST_GIVEN, False)
    return given


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
