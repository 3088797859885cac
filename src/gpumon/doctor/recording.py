"""What a recording needs: a folder with room, a Python that lets gpumon in, one gpumon, and /proc of its workers."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any, Final

from gpumon import units
from gpumon._hook import sitecustomize as hook
from gpumon.doctor.check import Result, absent, failed, ok, warning
from gpumon.doctor.place import Place
from gpumon.doctor.repairs import (
    DISTRIBUTION,
    Python,
    export,
    newer_kernel,
    on_machine,
    pip_install,
    pip_uninstall,
    start_container,
)

_YAMA: Final = "/proc/sys/kernel/yama/ptrace_scope"
_NOTHING_HIDDEN: Final = ("0", "off")
_RUNS: Final = Path("gpumon-runs")
_RUN_BYTES: Final = 2 << 30  # what a run keeps at most
_LEAST_BYTES: Final = 64 << 20
_PYTHON_S: Final = 6.0
_LOOKS: Final = """
import json, os, sys, sysconfig
from importlib.util import find_spec
hooked = any(type(finder).__name__ == "Trigger" for finder in sys.meta_path)
has = [find_spec(name) is not None for name in ("gpumon", "pip", "torch", "tensorflow", "jax")]
managed = sys.prefix == sys.base_prefix and os.path.exists(sysconfig.get_path("stdlib") + "/EXTERNALLY-MANAGED")
print(json.dumps([sys.version_info[:2], sys.executable, hooked, managed, has]))
"""


# -- the run directory -----------------------------------------------------------------------------------


def run_directory(place: Place) -> Result:
    """Where runs are recorded: writable, and with room for one."""
    named = place.environment.get("GPUMON_RUN_DIR")
    folder = Path(named) if named else _RUNS
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    shown = str(folder) if named else f"{folder}/"
    if not nearest.is_dir():
        return failed(f"{shown}: {nearest} is no folder", _elsewhere(place, named))
    if not os.access(nearest, os.W_OK | os.X_OK):
        return failed(f"{shown}: no permission to write in {nearest}", _elsewhere(place, named))
    status = os.statvfs(nearest)
    free = status.f_bavail * status.f_frsize
    if free < _LEAST_BYTES or (status.f_files and not status.f_favail):
        what = f"{units.size(free)} free" if status.f_favail or not status.f_files else "no free inode"
        return failed(f"{shown}: {what} in {nearest}: the disk is full", _elsewhere(place, named))
    if free < _RUN_BYTES:
        text = f"{shown}: {units.size(free)} free, a run keeps up to {units.size(_RUN_BYTES)}"
        return warning(text, _elsewhere(place, named))
    return ok(f"{shown}: writable, {units.size(free)} free")


def _elsewhere(place: Place, named: str | None) -> str:
    if named:
        return export("GPUMON_RUN_DIR", "/path/with/room/run-1")
    return "gpumon run --out /path/with/room/run-1 -- python train.py"


# -- the hook --------------------------------------------------------------------------------------------


def hook_check(place: Place) -> Result:
    """Whether `gpumon run -- python …` gets into the Python that is first on the PATH."""
    python = place.which("python") or place.which("python3")
    if python is None:
        return absent("there is no python on the PATH")
    with tempfile.TemporaryDirectory(prefix="gpumon-doctor-") as folder:
        environment = {**place.environment, "GPUMON_RUN_DIR": folder, "GPUMON_EXPORT": "none"}
        entries = [str(Path(hook.__file__).parent), place.environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, entries))
        try:
            done = subprocess.run(
                [python, "-c", _LOOKS],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment,
                timeout=_PYTHON_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return failed(f"{python}: does not start within {_PYTHON_S:g} s", f"{python} -X importtime -c pass")
        except OSError as error:
            return failed(f"{python}: {error.strerror}", f"{sys.executable} -m gpumon run -- {sys.executable} train.py")
    return _of_python(place, python, done.stdout, done.stderr)


def _of_python(place: Place, python: str, out: str, err: str) -> Result:
    lines = out.splitlines()
    with_ours = f"gpumon run -- {shlex.quote(sys.executable)} train.py"
    try:
        version, executable, has_hook, is_managed, has = json.loads(lines[-1] if lines else "")
        has_gpumon, has_pip, *trains = has
    except (ValueError, TypeError):
        told = (err.strip().splitlines() or ["it prints nothing"])[-1][:160]
        return failed(f"{python}: does not run ({told})", with_ours)
    number = ".".join(map(str, version))
    if tuple(version) < (3, 10):
        return failed(f"{python} is Python {number}, gpumon needs 3.10", with_ours)
    if not has_gpumon:
        text = f"{python}: gpumon is not installed there (this one is {sys.executable})"
        repair = pip_install(DISTRIBUTION, python=Python(executable, has_pip, is_managed))
        return (failed if any(trains) else warning)(text, repair)
    if not has_hook:
        text = f"{python}: ignores PYTHONPATH (a wrapper, or -I or -E), so `gpumon run` cannot get in"
        return failed(text, f"gpumon run -- {shlex.quote(executable)} train.py")
    return ok(f"`gpumon run` gets into {python} (Python {number})")


# -- distributions ---------------------------------------------------------------------------------------


def distributions(place: Place) -> Result:
    """No other distribution brings a package `gpumon`: files of both would lie in one folder."""
    others = [name for name in packages_distributions().get("gpumon", ()) if _plain(name) != DISTRIBUTION]
    if not others:
        return ok(f"the only gpumon here is {DISTRIBUTION}")
    name = others[0]
    version = distribution(name).version
    text = f"the distribution {name} {version} installs a package gpumon too: files of both are mixed"
    return failed(text, f"{pip_uninstall(name)} && {pip_install(DISTRIBUTION, '--force-reinstall', '--no-deps')}")


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


# -- /proc of the workers --------------------------------------------------------------------------------


def workers_seen(place: Place) -> Result:
    """What the accounts of fetches read of workers: /proc/PID/task/TID/syscall, io, schedstat."""
    scope = place.read(_YAMA)
    hidden = place.option("/proc", "hidepid") or "0"
    refused = _refused() if place.is_real else {}  # the real thing tells; its files alone do elsewhere
    is_closed = "syscall" in refused if place.is_real else scope in ("2", "3") and not _may_trace(place)
    if scope in ("2", "3") and is_closed:
        text = f"kernel.yama.ptrace_scope={scope}: what workers are blocked on cannot be read, only how long"
        if scope == "2":
            return warning(text, on_machine(place, "sysctl -w kernel.yama.ptrace_scope=1"))
        later = "echo kernel.yama.ptrace_scope=1 > /etc/sysctl.d/99-gpumon.conf && reboot"
        return warning(text, on_machine(place, later))  # this one cannot be lowered before the next boot
    if refused:
        return blind(place, refused, hidden)
    note = f" (hidepid={hidden} hides only other users' processes)" if hidden not in _NOTHING_HIDDEN else ""
    return ok(f"/proc tells what workers are blocked on{note}")


def _may_trace(place: Place) -> bool:
    """CAP_SYS_PTRACE, which Yama's scope 2 asks for."""
    for line in place.read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 19 & 1)
    return False


def _refused() -> dict[str, str]:
    """file -> why it cannot be read of a child of ours, as workers are."""
    reader, writer = os.pipe()
    child: Any = subprocess.Popen(
        [sys.executable, "-S", "-c", "import sys; sys.stdin.read(1)"], stdin=reader, close_fds=True
    )
    refused = {}
    try:
        os.close(reader)
        for name in ("syscall", "io", "schedstat"):
            file = f"/proc/{child.pid}/{name}" if name == "io" else f"/proc/{child.pid}/task/{child.pid}/{name}"
            try:
                Path(file).read_bytes()
            except OSError as error:
                refused[name] = (error.strerror or str(error)).lower()
    finally:
        os.close(writer)
        child.wait(5)
    return refused


def blind(place: Place, refused: Mapping[str, str], hidden: str) -> Result:
    """*refused*: file of a worker -> why it cannot be read; *hidden*: /proc's hidepid."""
    files = ", ".join(f"{name} ({why})" for name, why in refused.items())
    text = f"/proc/PID of workers: {files}: what they are blocked on is not seen"
    if hidden not in _NOTHING_HIDDEN:
        return warning(f"{text}; /proc has hidepid={hidden}", on_machine(place, "mount -o remount,hidepid=0 /proc"))
    if place.is_gvisor:
        return warning(f"{text} (gVisor)", start_container(place, "--runtime=runc"))
    if place.read("/sys/fs/selinux/booleans/deny_ptrace").startswith("1"):
        return warning(f"{text} (SELinux)", on_machine(place, "setsebool -P deny_ptrace off"))
    if place.container:
        return warning(text, start_container(place, "--cap-add SYS_PTRACE"))
    return warning(text, newer_kernel(place))
